#include "session.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "error.h"
#include "lane_ops.h"
#include "memory.h"
#include "plain_ops.h"

namespace secateur {

namespace {

constexpr int64_t alignment = 4096, huge_page = 2 << 20;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

void Context::Free::operator()(char* p) const { ::operator delete(p, std::align_val_t(size_t(huge_page))); }

Context::Context(int64_t bytes, int64_t scratch_bytes, int threads, size_t n_buffers)
    : scratch_at_(round_up(bytes, alignment)),
      scratch_bytes_(round_up(scratch_bytes, alignment)),
      buffers_(n_buffers, nullptr) {
  const int64_t total = round_up(scratch_at_ + scratch_bytes_ * threads + alignment, huge_page);
  check_available(total);
  memory_.reset(static_cast<char*>(::operator new(size_t(total), std::align_val_t(size_t(huge_page)))));
#if defined(__linux__)
  madvise(memory_.get(), size_t(total), MADV_HUGEPAGE);  // only advice: fewer misses of the address cache
#endif
  // Lanes that hold no image are computed with, too: they must be ordinary numbers.
  std::memset(memory_.get(), 0, size_t(total));
}

void Context::fail(const std::string& message) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (failure.empty()) failure = message;
}

Session::Session(const Program& program, const KernelTable& table, int64_t batch, int64_t total, int threads)
    : program_(program),
      table_(table),
      batch_(batch),
      total_(total),
      threads_(threads),
      images_(1),
      last_readers_(last_readers(program)) {
  while (images_ < batch && images_ < table.lanes) images_ *= 2;
  for (const Value& value : program.values) shapes_.push_back(at_batch(value.shape, batch));
  forms_.resize(shapes_.size());
  for (const Op& op : program.ops) {
    std::vector<Shape> inputs;
    for (const int id : op.inputs) inputs.push_back(shapes_[size_t(id)]);
    infer_shape(op, inputs, shapes_[size_t(op.output)]);
  }
  for (const int id : program.inputs) {
    if (forms_[size_t(id)].plain < 0) {
      const int buffer = new_buffer(bytes_of(id));
      buffers_[size_t(buffer)].external = true;
      forms_[size_t(id)].plain = buffer;
    }
    input_buffers_.push_back(forms_[size_t(id)].plain);
  }
  for (const int id : program.outputs) {
    const int buffer = new_buffer(bytes_of(id));
    buffers_[size_t(buffer)].external = true;
    output_buffers_.push_back(buffer);
  }
  LaneBuilder lane(*this);
  PlainBuilder plain_builder(*this);
  for (size_t i = 0; i < program.ops.size(); i++) {
    op_ = int(i);
    try {
      if (!lane.build(program.ops[i])) plain_builder.build(program.ops[i]);
    } catch (const PlanError& error) {
      throw PlanError(program.ops[i].where() + ": " + error.what());
    }
  }
  for (size_t i = 0; i < program.outputs.size(); i++) {
    const int from = plain(program.outputs[i]), to = output_buffers_[i];
    if (from == to) continue;
    const auto bytes = size_t(bytes_of(program.outputs[i]));
    add_stage(1, {from, to}, [from, to, bytes](Context& context, int64_t, int) {
      if (bytes) std::memcpy(context.buffer(to), context.buffer(from), bytes);
    });
  }
  place_buffers();
}

int64_t Session::bytes_of(int value) const {
  return count(shapes_[size_t(value)]) * (program_.values[size_t(value)].is_integer ? 8 : 4);
}

bool Session::is_output(int value) const {
  return std::find(program_.outputs.begin(), program_.outputs.end(), value) != program_.outputs.end();
}

bool Session::is_read_later(int value) const { return last_readers_[size_t(value)] > size_t(op_) + 1; }

int Session::new_buffer(int64_t bytes) {
  Buffer buffer;
  buffer.bytes = bytes;
  buffers_.push_back(buffer);
  return int(buffers_.size()) - 1;
}

// A value that is an output of the program is written to where the caller wants it.
int Session::new_plain(int value) {
  int& plain = forms_[size_t(value)].plain;
  for (size_t i = 0; i < program_.outputs.size(); i++)
    if (program_.outputs[i] == value) return plain = output_buffers_[i];
  return plain = new_buffer(bytes_of(value));
}

void Session::add_stage(int64_t n_tasks, const std::vector<int>& buffers, Work work) {
  stages_.push_back({op_, n_tasks, std::move(work)});
  use(buffers);
}

void Session::use(const std::vector<int>& buffers) {
  const int stage = int(stages_.size()) - 1;
  for (const int id : buffers) {
    if (id < 0) continue;
    Buffer& buffer = buffers_[size_t(id)];
    if (buffer.first < 0) buffer.first = stage;
    buffer.last = stage;
  }
}

int Session::plain(int value) {
  if (forms_[size_t(value)].plain < 0) {
    new_plain(value);
    LaneBuilder(*this).unpack(value);
  }
  return forms_[size_t(value)].plain;
}

// First fit, the largest first: two buffers share memory if no stage uses both.
void Session::place_buffers() {
  std::vector<size_t> order;
  for (size_t i = 0; i < buffers_.size(); i++)
    if (!buffers_[i].external && buffers_[i].first >= 0) order.push_back(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return buffers_[a].bytes > buffers_[b].bytes; });
  std::vector<size_t> placed;  // by offset
  for (const size_t i : order) {
    Buffer& buffer = buffers_[i];
    int64_t offset = 0;
    for (const size_t j : placed) {
      const Buffer& other = buffers_[j];
      if (other.last < buffer.first || buffer.last < other.first) continue;
      if (offset + buffer.bytes <= other.offset) break;
      offset = std::max(offset, round_up(other.offset + other.bytes, alignment));
    }
    buffer.offset = offset;
    arena_bytes_ = std::max(arena_bytes_, offset + buffer.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](size_t a, size_t b) { return buffers_[a].offset < buffers_[b].offset; }),
                  i);
  }
}

std::unique_ptr<Context> Session::new_context() const {
  auto context = std::make_unique<Context>(arena_bytes_, scratch_bytes_, threads_, buffers_.size());
  for (size_t i = 0; i < buffers_.size(); i++)
    if (!buffers_[i].external && buffers_[i].first >= 0) context->bind(int(i), context->memory() + buffers_[i].offset);
  return context;
}

void Session::run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, Context& context,
                  Pool* pool, double* seconds) const {
  for (size_t i = 0; i < inputs.size(); i++)
    context.bind(input_buffers_[i], static_cast<char*>(const_cast<void*>(inputs[i])));
  for (size_t i = 0; i < outputs.size(); i++) context.bind(output_buffers_[i], static_cast<char*>(outputs[i]));
  context.failure.clear();
  auto last = std::chrono::steady_clock::now();
  for (const Stage& stage : stages_) {
    if (pool && stage.n_tasks > 1) {
      pool->run(stage.n_tasks, [&](int64_t task, int thread) { stage.work(context, task, thread); });
    } else {
      for (int64_t task = 0; task < stage.n_tasks; task++) stage.work(context, task, 0);
    }
    if (!context.failure.empty()) throw PlanError(context.failure);
    if (seconds) {
      const auto now = std::chrono::steady_clock::now();
      seconds[stage.op] += std::chrono::duration<double>(now - last).count();
      last = now;
    }
  }
}

}  // namespace secateur
