#include "conv.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "memory.h"

namespace secateur {

namespace {

// Cache that a block of input may fill: three quarters of what first-level data caches have (32 to 64 KB).
constexpr double block_bytes = 37 * 1024;

// The same where output channels share what is read: the rest is for their weights and sums. And fewer steps than this
// are not worth keeping the sums after them.
constexpr double dense_block_bytes = 24 * 1024;
constexpr int64_t least_steps = 64;

// Input that one thread reads again and again stays in its second-level cache up to here.
constexpr int64_t near_bytes = 1 << 20;

// Kernels read offsets this far past the last step.
constexpr size_t steps_ahead = 8;

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

// Input pixels from the first to the last that the windows of `pixels` outputs read, in one direction.
int64_t extent(int64_t pixels, int64_t stride, int64_t window, int64_t dilation) {
  return (pixels - 1) * stride + (window - 1) * dilation + 1;
}

}  // namespace

SparseRows sparse_rows(const Weight& weight, int64_t groups) {
  const Shape& shape = weight.shape;  // 2 or 4 dimensions
  const int64_t outputs = shape[0], inputs = shape[1];
  const int64_t kh = shape.size() == 4 ? shape[2] : 1, kw = shape.size() == 4 ? shape[3] : 1;
  const int64_t per_row = inputs * kh * kw, per_group = outputs / groups;
  SparseRows rows;
  check_available(outputs * 32);  // a small file may claim many: this, biases and runs, all of eight bytes at most
  rows.starts.assign(size_t(outputs) + 1, 0);
  const size_t n = weight.numbers.size();
  rows.entries.reserve(n);
  int64_t row = 0;
  for (size_t i = 0; i < n; i++) {
    if (weight.numbers[i] == 0.0f) continue;
    const int64_t flat = weight.dense ? int64_t(i) : int64_t(weight.positions[i]);
    for (; row < flat / per_row; row++) rows.starts[size_t(row) + 1] = int64_t(rows.entries.size());
    const int64_t rest = flat % per_row;
    rows.entries.push_back({int32_t(rest / (kh * kw) + row / per_group * inputs), int32_t(rest / kw % kh),
                            int32_t(rest % kw), weight.numbers[i]});
  }
  for (; row < outputs; row++) rows.starts[size_t(row) + 1] = int64_t(rows.entries.size());
  return rows;
}

ConvPlan::ConvPlan(const KernelTable& table, const ConvShape& shape, const Weight& weight, const Weight* bias,
                   Activation activation, bool dense, const LaneLayout& input, const LaneLayout& output,
                   const Sharing& sharing)
    : dense_(dense && shape.groups == 1),
      far_(sharing.threads > 1 || input.group_bytes() > near_bytes),
      channels_(shape.channels),
      outputs_(shape.outputs),
      activation_(activation),
      window_(shape.window),
      lane_bytes_(input.vector_bytes()),
      weight_bits_(table.weight_bits) {
  if (input.group_bytes() > std::numeric_limits<int32_t>::max())
    throw PlanError("its input needs more than 2 GB for one group of images");
  const SparseRows rows = sparse_rows(weight, shape.groups);  // first: it asks whether there is memory
  bias_.assign(size_t(shape.outputs), 0.0f);
  if (bias) bias_ = bias->all();
  const double per_channel =
      double(rows.entries.size()) / double(shape.outputs) / double(shape.channels / shape.groups);
  choose(table, shape, output, per_channel);
  split_tiles(sharing, shape.outputs);
  fed_ = sharing.copies && !dense_ && tiles_.size() == 1;
  far_ = far_ && !fed_;
  if (dense_)
    pack_dense(rows, shape, input);
  else
    pack_rows(rows, shape, input);
}

// Cycles, by the model above, for one tile and all channels, `block` input channels at a time.
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
        for (const double factor : {1.0, 1.4, 2.0, 4.0, 1e6}) {
          const double most = double(int64_t(block_bytes * factor / input_bytes(th, tw)));
          const double blocks = std::ceil(channels / std::max(1.0, std::min(channels, most)));
          const double block = std::ceil(channels / blocks);
          const double cost = cover_cost(
              [&](int64_t h, int64_t w) { return cost_of_tile(shape, h, w, per_channel, block); });
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
  int most = 0;
  for (int64_t y = 0; y < output.block_height; y += height) {
    for (int64_t x = 0; x < output.block_width; x += width) {
      const auto th = int32_t(std::min<int64_t>(height, output.block_height - y));
      const auto tw = int32_t(std::min<int64_t>(width, output.block_width - x));
      const int64_t stride = window_.stride_x;
      tiles_.push_back({int32_t(y), int32_t(x), rows_kernel(table, th, tw, stride),
                        dense_kernel(table, panel_channels_, th, tw, stride), dense_kernel(table, 1, th, tw, stride)});
      most = std::max(most, th * tw);
    }
  }
  scratch_bytes_ = dense_ && n_blocks_ == 1 ? 0 : outputs_ * most * lane_bytes_;
}

std::string ConvPlan::describe() const {
  const Tile& tile = tiles_.front();
  if (dense_)
    return "dense, " + std::to_string(panel_channels_) + " channels x " + std::to_string(tile.dense->tile_height) + "x" +
           std::to_string(tile.dense->tile_width) + ", " + std::to_string(block_channels_) + " channels a block";
  return "rows, " + std::to_string(tile.rows->tile_height) + "x" + std::to_string(tile.rows->tile_width) + ", " +
         std::to_string(block_channels_) + " channels a block";
}

// Tiles are shared out; with few of them, output channels are.
void ConvPlan::split_tiles(const Sharing& sharing, int64_t outputs) {
  const auto tiles = int64_t(tiles_.size()), threads = int64_t(sharing.threads);
  int64_t spans = 1;
  if (threads > 1) {
    if (sharing.by_channels || (tiles < threads * 4 && tiles % threads != 0))
      n_parts_ = std::min(threads, outputs);
    else
      spans = std::min(tiles, threads * 8);
  }
  for (int64_t i = 0; i <= spans; i++) spans_.push_back(i * tiles / spans);
}

void ConvPlan::pack_rows(const SparseRows& rows, const ConvShape& shape, const LaneLayout& input) {
  const int64_t channels = block_channels_;
  const int64_t plane = input.plane(), row = input.row();
  const int64_t total = rows.starts.back();
  std::vector<int64_t> at(rows.starts.begin(), rows.starts.end() - 1);
  steps_.reserve(size_t(total));
  int64_t begin = 0;
  for (int64_t part = 0; part < n_parts_; part++) {
    // as many non-zeros to each part
    int64_t end = begin;
    const int64_t goal = total * (part + 1) / n_parts_;
    while (end < shape.outputs && (part + 1 == n_parts_ || rows.starts[size_t(end) + 1] <= goal)) end++;
    for (int64_t block = 0; block < n_blocks_; block++) {
      const auto limit = int32_t(std::min<int64_t>(shape.channels, (block + 1) * channels));
      const auto first_run = int64_t(runs_.size());
      blocks_.push_back({first_run, end - begin, int64_t(steps_.size())});
      for (int64_t r = begin; r < end; r++) {
        int64_t stop = at[size_t(r)];
        while (stop < rows.starts[size_t(r) + 1] && rows.entries[size_t(stop)].channel < limit) stop++;
        runs_.push_back({int32_t(r), int32_t(stop - at[size_t(r)])});
      }
      // rows of equal length one after the other: the end of the loop is then foreseen
      std::stable_sort(runs_.begin() + first_run, runs_.end(),
                       [](const RowRun& a, const RowRun& b) { return a.count < b.count; });
      for (size_t i = size_t(first_run); i < runs_.size(); i++) {
        int64_t& from = at[size_t(runs_[i].row)];
        for (int32_t n = 0; n < runs_[i].count; n++, from++) {
          const auto& e = rows.entries[size_t(from)];
          const int64_t channel = fed_ ? e.channel - block * channels : e.channel;  // in the copy
          steps_.push_back({weight_bits_(e.weight), int32_t(channel * plane + e.ky * window_.dilation_y * row +
                                                            e.kx * window_.dilation_x * lane_bytes_)});
        }
      }
    }
    begin = end;
  }
  steps_.resize(steps_.size() + steps_ahead, Step{0, 0});
}

void ConvPlan::pack_dense(const SparseRows& rows, const ConvShape& shape, const LaneLayout& input) {
  const int64_t kh = window_.height, kw = window_.width, per_row = shape.channels * kh * kw;
  check_available((shape.outputs + 1) * per_row * 4);  // of which the file holds the non-zeros alone
  weights_.reserve(size_t(shape.outputs * per_row));
  for (int64_t c = 0; c < shape.channels; c++)
    for (int64_t ky = 0; ky < kh; ky++)
      for (int64_t kx = 0; kx < kw; kx++)
        offsets_.push_back(int32_t(c * input.plane() + ky * window_.dilation_y * input.row() +
                                   kx * window_.dilation_x * lane_bytes_));
  std::vector<int64_t> from(rows.starts.begin(), rows.starts.end() - 1);
  for (int64_t part = 0; part < n_parts_; part++) {
    first_panels_.push_back(int64_t(panels_.size()));
    const int64_t begin = shape.outputs * part / n_parts_, end = shape.outputs * (part + 1) / n_parts_;
    for (int64_t c = begin; c < end; c += panels_.back().n_channels)
      panels_.push_back({int32_t(c), end - c >= panel_channels_ ? panel_channels_ : 1});
    for (int64_t first = 0; first < shape.channels; first += block_channels_) {
      const auto limit = std::min(shape.channels, first + block_channels_);
      for (size_t p = size_t(first_panels_.back()); p < panels_.size(); p++) {
        const auto [channel, n] = panels_[p];
        const size_t at = weights_.size();
        weights_.resize(at + size_t(n * (limit - first) * kh * kw), 0);
        for (int32_t m = 0; m < n; m++) {
          int64_t& next = from[size_t(channel + m)];
          for (; next < rows.starts[size_t(channel + m) + 1] && rows.entries[size_t(next)].channel < limit; next++) {
            const auto& e = rows.entries[size_t(next)];
            weights_[at + size_t((((e.channel - first) * kh + e.ky) * kw + e.kx) * n + m)] = weight_bits_(e.weight);
          }
        }
      }
    }
  }
  first_panels_.push_back(int64_t(panels_.size()));
}

// The first input vector that a tile reads.
const char* ConvPlan::first_input(const Tile& tile, const LaneView& input) const {
  return input.data + (tile.y * window_.stride_y - window_.top) * input.row +
         (tile.x * window_.stride_x - window_.left) * lane_bytes_;
}

// What a tile reads after the present block: the next block, or the first one of the next tile.
Ahead ConvPlan::ahead_of(const Tile& tile, const LaneView& input, const char* next_tile, int64_t block,
                         int64_t n_runs) const {
  Ahead ahead{};
  if (!far_) return ahead;
  constexpr int64_t line = 64;
  const bool last = block + 1 == n_blocks_;
  const int64_t channel = last ? 0 : (block + 1) * block_channels_;
  ahead.data = last ? next_tile : first_input(tile, input) + channel * input.plane;
  ahead.plane = input.plane;
  ahead.row = input.row;
  const int64_t tile_height = dense_ ? tile.dense->tile_height : tile.rows->tile_height;
  const int64_t tile_width = dense_ ? tile.dense->tile_width : tile.rows->tile_width;
  ahead.height = int32_t(extent(tile_height, window_.stride_y, window_.height, window_.dilation_y));
  const int64_t width = extent(tile_width, window_.stride_x, window_.width, window_.dilation_x);
  ahead.lines = int32_t((width * lane_bytes_ + line - 1) / line);
  ahead.n_channels = int32_t(std::min(block_channels_, channels_ - channel));
  const int64_t lines = int64_t(ahead.n_channels) * ahead.height * ahead.lines;
  ahead.per_run = int32_t(lines / std::max<int64_t>(1, n_runs) + 1);
  return ahead;
}

void ConvPlan::run_rows(int64_t part, const Tile& tile, RowsCall& call, const char* next_tile, const Call& all) const {
  for (int64_t b = 0; b < n_blocks_; b++) {
    const Block& block = blocks_[size_t(part * n_blocks_ + b)];
    if (fed_) all.fill({b * block_channels_, std::min(channels_, (b + 1) * block_channels_)});
    call.runs = runs_.data() + block.first_run;
    call.n_runs = block.n_runs;
    call.steps = steps_.data() + block.first_step;
    call.first = b == 0;
    call.last = b + 1 == n_blocks_;
    call.ahead = ahead_of(tile, all.input, next_tile, b, block.n_runs);
    tile.rows->run(call);
  }
}

void ConvPlan::run_dense(int64_t part, const Tile& tile, DenseCall& call, const char* next_tile,
                         const Call& all) const {
  const Finish whole = call.finish;
  const int64_t first = first_panels_[size_t(part)], end = first_panels_[size_t(part) + 1];
  const int64_t steps = window_.height * window_.width;
  const int64_t kept = tile.dense->tile_height * tile.dense->tile_width * lane_bytes_;
  call.weights = weights_.data() + panels_[size_t(first)].channel * channels_ * steps;
  for (int64_t b = 0; b < n_blocks_; b++) {
    call.n_steps = std::min(block_channels_, channels_ - b * block_channels_) * steps;
    call.offsets = offsets_.data() + b * block_channels_ * steps;
    call.first = b == 0;
    call.last = b + 1 == n_blocks_;
    call.ahead = ahead_of(tile, all.input, next_tile, b, end - first);
    for (int64_t p = first; p < end; p++) {
      const Panel& panel = panels_[size_t(p)];
      call.partial = all.scratch + panel.channel * kept;
      call.bias = bias_.data() + panel.channel;
      call.finish.output.data = whole.output.data + panel.channel * whole.output.plane;
      if (whole.residual.data) call.finish.residual.data = whole.residual.data + panel.channel * whole.residual.plane;
      (panel.n_channels == 1 ? tile.dense_rest : tile.dense)->run(call);
      call.weights += panel.n_channels * call.n_steps;
    }
  }
}

void ConvPlan::run(int64_t task, const Call& all) const {
  const int64_t part = task % n_parts_, span = task / n_parts_;
  if (all.fill && !fed_) all.fill({0, channels_});
  for (int64_t i = spans_[size_t(span)]; i < spans_[size_t(span) + 1]; i++) {
    const Tile& tile = tiles_[size_t(i)];
    const auto at = [&](const LaneView& view) {
      return LaneView{view.data + tile.y * view.row + tile.x * lane_bytes_, view.plane, view.row};
    };
    const char* first = first_input(tile, all.input);
    const ptrdiff_t input_row = window_.stride_y * all.input.row, input_step = window_.stride_x * lane_bytes_;
    const bool more = i + 1 < spans_[size_t(span) + 1];
    const char* next_tile = more ? first_input(tiles_[size_t(i) + 1], all.input) : nullptr;
    const Finish finish{at(all.output), all.residual.data ? at(all.residual) : LaneView{}, activation_};
    if (dense_) {
      DenseCall call{};
      call.input = first;
      call.input_row = input_row;
      call.input_step = input_step;
      call.finish = finish;
      run_dense(part, tile, call, next_tile, all);
    } else {
      RowsCall call{};
      call.input = first;
      call.input_row = input_row;
      call.input_step = input_step;
      call.partial = all.scratch;
      call.bias = bias_.data();
      call.finish = finish;
      run_rows(part, tile, call, next_tile, all);
    }
  }
}

}  // namespace secateur
