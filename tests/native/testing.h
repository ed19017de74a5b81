// What the tests share: random numbers, exact memory, comparison, other texts, and images to lanes and back.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <string>

#include "kernels.h"
#include "layout.h"
#include "reference.h"

namespace testing {

inline std::mt19937 generator(7);

inline int32_t number_bytes = 4;  // of a number in the lanes of the instruction set under test

// A number that lanes can hold.
inline float uniform() {
  const float x = std::uniform_real_distribution<float>(-1.0f, 1.0f)(generator);
  return number_bytes == 2 ? float(reference::rounded_to_half(double(x))) : x;
}
inline int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}
inline secateur::Activation some_activation() { return secateur::Activation(between(0, 9)); }

// Exactly as large as asked, so that the address sanitizer sees a read past the end; random numbers, those of lanes
// unless `each` says how many bytes one takes.
struct Buffer {
  char* data;
  int32_t each;
  explicit Buffer(int64_t bytes, int32_t each_ = number_bytes)
      : data(static_cast<char*>(::operator new(size_t(bytes), std::align_val_t(64)))), each(each_) {
    for (int64_t i = 0; i + each <= bytes; i += each) set(i, double(uniform()));
  }
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* floats() const { return reinterpret_cast<float*>(data); }
  double number(int64_t bytes) const {
    if (each == 2) return reference::value_of_half(*reinterpret_cast<const uint16_t*>(data + bytes));
    return double(*reinterpret_cast<const float*>(data + bytes));
  }
  void set(int64_t bytes, double x) const {
    if (each == 2)
      *reinterpret_cast<uint16_t*>(data + bytes) = std::isnan(x) ? 0x7E00 : reference::bits_of_half(x);
    else
      *reinterpret_cast<float*>(data + bytes) = float(x);
  }
};

// `magnitude`: the sum of what was added, each without its sign; rounding errors are in proportion to it, and are those
// of numbers of `bytes`. A NaN is near a NaN only.
inline void expect_near(double got, double wanted, double magnitude, const char* what, int32_t bytes = number_bytes) {
  if (bytes == 2) wanted = reference::rounded_to_half(wanted);
  if (got == wanted || std::fabs(got - wanted) <= (bytes == 2 ? 4e-3 : 2e-6) * (1.0 + magnitude)) return;
  if (std::isnan(got) && std::isnan(wanted)) return;
  std::printf("%s: got %.9g, wanted %.9g\n", what, got, wanted);
  std::exit(1);
}

// The first `what` of a text, which must be in it, replaced.
inline std::string replaced(std::string text, const std::string& what, const std::string& by) {
  return text.replace(text.find(what), what.size(), by);
}

// Images [image][channel][y][x], or tokens [x][channel], to lanes (`pack`) or back, one group after the other.
inline void convert(const secateur::KernelTable& table, const secateur::LaneLayout& layout, char* lanes,
                    reference::Image& image, bool pack) {
  secateur::ConvertCall call{};
  call.image_step = image.channels * image.height * image.width;
  call.channel_step = layout.tokens ? 1 : image.height * image.width;
  call.y_step = image.width;
  call.x_step = layout.tokens ? image.channels : 1;
  call.n_channels = image.channels;
  call.width = image.width;
  call.n_images = int32_t(image.n);
  call.grid_y = layout.grid_y;
  call.grid_x = layout.grid_x;
  call.block_height = int32_t(layout.block_height);
  call.block_width = int32_t(layout.block_width);
  call.spread = layout.spread() && !layout.tokens;
  call.tokens = layout.tokens;
  for (int64_t group = 0; group < layout.groups; group++) {
    const int64_t first_row = layout.first_row(group);
    call.lane = layout.view(lanes, group);
    call.plain = image.numbers.data() + first_row * call.y_step;
    call.height = image.height - first_row;
    (pack ? table.pack : table.unpack)(call);
  }
}

}  // namespace testing
