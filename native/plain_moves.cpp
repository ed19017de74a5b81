// Plain operations that only move numbers, and products of matrices.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "error.h"
#include "plain_ops.h"
#include "plain_rows.h"

namespace secateur {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int64_t numbers_a_task = 1 << 15;  // fewer cost less than a second thread does
constexpr int64_t is_long = 16;              // an innermost loop of so many hides what it costs to begin it

// A dimension of a walk, and how far its next place is in what is read and in what is written.
struct Loop {
  int64_t size, from, to;
};

// Where the innermost loop reads a number of each line, and another loop the next number of the same lines: a few
// lines at a time, all of whose numbers are read while they are near.
void transpose_by_tiles(std::vector<Loop>& loops) {
  Loop& inner = loops.back();
  const auto along = std::find_if(loops.begin(), loops.end() - 1, [](const Loop& loop) { return loop.from == 1; });
  if (inner.from == 1 || inner.size % is_long != 0 || along == loops.end() - 1 || along->size < is_long) return;
  const Loop outer{inner.size / is_long, inner.from * is_long, inner.to * is_long};
  inner.size = is_long;
  loops.insert(along, outer);
}

// The same numbers in loops as few and as long as can be. Any order of loops will do: innermost stands one that is
// long and takes the shortest steps in what is written.
std::vector<Loop> loops_over(const Shape& shape, const std::vector<int64_t>& from, const std::vector<int64_t>& to) {
  std::vector<Loop> loops;
  for (size_t d = 0; d < shape.size(); d++) {
    if (shape[d] == 1) continue;
    const bool goes_on =
        !loops.empty() && loops.back().from == from[d] * shape[d] && loops.back().to == to[d] * shape[d];
    if (goes_on)
      loops.back() = {loops.back().size * shape[d], from[d], to[d]};
    else
      loops.push_back({shape[d], from[d], to[d]});
  }
  if (loops.empty()) loops.push_back({1, 1, 1});
  const auto best = std::min_element(loops.rbegin(), loops.rend(), [](const Loop& a, const Loop& b) {
    const int64_t long_a = std::min(a.size, is_long), long_b = std::min(b.size, is_long);
    return long_a != long_b ? long_a > long_b : std::pair(a.to, a.from) < std::pair(b.to, b.from);
  });
  std::rotate(best.base() - 1, best.base(), loops.end());
  transpose_by_tiles(loops);
  return loops;
}

// Rows `first` to `last` of a walk, a row being its innermost loop.
template <typename T>
void copy_rows(const std::vector<Loop>& loops, int64_t first, int64_t last, const T* from, T* to) {
  const Loop inner = loops.back();
  const size_t n_outer = loops.size() - 1;
  std::vector<int64_t> at(n_outer);
  int64_t rest = first;
  for (size_t d = n_outer; d-- > 0; rest /= loops[d].size) {
    at[d] = rest % loops[d].size;
    from += at[d] * loops[d].from;
    to += at[d] * loops[d].to;
  }
  for (int64_t row = first; row < last; row++) {
    if (inner.from == 1 && inner.to == 1)
      std::memcpy(to, from, size_t(inner.size) * sizeof(T));
    else
      for (int64_t i = 0; i < inner.size; i++) to[i * inner.to] = from[i * inner.from];
    for (size_t d = n_outer; d-- > 0;) {  // on to the next row, as an odometer does
      from += loops[d].from;
      to += loops[d].to;
      if (++at[d] < loops[d].size) break;
      at[d] = 0;
      from -= loops[d].size * loops[d].from;
      to -= loops[d].size * loops[d].to;
    }
  }
}

std::vector<int64_t> batch_steps(const Shape& shape, const Shape& to, int64_t matrix) {
  std::vector<int64_t> steps(to.size(), 0);
  int64_t step = matrix;
  for (size_t i = 3; i <= shape.size(); i++) {
    const int64_t size = shape[shape.size() - i];
    if (size != 1) steps[to.size() - (i - 2)] = step;
    step *= size;
  }
  return steps;
}

int64_t offset_of(int64_t index, const Shape& shape, const std::vector<int64_t>& steps) {
  int64_t at = 0;
  for (size_t d = shape.size(); d-- > 0;) {
    at += index % shape[d] * steps[d];
    index /= shape[d];
  }
  return at;
}

// Whether a position sees no other, as all its scores are −∞.
bool is_blind(const float* scores, int64_t n) {
  return std::all_of(scores, scores + n, [](float score) { return score == -infinity; });
}

}  // namespace

// One walk for all of them: an output of the size `shape`, and what it reads, or (pad) where it writes.
void PlainBuilder::copy(const Op& op, const Walk& walk) {
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const bool wide = session_.program_.values[size_t(op.output)].is_integer;
  if (op.kind == OpKind::pad) {
    const int64_t total = count(session_.shapes_[size_t(op.output)]);
    const double number = op.number;
    session_.add_stage(1, {to}, [=](Context& context, int64_t, int) {
      if (wide)
        std::fill_n(reinterpret_cast<int64_t*>(context.buffer(to)), total, int64_t(number));
      else
        std::fill_n(floats(context, to), total, float(number));
    });
  }
  const std::vector<Loop> loops = loops_over(walk.shape, walk.from_steps, walk.to_steps);
  const int64_t rows = count(walk.shape) / loops.back().size;
  const int64_t tasks = std::clamp<int64_t>(count(walk.shape) / numbers_a_task, 1, std::max<int64_t>(rows, 1));
  const int64_t from_start = walk.from_start, to_start = walk.to_start;
  session_.add_stage(tasks, {from, to}, [=](Context& context, int64_t task, int) {
    const int64_t first = rows * task / tasks, last = rows * (task + 1) / tasks;
    if (wide)
      copy_rows(loops, first, last, reinterpret_cast<const int64_t*>(context.buffer(from)) + from_start,
                reinterpret_cast<int64_t*>(context.buffer(to)) + to_start);
    else
      copy_rows(loops, first, last, floats(context, from) + from_start, floats(context, to) + to_start);
  });
}

void PlainBuilder::moved(const Op& op) {
  const Shape x = session_.shapes_[size_t(op.inputs[0])], y = session_.shapes_[size_t(op.output)];
  const std::vector<int64_t> in = strides_of(x), out = strides_of(y);
  Walk walk{y, in, out, 0, 0};
  switch (op.kind) {
    case OpKind::reshape: {
      // the same numbers in the same order: no copy, unless the output lies elsewhere
      const int from = session_.plain(op.inputs[0]);
      if (!session_.is_output(op.output)) {
        session_.forms_[size_t(op.output)].plain = from;
        return;
      }
      walk = {{count(x)}, {1}, {1}, 0, 0};
      break;
    }
    case OpKind::permute:
      for (size_t d = 0; d < y.size(); d++) walk.from_steps[d] = in[size_t(op.dims[d])];
      break;
    case OpKind::slice:
      walk.from_start = op.start * in[size_t(op.dim)];
      walk.from_steps[size_t(op.dim)] *= op.step;
      break;
    case OpKind::pad:
      walk.shape = x;
      for (size_t d = 0; d < x.size(); d++) walk.to_start += op.margins[d].first * out[d];
      break;
    default:  // expand
      for (size_t d = 0; d < y.size(); d++)
        if (x[d] == 1) walk.from_steps[d] = 0;
  }
  copy(op, walk);
}

void PlainBuilder::cat(const Op& op) {
  const Shape y = session_.shapes_[size_t(op.output)];
  std::vector<int> buffers;
  std::vector<int64_t> sizes;
  const int64_t inner = strides_of(y)[size_t(op.dim)],
                width = session_.program_.values[size_t(op.output)].is_integer ? 8 : 4;
  for (const int id : op.inputs) {
    buffers.push_back(session_.plain(id));
    sizes.push_back(session_.shapes_[size_t(id)][size_t(op.dim)] * inner * width);
  }
  const int to = session_.new_plain(op.output);
  const int64_t row = y[size_t(op.dim)] * inner * width, rows = count(y) * width / std::max<int64_t>(row, 1);
  std::vector<int> used = buffers;
  used.push_back(to);
  // whole rows to each task; where rows are fewer, equal shares of every piece of a row, whatever the sizes are
  const int64_t tasks = std::max<int64_t>(count(y) / numbers_a_task, 1);
  const int64_t shares = std::max<int64_t>(tasks / std::max<int64_t>(rows, 1), 1), units = rows * shares;
  session_.add_stage(tasks, used, [=](Context& context, int64_t task, int) {
    for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++) {
      const int64_t r = unit / shares, share = unit % shares;
      char* out = context.buffer(to) + r * row;
      for (size_t i = 0; i < buffers.size(); i++) {
        const int64_t first = sizes[i] * share / shares, last = sizes[i] * (share + 1) / shares;
        std::memcpy(out + first, context.buffer(buffers[i]) + r * sizes[i] + first, size_t(last - first));
        out += sizes[i];
      }
    }
  });
}

void PlainBuilder::matmul(const Op& op) {
  const Shape a = session_.shapes_[size_t(op.inputs[0])], b = session_.shapes_[size_t(op.inputs[1])];
  const Shape y = session_.shapes_[size_t(op.output)];
  const int left = session_.plain(op.inputs[0]), right = session_.plain(op.inputs[1]);
  const int to = session_.new_plain(op.output);
  const int64_t m = a[a.size() - 2], k = a.back(), n = b.back();
  const Shape batch(y.begin(), y.end() - 2);
  const auto a_steps = batch_steps(a, batch, m * k), b_steps = batch_steps(b, batch, k * n);
  const auto kernel = session_.table_.matmul;
  session_.add_stage(count(batch), {left, right, to}, [=](Context& context, int64_t task, int) {
    MatmulCall call{};
    call.a = floats(context, left) + offset_of(task, batch, a_steps);
    call.b = floats(context, right) + offset_of(task, batch, b_steps);
    call.c = floats(context, to) + task * m * n;
    call.m = m;
    call.n = call.b_row = call.c_row = n;
    call.k = call.a_row = k;
    call.scale = 1.0f;
    kernel(call);
  });
}

// One head at a time: scores of up to 64 positions, their softmax, the weighted sum.
void PlainBuilder::attention(const Op& op) {
  constexpr int64_t most_rows = 64;
  const Shape q = session_.shapes_[size_t(op.inputs[0])], k = session_.shapes_[size_t(op.inputs[1])];
  const Shape y = session_.shapes_[size_t(op.output)];
  const int from_q = session_.plain(op.inputs[0]), from_k = session_.plain(op.inputs[1]);
  const int from_v = session_.plain(op.inputs[2]);
  const int from_mask = op.inputs.size() == 4 ? session_.plain(op.inputs[3]) : -1;
  const int to = session_.new_plain(op.output);
  const int64_t t = q[q.size() - 2], d = q.back(), s = k[k.size() - 2], e = y.back();
  Shape scores(y.begin(), y.end());
  scores.back() = s;
  std::vector<int64_t> mask_steps;
  if (from_mask >= 0) mask_steps = broadcast_steps(session_.shapes_[size_t(op.inputs[3])], scores);
  session_.scratch_bytes_ = std::max(session_.scratch_bytes_, std::min(most_rows, t) * s * 4);
  const KernelTable* table = &session_.table_;
  const auto factor = float(op.factor);
  const bool causal = op.flag;
  const int64_t heads = count(y) / (t * e);
  session_.add_stage(heads, {from_q, from_k, from_v, from_mask, to}, [=](Context& context, int64_t head, int thread) {
    float* score = reinterpret_cast<float*>(context.scratch(thread));
    for (int64_t first = 0; first < t; first += most_rows) {
      const int64_t rows = std::min(most_rows, t - first);
      MatmulCall call{};
      call.a = floats(context, from_q) + (head * t + first) * d;
      call.b = floats(context, from_k) + head * s * d;
      call.c = score;
      call.m = rows;
      call.n = call.c_row = s;
      call.k = call.a_row = call.b_row = d;
      call.b_transposed = true;
      call.scale = factor;
      table->matmul(call);
      for (int64_t i = 0; i < rows; i++) {
        float* row = score + i * s;
        if (from_mask >= 0) {
          const float* mask = floats(context, from_mask) + offset_of((head * t + first + i) * s, scores, mask_steps);
          for (int64_t j = 0; j < s; j++) row[j] += mask[j * mask_steps.back()];
        }
        if (causal)
          for (int64_t j = first + i + 1; j < s; j++) row[j] = -infinity;
        if (is_blind(row, s))
          std::fill_n(row, s, 0.0f);
        else
          table->softmax(row, 1, s);
      }
      call.a = score;
      call.b = floats(context, from_v) + head * s * e;
      call.c = floats(context, to) + (head * t + first) * e;
      call.k = call.a_row = s;
      call.n = call.b_row = call.c_row = e;
      call.b_transposed = false;
      call.scale = 1.0f;
      table->matmul(call);
    }
  });
}

void PlainBuilder::embedding(const Op& op) {
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const int64_t n = count(session_.shapes_[size_t(op.inputs[0])]), rows = op.weight->shape[0];
  const int64_t features = op.weight->shape[1];
  const auto numbers = std::make_shared<std::vector<float>>(op.weight->all());
  const std::string where = op.where();
  session_.add_stage(1, {from, to}, [=](Context& context, int64_t, int) {
    const auto* indices = reinterpret_cast<const int64_t*>(context.buffer(from));
    for (int64_t i = 0; i < n; i++) {
      if (indices[i] < 0 || indices[i] >= rows)
        return context.fail(where + ": index " + std::to_string(indices[i]) + " is not in 0 … " +
                            std::to_string(rows - 1));
      std::memcpy(floats(context, to) + i * features, numbers->data() + indices[i] * features, size_t(features) * 4);
    }
  });
}

void PlainBuilder::constant(const Op& op) {
  const int to = session_.new_plain(op.output);
  const auto numbers =
      std::make_shared<std::vector<float>>(op.weight->is_integer ? std::vector<float>() : op.weight->all());
  const auto integers = std::make_shared<std::vector<int64_t>>(op.weight->integers);
  session_.add_stage(1, {to}, [=](Context& context, int64_t, int) {
    if (integers->empty())
      std::memcpy(context.buffer(to), numbers->data(), numbers->size() * 4);
    else
      std::memcpy(context.buffer(to), integers->data(), integers->size() * 8);
  });
}

}  // namespace secateur
