// What the tests of kernels share: random numbers, exact memory, comparison, and images to lanes and back.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>

#include "kernels.h"
#include "layout.h"
#include "reference.h"

namespace testing {

inline std::mt19937 generator(7);

inline float uniform() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(generator); }
inline int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}
inline secateur::Activation some_activation() { return secateur::Activation(between(0, 9)); }

// Exactly as large as asked, so that the address sanitizer sees a read past the end; random numbers.
struct Buffer {
  char* data;
  explicit Buffer(int64_t bytes) : data(static_cast<char*>(::operator new(size_t(bytes), std::align_val_t(64)))) {
    for (int64_t i = 0; i < bytes / 4; i++) reinterpret_cast<float*>(data)[i] = uniform();
  }
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* floats() const { return reinterpret_cast<float*>(data); }
  float number(int64_t bytes) const { return *reinterpret_cast<const float*>(data + bytes); }
};

// `scale`: size of what was summed up on the way. A NaN is near a NaN only.
inline void expect_near(double got, double wanted, double scale, const char* what) {
  if (std::fabs(got - wanted) <= 2e-5 * (1.0 + scale)) return;
  if (std::isnan(got) && std::isnan(wanted)) return;
  std::printf("%s: got %.9g, wanted %.9g\n", what, got, wanted);
  std::exit(1);
}

// Images [image][channel][y][x], or tokens [x][channel], to lanes (`pack`) or back.
inline void convert(const secateur::KernelTable& table, const secateur::LaneLayout& layout, char* lanes,
                    reference::Image& image, bool pack) {
  secateur::ConvertCall call{};
  call.lane = layout.view(lanes);
  call.plain = image.numbers.data();
  call.image_step = image.channels * image.height * image.width;
  call.channel_step = layout.tokens ? 1 : image.height * image.width;
  call.y_step = image.width;
  call.x_step = layout.tokens ? image.channels : 1;
  call.n_channels = image.channels;
  call.height = image.height;
  call.width = image.width;
  call.n_images = int32_t(image.n);
  call.grid_y = layout.grid_y;
  call.grid_x = layout.grid_x;
  call.block_height = int32_t(layout.block_height);
  call.block_width = int32_t(layout.block_width);
  call.spread = layout.spread() && !layout.tokens;
  call.tokens = layout.tokens;
  (pack ? table.pack : table.unpack)(call);
}

}  // namespace testing
