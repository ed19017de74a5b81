#include "winograd.h"

#include <algorithm>
#include <array>
#include <limits>

#include "memory.h"

namespace secateur {

namespace {

// Bytes that a region's inputs may fill, so that they and the sums stay in the second-level cache.
constexpr int64_t most_inputs = 1 << 20;

// The same for the sums of a chunk of output channels, all places.
constexpr int64_t most_sums = 256 * 1024;

// Inputs of one place that stay in the first-level cache beside weights and sums.
constexpr int64_t most_block = 24 * 1024;

// Places whose distance is a power of two would share the same few lines of a cache.
constexpr int64_t apart = 5 * 64;

using Taps = std::array<double, 9>;

// G · g · Gᵀ, with G = [1 0 0; ½ ½ ½; ½ −½ ½; 0 0 1].
std::array<float, 16> transformed(const Taps& g) {
  double half[4][3];
  for (size_t x = 0; x < 3; x++) {
    half[0][x] = g[x];
    half[1][x] = (g[x] + g[3 + x] + g[6 + x]) / 2;
    half[2][x] = (g[x] - g[3 + x] + g[6 + x]) / 2;
    half[3][x] = g[6 + x];
  }
  std::array<float, 16> result;
  for (size_t y = 0; y < 4; y++) {
    result[4 * y] = float(half[y][0]);
    result[4 * y + 1] = float((half[y][0] + half[y][1] + half[y][2]) / 2);
    result[4 * y + 2] = float((half[y][0] - half[y][1] + half[y][2]) / 2);
    result[4 * y + 3] = float(half[y][2]);
  }
  return result;
}

}  // namespace

bool WinogradPlan::takes(const KernelTable& table, const ConvShape& shape) {
  const Window& w = shape.window;
  return table.winograd_input && shape.groups == 1 && w.height == 3 && w.width == 3 && w.stride_y == 1 &&
         w.stride_x == 1 && w.dilation_y == 1 && w.dilation_x == 1;
}

WinogradPlan::WinogradPlan(const KernelTable& table, const ConvShape& shape, const Weight& weight, const Weight* bias,
                           Activation activation, const LaneLayout& output, const Sharing& sharing)
    : table_(table),
      channels_(shape.channels),
      outputs_(shape.outputs),
      height_(output.block_height),
      width_(output.block_width),
      top_(shape.window.top),
      left_(shape.window.left),
      activation_(activation),
      vector_bytes_(output.vector_bytes()),
      tiles_across_((output.block_width + 1) / 2),
      n_tiles_((output.block_height + 1) / 2 * tiles_across_) {
  const SparseRows rows = sparse_rows(weight, 1);
  bias_.assign(size_t(outputs_), 0.0f);
  if (bias) bias_ = bias->all();
  choose();
  no_bias_.assign(size_t(panel_), 0.0f);
  share(sharing);
  pack(rows);
}

std::string WinogradPlan::describe() const {
  return "winograd, " + std::to_string(panel_) + " channels x " + std::to_string(most_tiles_) + " tiles, " +
         std::to_string(block_channels_) + " channels a block";
}

// How many tiles at a time, by the cycles of the kernels: two loads and two multiply-adds each, and weights, all of
// which each region reads, at sixteen bytes.
void WinogradPlan::choose() {
  const int64_t fit = std::max<int64_t>(1, most_inputs / (places * channels_ * vector_bytes_));
  double best = std::numeric_limits<double>::infinity();
  for (int32_t tiles = 1; tiles <= std::min<int64_t>({8, fit, n_tiles_}); tiles++) {
    for (const int32_t m : {8, 4}) {
      if (!dense_kernel(table_, m, 1, tiles, 1)) continue;
      const auto regions = double((n_tiles_ + tiles - 1) / tiles);
      const double cost = regions * (std::max({double(tiles + m), double(m * tiles), 8.0}) + 1.0 + 0.25 * m) / m;
      if (cost < best) best = cost, most_tiles_ = tiles, panel_ = m;
    }
  }
  const int64_t n_regions = (n_tiles_ + most_tiles_ - 1) / most_tiles_;
  for (int64_t region = 0; region < n_regions; region++) {
    const Share tiles = share_of(n_tiles_, region, n_regions);
    const auto across = int32_t(tiles.end - tiles.begin);
    regions_.push_back({tiles, dense_kernel(table_, panel_, 1, across, 1), dense_kernel(table_, 1, 1, across, 1)});
  }
  const int64_t channel = most_tiles_ * vector_bytes_;
  const int64_t n_blocks = (channels_ * channel + most_block - 1) / most_block;
  block_channels_ = (channels_ + n_blocks - 1) / n_blocks;
  for (int64_t c = 0; c < block_channels_; c++) offsets_.push_back(int32_t(c * channel));
  input_place_ = channels_ * channel + apart;
  inputs_bytes_ = places * input_place_;
}

// Output channels in chunks, of which as many sums are kept as fit.
void WinogradPlan::share(const Sharing& sharing) {
  const Split split = split_of(sharing, sharing.by_channels, int64_t(regions_.size()), outputs_);
  n_parts_ = split.parts;
  n_spans_ = split.spans;
  const int64_t channel = most_tiles_ * vector_bytes_;
  const int64_t most = std::max<int64_t>(1, most_sums / (places * channel * panel_)) * panel_;
  int64_t weights = 0, widest = 0;
  for (int64_t part = 0; part < n_parts_; part++) {
    first_chunks_.push_back(int64_t(chunks_.size()));
    const Share outputs = share_of(outputs_, part, n_parts_);
    for (int64_t c = outputs.begin; c < outputs.end; c += most) {
      chunks_.push_back({{c, std::min(outputs.end, c + most)}, weights});
      const int64_t n = chunks_.back().outputs.end - c;
      weights += places * channels_ * n;
      widest = std::max(widest, n);
    }
  }
  first_chunks_.push_back(int64_t(chunks_.size()));
  sums_place_ = widest * channel + apart;
}

void WinogradPlan::pack(const SparseRows& rows) {
  check_available(places * channels_ * outputs_ * 4);
  weights_.resize(size_t(places * channels_ * outputs_));
  for (const Chunk& chunk : chunks_) {
    const auto [begin, end] = chunk.outputs;
    for (int64_t o = begin; o < end; o++) {
      int64_t first = begin + (o - begin) / panel_ * panel_, width = panel_;  // of its panel; the last ones are alone
      if (end - first < panel_) first = o, width = 1;
      int64_t at = rows.starts[size_t(o)];
      for (int64_t c = 0; c < channels_; c++) {
        Taps taps{};
        for (; at < rows.starts[size_t(o) + 1] && rows.entries[size_t(at)].channel == c; at++)
          taps[size_t(rows.entries[size_t(at)].ky * 3 + rows.entries[size_t(at)].kx)] =
              double(rows.entries[size_t(at)].weight);
        const auto numbers = transformed(taps);
        const int64_t block = c / block_channels_ * block_channels_, n = std::min(block_channels_, channels_ - block);
        // before it: all panels of earlier blocks, earlier panels of this one, earlier input channels of the panel
        const int64_t place =
            chunk.first_weight + block * (end - begin) + (first - begin) * n + (c - block) * width + (o - first);
        for (int64_t p = 0; p < places; p++)
          weights_[size_t(place + p * channels_ * (end - begin))] = table_.weight_bits(numbers[size_t(p)]);
      }
    }
  }
}

void WinogradPlan::transform_input(const Share& tiles, const Call& all) const {
  WinogradInputCall call{};
  call.plane = all.input.plane;
  call.row = all.input.row;
  call.n_channels = channels_;
  call.place = input_place_;
  call.channel = most_tiles_ * vector_bytes_;
  for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
    const int64_t y = tile / tiles_across_ * 2, x = tile % tiles_across_ * 2;
    call.input = all.input.data + (y - top_) * all.input.row + (x - left_) * vector_bytes_;
    call.rows = y + 1 < height_ ? 4 : 3;
    call.columns = x + 1 < width_ ? 4 : 3;
    call.places = all.scratch + (tile - tiles.begin) * vector_bytes_;
    table_.winograd_input(call);
  }
}

void WinogradPlan::multiply(const Chunk& chunk, const Region& region, const Call& all) const {
  const int64_t n_outputs = chunk.outputs.end - chunk.outputs.begin;
  const int64_t n_tiles = region.tiles.end - region.tiles.begin;
  DenseCall call{};
  call.weights = weights_.data() + chunk.first_weight;
  call.offsets = offsets_.data();
  call.input_step = vector_bytes_;
  call.bias = no_bias_.data();
  for (int64_t p = 0; p < places; p++) {
    char* const sums = all.scratch + inputs_bytes_ + p * sums_place_;
    for (int64_t c = 0; c < channels_; c += block_channels_) {
      call.input = all.scratch + p * input_place_ + c * most_tiles_ * vector_bytes_;
      call.n_steps = std::min(block_channels_, channels_ - c);
      call.first = c == 0;
      for (int64_t o = 0; o < n_outputs;) {
        const int64_t n = n_outputs - o >= panel_ ? panel_ : 1;
        call.partial = sums + o * n_tiles * vector_bytes_;
        (n == 1 ? region.single : region.panel)->run(call);
        call.weights += n * call.n_steps;
        o += n;
      }
    }
  }
}

void WinogradPlan::finish(const Chunk& chunk, const Share& tiles, const Call& all) const {
  WinogradOutputCall call{};
  call.place = sums_place_;
  call.channel = (tiles.end - tiles.begin) * vector_bytes_;
  call.n_channels = chunk.outputs.end - chunk.outputs.begin;
  call.bias = bias_.data() + chunk.outputs.begin;
  call.finish.activation = activation_;
  for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
    const int64_t y = tile / tiles_across_ * 2, x = tile % tiles_across_ * 2;
    const auto at_tile = [&](LaneView view) {
      view.data += y * view.row + x * vector_bytes_;
      return at_channel(view, chunk.outputs.begin);
    };
    call.places = all.scratch + inputs_bytes_ + (tile - tiles.begin) * vector_bytes_;
    call.rows = y + 1 < height_ ? 2 : 1;
    call.columns = x + 1 < width_ ? 2 : 1;
    call.finish.output = at_tile(all.output);
    if (all.residual.data) call.finish.residual = at_tile(all.residual);
    table_.winograd_output(call);
  }
}

void WinogradPlan::run(int64_t task, const Call& all) const {
  const int64_t part = task % n_parts_;
  const Share regions = share_of(int64_t(regions_.size()), task / n_parts_, n_spans_);
  if (all.fill) all.fill({0, channels_});
  for (int64_t r = regions.begin; r < regions.end; r++) {
    const Region& region = regions_[size_t(r)];
    transform_input(region.tiles, all);
    for (int64_t i = first_chunks_[size_t(part)]; i < first_chunks_[size_t(part) + 1]; i++) {
      multiply(chunks_[size_t(i)], region, all);
      finish(chunks_[size_t(i)], region.tiles, all);
    }
  }
}

}  // namespace secateur
