#include "conv.h"

#include <algorithm>
#include <limits>

#include "error.h"
#include "memory.h"

namespace secateur {

namespace {

// Input that one thread reads again and again stays in its second-level cache up to here.
constexpr int64_t near_bytes = 1 << 20;

// Kernels read offsets this far past the last step.
constexpr size_t steps_ahead = 8;

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
  int64_t row = 0, first = 0, first_channel = 0;  // few divisions below, as there may be many millions of weights
  for (size_t i = 0; i < n; i++) {
    if (weight.numbers[i] == 0.0f) continue;
    const int64_t flat = weight.dense ? int64_t(i) : int64_t(weight.positions[i]);
    for (; flat >= first + per_row; first += per_row) {
      rows.starts[size_t(++row)] = int64_t(rows.entries.size());
      first_channel = row / per_group * inputs;
    }
    const int64_t rest = flat - first, channel = kh * kw == 1 ? rest : rest / (kh * kw);
    const auto place = int32_t(rest - channel * kh * kw), ky = place / int32_t(kw);
    rows.entries.push_back({int32_t(first_channel + channel), ky, place - ky * int32_t(kw), weight.numbers[i]});
  }
  for (; row < outputs; row++) rows.starts[size_t(row) + 1] = int64_t(rows.entries.size());
  return rows;
}

ConvShape shape_of(const Op& op) {
  const Shape& w = op.weight->shape;
  return {w[1] * op.groups,
          w[0],
          op.groups,
          {w[2], w[3], op.stride[0], op.stride[1], op.dilation[0], op.dilation[1], op.padding[0], op.padding[1]}};
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
      weight_bits_(table.weight_bits),
      add_(table.binary) {
  if (input.group_bytes() > std::numeric_limits<int32_t>::max())
    throw PlanError("its input needs more than 2 GB for one group of images");
  check_available(shape.outputs * 32);  // a small file may claim many: biases, runs and panels, and all of them below
  const SparseRows rows = dense_ ? SparseRows() : sparse_rows(weight, shape.groups);
  const size_t stored = dense_ ? weight.numbers.size() : rows.entries.size();
  bias_.assign(size_t(shape.outputs), 0.0f);
  if (bias) bias_ = bias->all();
  const double per_channel = double(stored) / double(shape.outputs) / double(shape.channels / shape.groups);
  choose(table, shape, output, per_channel);
  share(sharing, shape, output.number_bytes == 2);
  fed_ = sharing.copies && !dense_ && (tiles_.size() == 1 || shape.groups > 1);
  far_ = far_ && !fed_;
  if (dense_)
    pack_dense(weight, shape, input);
  else
    pack_rows(rows, shape, input, sharing.parts > 1);
}

int64_t ConvPlan::weight_bytes() const {
  return int64_t(steps_.size() * sizeof(Step) + weights_.size() * sizeof(WeightBits));
}

std::string ConvPlan::describe() const {
  const Tile& tile = tiles_.front();
  return (dense_ ? "dense, " + std::to_string(panel_channels_) + " channels x " : "rows, ") +
         std::to_string(tile.height) + "x" + std::to_string(tile.width) + ", " + std::to_string(block_channels_) +
         " channels a block";
}

int64_t ConvPlan::channels_at_a_time() const {
  if (!fed_) return channels_;
  int64_t most = 0;
  for (const Block& block : blocks_) most = std::max(most, block.channels.end - block.channels.begin);
  return most;
}

// Input channels that a block of them has, for some output channels: with groups, those of their groups.
Share ConvPlan::channels_read(const ConvShape& shape, const Share& outputs, int64_t block) const {
  if (shape.groups == 1) return {block * block_channels_, std::min(shape.channels, (block + 1) * block_channels_)};
  const int64_t inputs = shape.channels / shape.groups, per_group = shape.outputs / shape.groups;
  return {outputs.begin / per_group * inputs, (outputs.end + per_group - 1) / per_group * inputs};
}

void ConvPlan::pack_rows(const SparseRows& rows, const ConvShape& shape, const LaneLayout& input, bool even) {
  const int64_t plane = input.plane(), row = input.row();
  const int64_t total = rows.starts.back();
  std::vector<int64_t> at(rows.starts.begin(), rows.starts.end() - 1);
  steps_.reserve(size_t(total));
  int64_t begin = 0;
  for (int64_t part = 0; part < n_parts_; part++) {
    int64_t end = share_of(shape.outputs, part, n_parts_).end;
    if (!even) {  // as many non-zeros to each part
      const int64_t goal = total * (part + 1) / n_parts_;
      end = begin;
      while (end < shape.outputs && (part + 1 == n_parts_ || rows.starts[size_t(end) + 1] <= goal)) end++;
    }
    for (int64_t block = 0; block < n_blocks_; block++) {
      const Share channels = channels_read(shape, {begin, end}, block);
      const auto first_run = int64_t(runs_.size());
      blocks_.push_back({first_run, end - begin, int64_t(steps_.size()), channels});
      for (int64_t r = begin; r < end; r++) {
        int64_t stop = at[size_t(r)];
        while (stop < rows.starts[size_t(r) + 1] && rows.entries[size_t(stop)].channel < channels.end) stop++;
        runs_.push_back({int32_t(r), int32_t(stop - at[size_t(r)])});
      }
      // rows of equal length one after the other: the end of the loop is then foreseen
      std::stable_sort(runs_.begin() + first_run, runs_.end(),
                       [](const RowRun& a, const RowRun& b) { return a.count < b.count; });
      for (size_t i = size_t(first_run); i < runs_.size(); i++) {
        int64_t& from = at[size_t(runs_[i].row)];
        for (int32_t n = 0; n < runs_[i].count; n++, from++) {
          const auto& e = rows.entries[size_t(from)];
          const int64_t channel = fed_ ? e.channel - channels.begin : e.channel;  // in the copy
          steps_.push_back({weight_bits_(e.weight), int32_t(channel * plane + e.ky * window_.dilation_y * row +
                                                            e.kx * window_.dilation_x * lane_bytes_)});
        }
      }
    }
    begin = end;
  }
  steps_.resize(steps_.size() + steps_ahead, Step{0, 0});
}

void ConvPlan::pack_dense(const Weight& weight, const ConvShape& shape, const LaneLayout& input) {
  const int64_t kh = window_.height, kw = window_.width, per_row = shape.channels * kh * kw;
  check_available((shape.outputs + 1) * per_row * 4);  // of which the file holds the non-zeros alone
  weights_.reserve(size_t(shape.outputs * per_row));
  for (int64_t c = 0; c < shape.channels; c++)
    for (int64_t ky = 0; ky < kh; ky++)
      for (int64_t kx = 0; kx < kw; kx++)
        offsets_.push_back(
            int32_t(c * input.plane() + ky * window_.dilation_y * input.row() + kx * window_.dilation_x * lane_bytes_));
  const std::vector<float> filled = weight.dense ? std::vector<float>() : weight.all();
  const float* const numbers = weight.dense ? weight.numbers.data() : filled.data();
  for (int64_t part = 0; part < n_parts_; part++) {
    first_panels_.push_back(int64_t(panels_.size()));
    const auto [begin, end] = share_of(shape.outputs, part, n_parts_);
    for (int64_t c = begin; c < end; c += panels_.back().n_channels)
      panels_.push_back({int32_t(c), end - c >= panel_channels_ ? panel_channels_ : 1});
    for (int64_t first = 0; first < shape.channels; first += block_channels_) {
      const auto limit = std::min(shape.channels, first + block_channels_);
      for (size_t p = size_t(first_panels_.back()); p < panels_.size(); p++) {
        const auto [channel, n] = panels_[p];
        const float* from = numbers + channel * per_row + first * kh * kw;
        for (int64_t k = 0; k < (limit - first) * kh * kw; k++)
          for (int32_t m = 0; m < n; m++) weights_.push_back(weight_bits_(from[m * per_row + k]));
      }
    }
  }
  first_panels_.push_back(int64_t(panels_.size()));
}

LaneView ConvPlan::tile_of(const LaneView& view, const Tile& tile) const {
  return {view.data + tile.y * view.row + tile.x * lane_bytes_, view.plane, view.row};
}

// The first input vector that a tile reads.
const char* ConvPlan::first_input(const Tile& tile, const LaneView& input) const {
  return input.data + (tile.y * window_.stride_y - window_.top) * input.row +
         (tile.x * window_.stride_x - window_.left) * lane_bytes_;
}

// What is read next: another block of this tile, or block 0 of the next tile, if there is one.
Ahead ConvPlan::ahead_of(const Tile& tile, const LaneView& input, const char* next_tile, int64_t next_block,
                         int64_t n_runs) const {
  Ahead ahead{};
  if (!far_) return ahead;
  constexpr int64_t line = 64;
  const int64_t channel = next_block * block_channels_;
  ahead.data = next_block ? first_input(tile, input) + channel * input.plane : next_tile;
  ahead.plane = input.plane;
  ahead.row = input.row;
  ahead.height = int32_t(extent(tile.height, window_.stride_y, window_.height, window_.dilation_y));
  const int64_t width = extent(tile.width, window_.stride_x, window_.width, window_.dilation_x);
  ahead.lines = int32_t((width * lane_bytes_ + line - 1) / line);
  ahead.n_channels = int32_t(std::min(block_channels_, channels_ - channel));
  const int64_t lines = int64_t(ahead.n_channels) * ahead.height * ahead.lines;
  ahead.per_run = int32_t(lines / std::max<int64_t>(1, n_runs) + 1);
  return ahead;
}

void ConvPlan::run_rows(const Task& task, const Tile& tile, RowsCall& call, const char* next_tile,
                        const Call& all) const {
  const Share blocks = share_of(n_blocks_, task.slice, n_slices_);
  for (int64_t b = blocks.begin; b < blocks.end; b++) {
    const Block& block = blocks_[size_t(task.part * n_blocks_ + b)];
    if (fed_ && n_blocks_ > 1) all.fill(block.channels);
    call.runs = runs_.data() + block.first_run;
    call.n_runs = block.n_runs;
    call.steps = steps_.data() + block.first_step;
    call.first = b == blocks.begin;
    call.last = b + 1 == n_blocks_ && n_slices_ == 1;
    call.ahead = ahead_of(tile, all.input, next_tile, b + 1 < blocks.end ? b + 1 : 0, block.n_runs);
    tile.rows->run(call);
  }
}

void ConvPlan::run_dense(const Task& task, const Tile& tile, DenseCall& call, const char* next_tile,
                         const Call& all) const {
  const DenseCall whole = call;
  const int64_t first = first_panels_[size_t(task.part)], end = first_panels_[size_t(task.part) + 1];
  const int64_t steps = window_.height * window_.width;
  const int64_t kept = tile.height * tile.width * lane_bytes_;
  const Share blocks = share_of(n_blocks_, task.slice, n_slices_);
  // before them, the weights of all earlier parts, and of earlier blocks, which only a slice of all outputs skips
  const int64_t earlier = blocks.begin * block_channels_ * outputs_;
  call.weights = weights_.data() + (panels_[size_t(first)].channel * channels_ + earlier) * steps;
  for (int64_t b = blocks.begin; b < blocks.end; b++) {
    call.n_steps = std::min(block_channels_, channels_ - b * block_channels_) * steps;
    call.offsets = offsets_.data() + b * block_channels_ * steps;
    call.first = b == blocks.begin;
    call.last = b + 1 == n_blocks_ && n_slices_ == 1;
    call.ahead = ahead_of(tile, all.input, next_tile, b + 1 < blocks.end ? b + 1 : 0, end - first);
    for (int64_t p = first; p < end; p++) {
      const Panel& panel = panels_[size_t(p)];
      call.partial = whole.partial + panel.channel * kept;
      call.bias = whole.bias + panel.channel;
      call.finish.output = at_channel(whole.finish.output, panel.channel);
      if (whole.finish.residual.data) call.finish.residual = at_channel(whole.finish.residual, panel.channel);
      (panel.n_channels == 1 ? tile.dense_rest : tile.dense)->run(call);
      call.weights += panel.n_channels * call.n_steps;
    }
  }
}

void ConvPlan::run(int64_t number, const Call& all) const {
  const Task task{number % n_slices_, number / n_slices_ % n_parts_, number / n_slices_ / n_parts_};
  if (all.fill && !fed_) all.fill({0, channels_});
  if (fed_ && n_blocks_ == 1) all.fill(blocks_[size_t(task.part)].channels);
  for (int64_t i = spans_[size_t(task.span)]; i < spans_[size_t(task.span) + 1]; i++) {
    const Tile& tile = tiles_[size_t(i)];
    const bool more = i + 1 < spans_[size_t(task.span) + 1];
    const char* next_tile = more ? first_input(tiles_[size_t(i) + 1], all.input) : nullptr;
    const auto begin = [&](auto& call) {
      call.input = first_input(tile, all.input);
      call.input_row = window_.stride_y * all.input.row;
      call.input_step = window_.stride_x * lane_bytes_;
      call.partial = all.scratch + task.slice * slice_bytes_ + tile.sums;
      call.bias = (task.slice == 0 ? bias_ : no_bias_).data();
      call.finish = {tile_of(all.output, tile), all.residual.data ? tile_of(all.residual, tile) : LaneView{},
                     activation_};
    };
    if (dense_) {
      DenseCall call{};
      begin(call);
      run_dense(task, tile, call, next_tile, all);
    } else {
      RowsCall call{};
      begin(call);
      run_rows(task, tile, call, next_tile, all);
    }
  }
}

// The slices' sums are added to those of the first one, and last the residual.
void ConvPlan::add_slices(const Share& outputs, const Call& all) const {
  BinaryCall call{};
  call.left_step = call.right_step = lane_bytes_;
  call.n_channels = outputs.end - outputs.begin;
  call.operation = Binary::add;
  for (const Tile& tile : tiles_) {
    call.height = tile.height;
    call.width = tile.width;
    const auto sums = [&](int64_t slice) {
      char* const data = all.scratch + slice * slice_bytes_ + tile.sums;
      return at_channel({data, tile.height * tile.width * lane_bytes_, tile.width * lane_bytes_}, outputs.begin);
    };
    const auto add = [&](const LaneView& more, bool last) {
      call.right = more;
      call.output = last ? at_channel(tile_of(all.output, tile), outputs.begin) : call.left;
      call.activation = last ? activation_ : Activation::none;
      add_(call);
    };
    call.left = sums(0);
    for (int64_t slice = 1; slice < n_slices_; slice++) add(sums(slice), !all.residual.data && slice + 1 == n_slices_);
    if (all.residual.data) add(at_channel(tile_of(all.residual, tile), outputs.begin), true);
  }
}

}  // namespace secateur
