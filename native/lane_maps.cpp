// Pools, means, sums and other operations between convolutions, on vectors of lanes.
#include <algorithm>
#include <limits>

#include "lane_ops.h"

namespace secateur {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

}  // namespace

bool LaneBuilder::pool(const Op& op) {
  Window window;
  float fill;
  const LaneLayout output = layout_of(op.output);
  if (!output.lanes || !window_of(op, window, fill)) return false;
  const Source source = window_source(op, window, fill, false);
  const int to = session_.new_buffer(output.bytes());
  PoolCall call{};
  call.height = output.block_height;
  call.width = output.block_width;
  call.window_y = int32_t(window.height);
  call.window_x = int32_t(window.width);
  call.stride_y = int32_t(window.stride_y);
  call.stride_x = int32_t(window.stride_x);
  call.scale = 1.0f / float(window.height * window.width);
  const LaneTasks tasks = tasks_for(output);
  const auto kernel = op.kind == OpKind::max_pool ? session_.table_.max_pool : session_.table_.mean_pool;
  session_.add_stage(tasks.count(), {source.buffer, source.filler ? source.filler->from_buffer : -1, to},
                     [=](Context& context, int64_t i, int) {
    const auto [group, channels] = tasks[i];
    char* const from = context.buffer(source.buffer) + channels.begin * source.layout.plane();
    if (source.filler) source.filler->run(context.buffer(source.filler->from_buffer), tasks[i], from);
    PoolCall part = call;
    part.input = source.layout.view(from, group);
    part.input.data -= window.top * part.input.row + window.left * output.vector_bytes();
    part.output = at_channel(output.view(context.buffer(to), group), channels.begin);
    part.n_channels = channels.end - channels.begin;
    kernel(part);
  });
  finish(op.output, to, output);
  return true;
}

// The mean or sum over all pixels of an image, if it has lanes already.
bool LaneBuilder::mean(const Op& op) {
  const int value = op.inputs[0];
  if (op.kind != OpKind::adaptive_avg_pool) {
    std::vector<int64_t> dims = op.dims;
    std::sort(dims.begin(), dims.end());
    if (session_.shapes_[size_t(value)].size() != 4 || dims != std::vector<int64_t>{2, 3}) return false;
  } else if (op.window != std::array<int64_t, 2>{1, 1}) {
    return false;
  }
  if (!has_lanes(value) || session_.forms_[size_t(value)].layout.tokens) return false;
  const LaneLayout input = session_.forms_[size_t(value)].layout;
  LaneLayout output = image_layout(session_.table_, input.images, input.channels, 1, 1, 1);
  if (layout_of(op.output).lanes) output = layout_of(op.output);
  // the sums of each group, which then become one
  const int from = session_.forms_[size_t(value)].lane, to = session_.new_buffer(output.bytes() * input.groups);
  const auto valid = std::make_shared<std::vector<float>>();
  for (int64_t group = 0; group < input.groups; group++)
    for (int64_t y = 0; y < input.block_height; y++)
      for (int64_t x = 0; x < input.block_width; x++)
        for (int32_t lane = 0; lane < input.lanes; lane++) {
          const int64_t block = lane % (input.grid_y * input.grid_x);
          const int64_t down = group * input.grid_y + block / input.grid_x;
          const bool copy = input.spread() && block > 0;
          valid->push_back(!copy && down * input.pitch_y + y < input.height &&
                           block % input.grid_x * input.pitch_x + x < input.width);
        }
  const LaneTasks tasks = tasks_for(input);
  const auto kernel = session_.table_.mean;
  const float scale = op.kind == OpKind::sum ? 1.0f : 1.0f / float(input.height * input.width);
  session_.add_stage(tasks.count(), {from, to}, [=](Context& context, int64_t task, int) {
    const auto [group, channels] = tasks[task];
    MeanCall call{};
    call.input = at_channel(input.view(context.buffer(from), group), channels.begin);
    call.output = at_channel(output.view(context.buffer(to) + group * output.bytes()), channels.begin);
    call.n_channels = channels.end - channels.begin;
    call.height = input.block_height;
    call.width = input.block_width;
    call.valid = valid->data() + group * input.block_height * input.block_width * input.lanes;
    call.lanes_per_image = input.grid_y * input.grid_x;
    call.scale = scale;
    kernel(call);
  });
  if (input.groups > 1) add_up(output, to, input.groups);
  finish(op.output, to, output);
  return true;
}

// Adds to a value of one pixel those that lie behind it in its buffer.
void LaneBuilder::add_up(const LaneLayout& layout, int buffer, int64_t n) {
  const auto kernel = session_.table_.binary;
  session_.add_stage(1, {buffer}, [=](Context& context, int64_t, int) {
    BinaryCall call{};
    call.left = call.output = layout.view(context.buffer(buffer));
    call.left_step = call.right_step = layout.vector_bytes();
    call.n_channels = layout.channels;
    call.height = call.width = 1;
    call.operation = Binary::add;
    for (int64_t i = 1; i < n; i++) {
      call.right = layout.view(context.buffer(buffer) + i * layout.bytes());
      kernel(call);
    }
  });
}

// Activation, clip and scale_shift: on lanes if the value is there already.
bool LaneBuilder::elementwise(const Op& op) {
  const int value = op.inputs[0];
  if (!has_lanes(value)) return false;
  const LaneLayout from_layout = session_.forms_[size_t(value)].layout;
  if (op.kind == OpKind::scale_shift && from_layout.tokens) return false;
  LaneLayout layout = from_layout;
  if (!layout.tokens && layout_of(op.output).lanes) layout = layout_of(op.output);
  const int from = session_.forms_[size_t(value)].lane, to = session_.new_buffer(layout.bytes());
  MapCall call{};
  call.height = layout.block_height;
  call.width = layout.block_width;
  call.activation = op.activation;
  call.low = op.kind == OpKind::clip ? float(op.low) : -infinity;
  call.high = op.kind == OpKind::clip ? float(op.high) : infinity;
  const auto scale = std::make_shared<std::vector<float>>(), shift = std::make_shared<std::vector<float>>();
  if (op.kind == OpKind::scale_shift) {
    *scale = op.weight->all();
    *shift = op.bias->all();
  }
  const LaneTasks tasks = tasks_for(layout);
  const auto kernel = session_.table_.map;
  session_.add_stage(tasks.count(), {from, to}, [=](Context& context, int64_t task, int) {
    const auto [group, channels] = tasks[task];
    MapCall part = call;
    part.input = at_channel(from_layout.view(context.buffer(from), group), channels.begin);
    part.output = at_channel(layout.view(context.buffer(to), group), channels.begin);
    part.n_channels = channels.end - channels.begin;
    part.scale = scale->empty() ? nullptr : scale->data() + channels.begin;
    part.shift = shift->empty() ? nullptr : shift->data() + channels.begin;
    kernel(part);
  });
  finish(op.output, to, layout);
  return true;
}

// Two values of one shape, or images and one number for each of their channels.
bool LaneBuilder::binary(const Op& op) {
  const int left = op.inputs[0], right = op.inputs[1];
  if (!has_lanes(left) && !has_lanes(right)) return false;
  const Shape &a = session_.shapes_[size_t(left)], &b = session_.shapes_[size_t(right)];
  const Shape& y = session_.shapes_[size_t(op.output)];
  LaneLayout layout, left_layout, right_layout;
  if (a == y && b == y) {
    layout = session_.forms_[size_t(has_lanes(left) ? left : right)].layout;
    if (!layout.tokens && layout_of(op.output).lanes) layout = layout_of(op.output);
  } else {
    layout = layout_of(op.output);
    if (!layout.lanes) return false;
  }
  const auto operand = [&](int value, const Shape& shape, LaneLayout& found) {
    if (shape == y) {
      found = layout.tokens || !layout_of(value).lanes ? layout : layout_of(value);
    } else {
      found = layout_of(value);
      if (!found.lanes || !found.spread() || found.channels != layout.channels) return -1;
    }
    const int buffer = lane(value, found);
    found = session_.forms_[size_t(value)].layout;
    return buffer;
  };
  const int from_left = operand(left, a, left_layout);
  if (from_left < 0) return false;
  const int from_right = operand(right, b, right_layout);
  if (from_right < 0) return false;
  const int to = session_.new_buffer(layout.bytes());
  const bool left_one = a != y, right_one = b != y;
  const LaneTasks tasks = tasks_for(layout);
  const auto kernel = session_.table_.binary;
  const Binary operation = op.binary;
  const Activation activation = op.activation;
  session_.add_stage(tasks.count(), {from_left, from_right, to}, [=](Context& context, int64_t task, int) {
    const auto [group, channels] = tasks[task];
    BinaryCall call{};
    call.left = at_channel(left_layout.view(context.buffer(from_left), left_one ? 0 : group), channels.begin);
    call.right = at_channel(right_layout.view(context.buffer(from_right), right_one ? 0 : group), channels.begin);
    call.output = at_channel(layout.view(context.buffer(to), group), channels.begin);
    call.left_step = left_one ? 0 : layout.vector_bytes();
    call.right_step = right_one ? 0 : layout.vector_bytes();
    if (left_one) call.left.row = 0;
    if (right_one) call.right.row = 0;
    call.n_channels = channels.end - channels.begin;
    call.height = layout.block_height;
    call.width = layout.block_width;
    call.operation = operation;
    call.activation = activation;
    kernel(call);
  });
  finish(op.output, to, layout);
  return true;
}

bool LaneBuilder::layer_norm(const Op& op) {
  const int value = op.inputs[0];
  if (op.n_dims != 1 || !has_lanes(value) || !session_.forms_[size_t(value)].layout.tokens) return false;
  const LaneLayout layout = session_.forms_[size_t(value)].layout;
  const int from = session_.forms_[size_t(value)].lane, to = session_.new_buffer(layout.bytes());
  const auto scale = std::make_shared<std::vector<float>>(), shift = std::make_shared<std::vector<float>>();
  if (op.weight) *scale = op.weight->all();
  if (op.bias) *shift = op.bias->all();
  const auto kernel = session_.table_.layer_norm;
  const auto epsilon = float(op.epsilon);
  const int64_t tasks = shares(layout.block_width, layout.bytes());
  session_.add_stage(tasks, {from, to}, [=](Context& context, int64_t task, int) {
    const Share share = share_of(layout.block_width, task, tasks);
    NormCall call{};
    call.input = layout.view(context.buffer(from));
    call.output = layout.view(context.buffer(to));
    call.input.data += share.begin * layout.vector_bytes();
    call.output.data += share.begin * layout.vector_bytes();
    call.n_channels = layout.channels;
    call.width = share.end - share.begin;
    call.scale = scale->empty() ? nullptr : scale->data();
    call.shift = shift->empty() ? nullptr : shift->data();
    call.epsilon = epsilon;
    kernel(call);
  });
  finish(op.output, to, layout);
  return true;
}

}  // namespace secateur
