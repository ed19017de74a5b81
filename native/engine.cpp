#include "engine.h"

#include <algorithm>
#include <exception>

#include "dispatch.h"
#include "error.h"
#include "memory.h"

namespace secateur {

namespace {

constexpr int most_threads = 1024;
constexpr size_t most_ready = 16;

// Bytes of the sessions that are kept for batch sizes to come, however small the program; and how often its weights.
constexpr int64_t usual_bytes = 512 << 20;
constexpr int64_t most_copies = 6;

int64_t bytes_to_keep(const Program& program) {
  int64_t numbers = 0;
  for (const Op& op : program.ops) numbers += op.weight ? count(op.weight->shape) : 0;
  return std::max(usual_bytes, most_copies * 4 * numbers);
}

int checked_threads(int threads) {
  if (threads < 1 || threads > most_threads)
    throw PlanError("threads must be in 1 … " + std::to_string(most_threads) + ", got " + std::to_string(threads));
  return threads;
}

bool batch_first(const Shape& shape) {
  for (size_t i = 1; i < shape.size(); i++)
    if (shape[i] < 0) return false;
  return true;
}

bool has_batch(const Shape& shape) { return !shape.empty() && shape[0] < 0; }

// Whether an operation keeps images apart, given that the batch is the first dimension of all values.
bool keeps_apart(const Program& program, const Op& op) {
  for (const int id : op.inputs) {
    const Shape& x = program.values[size_t(id)].shape;
    if (!has_batch(x)) continue;
    const auto rank = int64_t(x.size());
    switch (op.kind) {
      case OpKind::softmax:
      case OpKind::cumsum:
      case OpKind::cat:
      case OpKind::slice:
        if (op.dim == 0) return false;
        break;
      case OpKind::mean:
      case OpKind::sum:
        if (std::find(op.dims.begin(), op.dims.end(), 0) != op.dims.end()) return false;
        break;
      case OpKind::layer_norm:
        if (op.n_dims >= rank) return false;
        break;
      case OpKind::linear:
        if (rank < 2) return false;
        break;
      case OpKind::matmul:
        if (rank < 2 || (rank == 2 && id != op.inputs[0])) return false;
        break;
      case OpKind::attention:
        if (rank < 3) return false;
        break;
      case OpKind::pad:
        if (!op.margins.empty() && (op.margins[0].first || op.margins[0].second)) return false;
        break;
      default: break;
    }
  }
  return true;
}

bool is_separable(const Program& program) {
  for (const Value& value : program.values)
    if (!batch_first(value.shape)) return false;
  for (const int id : program.outputs)
    if (!has_batch(program.values[size_t(id)].shape)) return false;
  return std::all_of(program.ops.begin(), program.ops.end(), [&](const Op& op) { return keeps_apart(program, op); });
}

}  // namespace

Engine::Engine(std::string_view program, std::map<std::string, Weight> weights, int threads)
    : program_(read_program(program, std::move(weights))),
      table_(chosen_table(program_.half)),
      pool_(checked_threads(threads)),
      separable_(is_separable(program_)),
      most_bytes_(bytes_to_keep(program_)) {
  // A program that cannot run is refused now, at two batch sizes. What holds for both may still not hold for all,
  // as of [-1] and [2]: a session infers its shapes again.
  for (const int64_t batch : {1, 2}) {
    std::vector<Shape> shapes;
    for (const Value& value : program_.values) shapes.push_back(at_batch(value.shape, batch));
    for (const Op& op : program_.ops) {
      std::vector<Shape> inputs;
      for (const int id : op.inputs) inputs.push_back(shapes[size_t(id)]);
      infer_shape(op, inputs, shapes[size_t(op.output)]);
    }
  }
}

int64_t Engine::batch_of(const std::vector<Shape>& inputs) const {
  if (inputs.size() != n_inputs())
    throw PlanError("the plan takes " + std::to_string(n_inputs()) + " inputs, got " + std::to_string(inputs.size()));
  const int64_t batch = inputs[0].empty() ? 0 : inputs[0][0];  // the first begins with −1, others may not
  for (size_t i = 0; i < inputs.size(); i++) {
    const Shape& wanted = input(i).shape;
    if (batch < 1 || at_batch(wanted, batch) != inputs[i])
      throw PlanError("input " + std::to_string(i) + " must have the shape " + text_of(wanted) +
                      ", where −1 is one batch size for all inputs, got " + text_of(inputs[i]));
  }
  return batch;
}

const std::vector<Section>& Engine::sections(int64_t batch) {
  std::vector<Section>& found = sections_[batch];
  if (found.empty()) {
    if (separable_)
      found = sections_of(program_, table_, batch, threads_for(batch), program_.working_set_for(batch));
    else
      found.push_back(whole(program_, batch));
  }
  return found;
}

Engine::Ready& Engine::ready(const Section& section, int64_t chunk, int64_t batch, int threads, int contexts) {
  const Key key{section.first_op, chunk, batch, threads};
  Ready& entry = ready_[key];
  entry.call = call_;
  if (entry.session && int(entry.contexts.size()) >= contexts) return entry;
  try {
    if (!entry.session) entry.session = std::make_unique<Session>(section.program, table_, chunk, batch, threads);
    while (int(entry.contexts.size()) < contexts) entry.contexts.push_back(entry.session->new_context());
  } catch (...) {
    ready_.erase(key);
    throw;
  }
  make_room();
  return entry;
}

// Drops what was not used for longest, but nothing that this call uses; and the sections that nothing is left of.
void Engine::make_room() {
  int64_t bytes = 0;
  for (const auto& [key, entry] : ready_) bytes += entry.bytes();
  while (ready_.size() > most_ready || bytes > most_bytes_) {
    const auto oldest = std::min_element(ready_.begin(), ready_.end(),
                                         [](const auto& a, const auto& b) { return a.second.call < b.second.call; });
    if (oldest->second.call == call_) return;
    const int64_t batch = std::get<2>(oldest->first);
    bytes -= oldest->second.bytes();
    ready_.erase(oldest);
    const bool needed =
        std::any_of(ready_.begin(), ready_.end(), [&](const auto& other) { return std::get<2>(other.first) == batch; });
    if (!needed) sections_.erase(batch);
  }
}

void Engine::run_chunk(const Section& section, Ready& ready, int context, int64_t first, const Pointers& inputs,
                       const Pointers& outputs, Pool* pool, double* seconds) const {
  const auto at = [&](void* data, int id) -> void* {
    const Value& value = program_.values[size_t(id)];
    const int64_t size = count(at_batch(value.shape, 1)) * (value.is_integer ? 8 : 4);
    const int64_t before = has_batch(value.shape) ? first * size : 0;  // others are the same for all images
    return static_cast<char*>(data) + before;
  };
  std::vector<const void*> from;
  Pointers to;
  for (size_t i = 0; i < inputs.size(); i++) from.push_back(at(inputs[i], section.program.inputs[i]));
  for (size_t i = 0; i < outputs.size(); i++) to.push_back(at(outputs[i], section.program.outputs[i]));
  ready.session->run(from, to, *ready.contexts[size_t(context)], pool, seconds);
}

void Engine::run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, int64_t batch,
                 double* seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  call_++;
  const std::vector<Section>& parts = sections(batch);
  between_.resize(std::max(between_.size(), parts.size()));
  Pointers from;
  for (const void* input : inputs) from.push_back(const_cast<void*>(input));  // read only
  for (size_t i = 0; i < parts.size(); i++) {
    Pointers to = outputs;
    if (i + 1 < parts.size()) {
      const Value& value = program_.values[size_t(parts[i].program.outputs[0])];
      const auto numbers = size_t(count(at_batch(value.shape, batch)));
      std::vector<float>& kept = between_[i];
      if (kept.size() < numbers) {
        check_available(int64_t(numbers) * 4);
        kept.resize(numbers);
      }
      to = {kept.data()};
    }
    run_section(parts[i], from, to, batch, seconds ? seconds + parts[i].first_op : nullptr);
    from = to;
  }
}

void Engine::run_section(const Section& section, const Pointers& inputs, const Pointers& outputs, int64_t batch,
                         double* seconds) {
  const int64_t chunk = section.chunk, n_chunks = batch / chunk;
  const int threads = threads_for(batch);
  const size_t n_ops = section.program.ops.size();
  int64_t done = 0;
  if (threads > 1 && n_chunks >= threads) {
    // whole chunks side by side: threads meet only at the end
    Ready& alone = ready(section, chunk, batch, 1, threads);
    const int64_t together = n_chunks / threads * threads;
    std::vector<std::vector<double>> times(size_t(threads), std::vector<double>(n_ops, 0.0));
    std::exception_ptr failure;
    std::mutex failing;
    pool_.run(together, [&](int64_t task, int thread) {
      try {
        run_chunk(section, alone, thread, task * chunk, inputs, outputs, nullptr,
                  seconds ? times[size_t(thread)].data() : nullptr);
      } catch (...) {
        const std::lock_guard<std::mutex> guard(failing);
        failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
    if (seconds)
      for (const auto& time : times)
        for (size_t i = 0; i < n_ops; i++) seconds[i] += time[i] / double(threads);
    done = together * chunk;
  }
  while (done < batch) {
    const int64_t now = std::min(chunk, batch - done);
    Ready& shared = ready(section, now, batch, threads, 1);
    run_chunk(section, shared, 0, done, inputs, outputs, threads > 1 ? &pool_ : nullptr, seconds);
    done += now;
  }
}

}  // namespace secateur
