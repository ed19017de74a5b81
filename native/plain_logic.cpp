// Plain operations on whole numbers and on conditions, which are floats of 0 and 1.
#include <array>
#include <cmath>
#include <limits>

#include "plain_ops.h"
#include "plain_rows.h"
#include "share.h"

namespace secateur {

namespace {

// Sums, differences and products that pass the largest number go on at the smallest, as in torch.
int64_t wrapped(Binary operation, int64_t a, int64_t b) {
  const auto x = uint64_t(a), y = uint64_t(b);
  switch (operation) {
    case Binary::add: return int64_t(x + y);
    case Binary::sub: return int64_t(x - y);
    default: return int64_t(x * y);
  }
}

template <typename T>
bool holds(Comparison comparison, T a, T b) {
  switch (comparison) {
    case Comparison::equal: return a == b;
    case Comparison::less: return a < b;
    default: return a <= b;
  }
}

// Towards 0; the nearest there is for what is too large, 0 for what is no number.
int64_t whole(float x) {
  constexpr float limit = 9223372036854775808.0f;  // 2^63
  if (std::isnan(x)) return 0;
  if (x >= limit) return std::numeric_limits<int64_t>::max();
  return x < -limit ? std::numeric_limits<int64_t>::min() : int64_t(x);
}

// out[k] = f(left[k], right[k]) in a row.
template <typename From, typename To, typename F>
auto each_pair(F f) {
  return [f](const From* left, int64_t left_step, const From* right, int64_t right_step, To* out, int64_t n) {
    for (int64_t k = 0; k < n; k++) out[k] = To(f(left[k * left_step], right[k * right_step]));
  };
}

}  // namespace

void PlainBuilder::integer_binary(const Op& op) {
  const auto found = [operation = op.binary](int64_t a, int64_t b) { return wrapped(operation, a, b); };
  pairs<int64_t, int64_t>(op, each_pair<int64_t, int64_t>(found));
}

void PlainBuilder::compare(const Op& op) {
  const auto found = [comparison = op.comparison](auto a, auto b) { return holds(comparison, a, b); };
  if (is_integer(op.inputs[0]))
    pairs<int64_t, float>(op, each_pair<int64_t, float>(found));
  else
    pairs<float, float>(op, each_pair<float, float>(found));
}

void PlainBuilder::where(const Op& op) {
  if (is_integer(op.output))
    chosen<int64_t>(op);
  else
    chosen<float>(op);
}

template <typename T>
void PlainBuilder::chosen(const Op& op) {
  const Shape shape = or_one(session_.shapes_[size_t(op.output)]);
  std::array<int, 3> from;
  std::array<std::vector<int64_t>, 3> steps;
  for (size_t i = 0; i < 3; i++) {
    from[i] = session_.plain(op.inputs[i]);
    steps[i] = broadcast_steps(session_.shapes_[size_t(op.inputs[i])], shape);
  }
  const int to = session_.new_plain(op.output);
  const int64_t inner = shape.back(), rows = count(shape) / inner;
  const int64_t tasks = tasks_for(session_.threads_, rows, rows * inner);
  session_.add_stage(tasks, {from[0], from[1], from[2], to}, [=](Context& context, int64_t task, int) {
    const Share share = share_of(rows, task, tasks);
    for (int64_t r = share.begin; r < share.end; r++) {
      const float* condition = floats(context, from[0]) + row_start(shape, steps[0], r);
      const T* a = numbers_of<T>(context, from[1]) + row_start(shape, steps[1], r);
      const T* b = numbers_of<T>(context, from[2]) + row_start(shape, steps[2], r);
      const int64_t i = steps[0].back(), j = steps[1].back(), k = steps[2].back();
      T* out = numbers_of<T>(context, to) + r * inner;
      for (int64_t x = 0; x < inner; x++) out[x] = condition[x * i] != 0.0f ? a[x * j] : b[x * k];
    }
  });
}

void PlainBuilder::convert(const Op& op) {
  const int64_t n = count(session_.shapes_[size_t(op.output)]);
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const bool from_integer = is_integer(op.inputs[0]), to_integer = is_integer(op.output);
  session_.add_stage(1, {from, to}, [=](Context& context, int64_t, int) {
    const auto each = [n](const auto* in, auto* out, auto f) {
      for (int64_t i = 0; i < n; i++) out[i] = f(in[i]);
    };
    const float* reals = floats(context, from);
    const auto* integers = numbers_of<const int64_t>(context, from);
    if (to_integer && from_integer)
      each(integers, numbers_of<int64_t>(context, to), [](int64_t x) { return x; });
    else if (to_integer)
      each(reals, numbers_of<int64_t>(context, to), whole);
    else if (from_integer)
      each(integers, floats(context, to), [](int64_t x) { return float(x); });
    else
      each(reals, floats(context, to), [](float x) { return x; });
  });
}

void PlainBuilder::cumsum(const Op& op) {
  if (is_integer(op.output))
    sums<int64_t, uint64_t>(op);
  else
    sums<float, double>(op);
}

template <typename T, typename Sum>
void PlainBuilder::sums(const Op& op) {
  const Shape x = session_.shapes_[size_t(op.inputs[0])];
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const int64_t n = x[size_t(op.dim)], step = strides_of(x)[size_t(op.dim)], lines = count(x) / n;
  session_.add_stage(1, {from, to}, [=](Context& context, int64_t, int) {
    for (int64_t line = 0; line < lines; line++) {
      const int64_t at = line / step * step * n + line % step;
      Sum sum = 0;
      for (int64_t i = at; i < at + n * step; i += step) {
        sum += Sum(numbers_of<const T>(context, from)[i]);
        numbers_of<T>(context, to)[i] = T(sum);
      }
    }
  });
}

}  // namespace secateur
