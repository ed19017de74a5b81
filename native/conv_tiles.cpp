// Which tile of output pixels, and how many input channels at a time, a convolution costs least with, by a model of its
// cycles.
#include <algorithm>
#include <cmath>
#include <limits>

#include "conv.h"

namespace secateur {

namespace {

// Cache that a block of input may fill: three quarters of what first-level data caches have (32 to 64 KB).
constexpr double block_bytes = 37 * 1024;

// As many times as much may come from the second-level cache again and again: half a megabyte, since the next block is
// on its way there meanwhile.
constexpr double most_blocks = 14.0;

// The same where output channels share what is read: the rest is for their weights and sums. And fewer steps than this
// are not worth keeping the sums after them.
constexpr double dense_block_bytes = 24 * 1024;
constexpr int64_t least_steps = 64;

const RowsKernel* rows_kernel(const KernelTable& table, int32_t height, int32_t width, int64_t stride) {
  const RowsKernel* any = nullptr;
  for (int32_t i = 0; i < table.n_rows; i++) {
    const RowsKernel& k = table.rows[i];
    if (k.tile_height != height || k.tile_width != width || !k.run) continue;
    if (k.stride_x == stride) return &k;
    if (k.stride_x == 0) any = &k;
  }
  return any;
}

// Cycles of a row kernel for one output channel and one block of input channels, fitted to measurements on one
// AVX-512 core (docs/runtime.md); only their ratios matter.
double row_cycles(int pixels, double non_zeros, bool in_cache) {
  const double load = in_cache ? 0.58 : 1.1;
  return non_zeros * (1.4 + load * pixels) + 6.0 + 1.1 * pixels;
}

// The largest block of at most `most` channels, or one, into which they can be divided about evenly.
int64_t even_blocks(int64_t channels, int64_t most) {
  const int64_t blocks = (channels + std::max<int64_t>(1, most) - 1) / std::max<int64_t>(1, most);
  return (channels + blocks - 1) / blocks;
}

}  // namespace

const DenseKernel* dense_kernel(const KernelTable& table, int32_t channels, int32_t height, int32_t width,
                                int64_t stride) {
  const DenseKernel* any = nullptr;
  for (int32_t i = 0; i < table.n_dense; i++) {
    const DenseKernel& k = table.dense[i];
    if (k.channels != channels || k.tile_height != height || k.tile_width != width || !k.run) continue;
    if (k.stride_x == stride) return &k;
    if (k.stride_x == 0) any = &k;
  }
  return any;
}

// Cycles, by the model, for one tile and all channels, `block` input channels at a time.
double ConvPlan::cost_of_tile(const ConvShape& shape, int64_t height, int64_t width, double per_channel,
                              double block) const {
  if (height == 0 || width == 0) return 0.0;
  const double bytes = input_bytes(height, width), blocks = double(shape.channels / shape.groups) / block;
  const double fetch = bytes / 64 * 1.5 * block / double(shape.outputs);  // the tile comes from the next cache
  const bool in_cache = block * bytes <= block_bytes;
  return std::max(1.0, blocks) * (row_cycles(int(height * width), per_channel * block, in_cache) + fetch);
}

// Bytes of one input channel that a tile reads: all of its rectangle, or less if windows do not touch.
double ConvPlan::input_bytes(int64_t height, int64_t width) const {
  const Window& w = window_;
  const int64_t rows = std::min(extent(height, w.stride_y, w.height, w.dilation_y), height * w.height);
  const int64_t columns = std::min(extent(width, w.stride_x, w.width, w.dilation_x), width * w.width);
  return double(rows * columns * lane_bytes_);
}

// The tile that costs least, and what goes with it.
void ConvPlan::choose(const KernelTable& table, const ConvShape& shape, const LaneLayout& output, double per_channel) {
  const int64_t rows = output.block_height, columns = output.block_width, stride = shape.window.stride_x;
  double best = std::numeric_limits<double>::infinity();
  int32_t height = 1, width = 1;
  for (int32_t th = 1; th <= 4 && th <= rows; th++) {
    for (int32_t tw = 1; tw <= 8 && tw <= columns; tw++) {
      const auto cover_cost = [&](const auto& tile_cost) {  // whole tiles, and the smaller ones at the edges
        const auto down = double(rows / th), across = double(columns / tw);
        return down * across * tile_cost(th, tw) + across * tile_cost(rows % th, tw) +
               down * tile_cost(th, columns % tw) + tile_cost(rows % th, columns % tw);
      };
      if (!dense_ && rows_kernel(table, th, tw, stride)) {
        const auto channels = double(shape.channels / shape.groups);
        for (const double factor : {1.0, 1.4, 2.0, 4.0, 8.0, most_blocks}) {
          const double most = double(int64_t(block_bytes * factor / input_bytes(th, tw)));
          const double blocks = std::ceil(channels / std::max(1.0, std::min(channels, most)));
          const double block = std::ceil(channels / blocks);
          const double cost =
              cover_cost([&](int64_t h, int64_t w) { return cost_of_tile(shape, h, w, per_channel, block); });
          if (cost < best) best = cost, height = th, width = tw, block_channels_ = int64_t(block);
        }
      }
      for (const int32_t m : {8, 4}) {
        if (!dense_ || !dense_kernel(table, m, th, tw, stride)) continue;
        // loads and multiply-adds for one input vector's worth of weights: two of each a cycle
        const double cost = cover_cost([&](int64_t h, int64_t w) {
          return h * w == 0 ? 0.0 : (std::max({double(h * w + m), double(m * h * w), 8.0}) + 1.0) / m;
        });
        if (cost < best) best = cost, height = th, width = tw, panel_channels_ = m;
      }
    }
  }
  if (dense_ && output.number_bytes == 4) {
    const int64_t fit = int64_t(dense_block_bytes / input_bytes(height, width));
    const int64_t least = least_steps / (window_.height * window_.width);
    block_channels_ = even_blocks(shape.channels, std::max(fit, least));
  } else if (dense_ || shape.groups > 1) {
    block_channels_ = shape.channels;
  }
  n_blocks_ = (shape.channels + block_channels_ - 1) / block_channels_;
  cover(table, output, height, width);
}

void ConvPlan::cover(const KernelTable& table, const LaneLayout& output, int32_t height, int32_t width) {
  for (int64_t y = 0; y < output.block_height; y += height) {
    for (int64_t x = 0; x < output.block_width; x += width) {
      const auto th = int32_t(std::min<int64_t>(height, output.block_height - y));
      const auto tw = int32_t(std::min<int64_t>(width, output.block_width - x));
      const int64_t stride = window_.stride_x;
      tiles_.push_back({y, x, th, tw, 0, rows_kernel(table, th, tw, stride),
                        dense_kernel(table, panel_channels_, th, tw, stride), dense_kernel(table, 1, th, tw, stride)});
    }
  }
}

// Tiles are shared out; with few of them, output channels are.
Split split_of(const Sharing& sharing, bool by_outputs, int64_t tiles, int64_t outputs) {
  const int64_t threads = sharing.threads;
  if (sharing.parts > 1) return {sharing.parts, 1};
  if (threads == 1) return {1, 1};
  if (by_outputs || (tiles < threads * 4 && tiles % threads != 0)) return {std::min(threads, outputs), 1};
  return {1, std::min(tiles, threads * 8)};
}

// With groups, output channels are shared out too, since each reads channels of its own.
//
// Whoever has some of the outputs reads all inputs, most of which other cores wrote. If there are many more inputs than
// outputs, better each sums up what it has itself, and only sums change hands. Sums of halves must not be cut short.
void ConvPlan::share(const Sharing& sharing, const ConvShape& shape, bool halves) {
  const auto tiles = int64_t(tiles_.size()), threads = int64_t(sharing.threads);
  Split split{1, 1};
  const bool wide = shape.groups == 1 && shape.channels >= 2 * shape.outputs;
  if (threads > 1 && sharing.by_channels && wide && !(dense_ && halves)) {
    n_slices_ = std::min(threads, shape.channels);
    block_channels_ = even_blocks((shape.channels + n_slices_ - 1) / n_slices_, block_channels_);
    n_blocks_ = (shape.channels + block_channels_ - 1) / block_channels_;
    n_slices_ = std::min(n_slices_, n_blocks_);
    no_bias_.assign(size_t(shape.outputs), 0.0f);
  } else {
    split = split_of(sharing, sharing.by_channels || shape.groups > 1, tiles, shape.outputs);
  }
  n_parts_ = split.parts;
  for (int64_t i = 0; i <= split.spans; i++) spans_.push_back(i * tiles / split.spans);
  if (dense_ && n_blocks_ == 1 && n_slices_ == 1) return;  // no sums are kept
  int64_t sums = 0;
  for (Tile& tile : tiles_) {
    tile.sums = sums;
    slice_bytes_ = std::max(slice_bytes_, sums + outputs_ * tile.height * tile.width * lane_bytes_);
    if (n_slices_ > 1) sums = slice_bytes_;
  }
}

}  // namespace secateur
