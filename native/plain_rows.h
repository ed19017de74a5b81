// Plain arrays in C order, gone through row by row: all dimensions but the last.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "session.h"

namespace secateur {

template <typename T>
T* numbers_of(const Context& context, int buffer) {
  return reinterpret_cast<T*>(context.buffer(buffer));
}

inline float* floats(const Context& context, int buffer) { return numbers_of<float>(context, buffer); }

inline Shape or_one(const Shape& shape) { return shape.empty() ? Shape{1} : shape; }

inline std::vector<int64_t> strides_of(const Shape& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

// Steps through `shape` broadcast to `to`: 0 where it has one and `to` more.
inline std::vector<int64_t> broadcast_steps(const Shape& shape, const Shape& to) {
  const std::vector<int64_t> strides = strides_of(shape);
  std::vector<int64_t> steps(to.size(), 0);
  for (size_t i = 1; i <= shape.size(); i++)
    if (shape[shape.size() - i] != 1) steps[to.size() - i] = strides[shape.size() - i];
  return steps;
}

// Where the i-th row begins.
inline int64_t row_start(const Shape& shape, const std::vector<int64_t>& steps, int64_t row) {
  int64_t at = 0;
  for (size_t d = shape.size() - 1; d-- > 0;) {
    at += row % shape[d] * steps[d];
    row /= shape[d];
  }
  return at;
}

// As many as there are rows to share, one if there are too few numbers to be worth it.
inline int64_t tasks_for(int threads, int64_t rows, int64_t numbers) {
  constexpr int64_t worth_sharing = 8 * 1024;
  return threads == 1 || numbers < worth_sharing ? 1 : std::min<int64_t>(std::max<int64_t>(rows, 1), threads * 2);
}

}  // namespace secateur
