#include "lane_ops.h"

#include <algorithm>
#include <limits>

#include "error.h"
#include "share.h"

namespace secateur {

namespace {

// Work of one stage below this is not worth a second thread: waking it costs about a microsecond.
constexpr int64_t worth_sharing = 32 * 1024;

ConvertCall convert_call(const LaneLayout& layout, int64_t n_images) {
  ConvertCall call{};
  call.n_channels = layout.channels;
  call.height = layout.height;
  call.width = layout.width;
  call.n_images = int32_t(layout.tokens ? 1 : n_images);
  call.grid_y = layout.grid_y;
  call.grid_x = layout.grid_x;
  call.block_height = int32_t(layout.block_height);
  call.block_width = int32_t(layout.block_width);
  call.spread = layout.spread() && !layout.tokens;
  call.tokens = layout.tokens;
  if (layout.tokens) {
    call.channel_step = 1;
    call.x_step = layout.channels;
  } else {
    call.image_step = layout.channels * layout.height * layout.width;
    call.channel_step = layout.height * layout.width;
    call.y_step = layout.width;
    call.x_step = 1;
  }
  return call;
}

}  // namespace

LaneBuilder::LaneBuilder(Session& session) : session_(session) {
  if (session_.layouts_.empty()) plan_margins();
}

int64_t LaneBuilder::shares(int64_t channels, int64_t bytes) const {
  if (session_.threads_ == 1 || bytes < worth_sharing) return 1;
  return std::min<int64_t>(channels, session_.threads_ * 2);
}

LaneLayout LaneBuilder::layout_of(int value) const { return session_.layouts_[size_t(value)]; }

bool LaneBuilder::has_lanes(int value) const { return session_.forms_[size_t(value)].lane >= 0; }

bool LaneBuilder::window_of(const Op& op, Window& window, float& fill) const {
  window = {op.window[0], op.window[1], op.stride[0], op.stride[1], op.dilation[0], op.dilation[1],
            op.padding[0], op.padding[1]};
  fill = 0;
  if (op.kind == OpKind::conv) {
    window.height = op.weight->shape[2];
    window.width = op.weight->shape[3];
    return true;
  }
  if (op.kind == OpKind::max_pool) {
    fill = -std::numeric_limits<float>::infinity();
    return true;
  }
  const bool padded = op.padding != std::array<int64_t, 4>{0, 0, 0, 0};
  return op.kind == OpKind::avg_pool && (op.flag || !padded);
}

// Every value that is a batch of images gets a layout, with the margins that those who read it need.
void LaneBuilder::plan_margins() {
  auto& layouts = session_.layouts_;
  for (const Shape& shape : session_.shapes_) {
    LaneLayout layout;
    if (shape.size() == 4 && shape[0] == session_.batch_ && session_.batch_ <= session_.table_.lanes)
      layout = image_layout(session_.table_, session_.images_, shape[1], shape[2], shape[3]);
    layouts.push_back(layout);
  }
  for (const Op& op : session_.program_.ops) {
    Window window;
    float fill;
    if (!window_of(op, window, fill)) continue;
    LaneLayout &from = layouts[size_t(op.inputs[0])], &to = layouts[size_t(op.output)];
    if (!from.lanes || !to.lanes) continue;
    const WindowInput input = window_input(from, to, window);
    if (!input.direct || !input.layout.has_margin()) continue;
    if (from.has_margin() && from.fill != fill) continue;  // two fills: the later reader makes itself a copy
    from.fill = fill;
    from.top = std::max(from.top, input.layout.top);
    from.left = std::max(from.left, input.layout.left);
    from.bottom = std::max(from.bottom, input.layout.bottom);
    from.right = std::max(from.right, input.layout.right);
  }
}

bool LaneBuilder::build(const Op& op) {
  switch (op.kind) {
    case OpKind::conv: return conv(op);
    case OpKind::linear: return linear(op);
    case OpKind::max_pool:
    case OpKind::avg_pool: return pool(op);
    case OpKind::mean:
    case OpKind::adaptive_avg_pool: return mean(op);
    case OpKind::activate:
    case OpKind::clip:
    case OpKind::scale_shift: return elementwise(op);
    case OpKind::binary: return binary(op);
    case OpKind::layer_norm: return layer_norm(op);
    default: return false;
  }
}

int LaneBuilder::lane(int value, const LaneLayout& layout) {
  auto& form = session_.forms_[size_t(value)];
  if (form.lane >= 0 && form.layout.same_blocks(layout)) return form.lane;
  const int from = session_.plain(value), to = session_.new_buffer(layout.bytes());
  const ConvertCall call = convert_call(layout, session_.batch_);
  const int64_t tasks = shares(layout.channels, layout.bytes());
  const auto pack = session_.table_.pack;
  session_.add_stage(tasks, {from, to}, [=](Context& context, int64_t task, int) {
    const Share share = share_of(call.n_channels, task, tasks);
    ConvertCall part = call;
    part.lane = at_channel(layout.view(context.buffer(to)), share.begin);
    part.plain = reinterpret_cast<float*>(context.buffer(from)) + share.begin * call.channel_step;
    part.n_channels = share.end - share.begin;
    pack(part);
  });
  finish(value, to, layout);
  return to;
}

void LaneBuilder::unpack(int value) {
  const auto& form = session_.forms_[size_t(value)];
  const LaneLayout layout = form.layout;
  const int from = form.lane, to = form.plain;
  const ConvertCall call = convert_call(layout, session_.batch_);
  const int64_t tasks = shares(layout.channels, layout.bytes());
  const auto unpack = session_.table_.unpack;
  session_.add_stage(tasks, {from, to}, [=](Context& context, int64_t task, int) {
    const Share share = share_of(call.n_channels, task, tasks);
    ConvertCall part = call;
    part.lane = at_channel(layout.view(context.buffer(from)), share.begin);
    part.plain = reinterpret_cast<float*>(context.buffer(to)) + share.begin * call.channel_step;
    part.n_channels = share.end - share.begin;
    unpack(part);
  });
}

void LaneBuilder::finish(int value, int buffer, const LaneLayout& layout) {
  auto& form = session_.forms_[size_t(value)];
  form.lane = buffer;
  form.layout = layout;
  if (layout.has_margin()) add_moves(layout, buffer, layout, buffer, every_pixel);
}

void LaneBuilder::add_moves(const LaneLayout& from, int from_buffer, const LaneLayout& to, int to_buffer,
                            const Window& window) {
  const bool same = from_buffer == to_buffer;
  auto moves = std::make_shared<Moves>(moves_between(from, to, same, window));
  if (moves->moves.empty()) return;
  const int64_t tasks = shares(to.channels, int64_t(moves->moves.size()) * to.channels * to.vector_bytes());
  const auto move = session_.table_.move;
  session_.add_stage(tasks, {from_buffer, to_buffer}, [=](Context& context, int64_t task, int) {
    const Share share = share_of(to.channels, task, tasks);
    MoveCall call{};
    call.to = context.buffer(to_buffer) + share.begin * to.plane();
    call.to_plane = to.plane();
    call.from = context.buffer(from_buffer) + share.begin * from.plane();
    call.from_plane = from.plane();
    call.moves = moves->moves.data();
    call.n_moves = int64_t(moves->moves.size());
    call.patterns = moves->patterns.data();
    call.fill = to.fill;
    call.n_channels = share.end - share.begin;
    move(call);
  });
}

// Where a convolution or pool reads from: the value itself if its blocks and margins suit, else a copy.
int LaneBuilder::window_buffer(const Op& op, const Window& window, float fill, LaneLayout& layout) {
  const int value = op.inputs[0];
  const LaneLayout from = layout_of(value);
  const int buffer = lane(value, from);
  WindowInput input = window_input(from, layout_of(op.output), window);
  const LaneLayout& need = input.layout;
  const bool fits = from.top >= need.top && from.left >= need.left && from.bottom >= need.bottom &&
                    from.right >= need.right && (from.fill == fill || !need.has_margin());
  if (input.direct && fits) {
    layout = from;
    return buffer;
  }
  input.layout.fill = fill;
  layout = input.layout;
  if (layout.bytes() > std::numeric_limits<int32_t>::max()) throw PlanError("its input is too large");
  const int copy = session_.new_buffer(layout.bytes());
  add_moves(from, buffer, layout, copy, window);
  return copy;
}

void LaneBuilder::add_conv(const Op& op, const ConvShape& shape, int input, const LaneLayout& input_layout,
                           const LaneLayout& output_layout) {
  KernelChoice choice = KernelChoice::rows;
  const double stored = double(op.weight->numbers.size()), all = double(count(op.weight->shape));
  if (stored > 0.7 * all) choice = KernelChoice::dense;
  if (!op.kernels.empty()) choice = op.kernels.front().second;
  for (const auto& [batch, kernel] : op.kernels)
    if (batch <= session_.total_) choice = kernel;
  const auto plan = std::make_shared<ConvPlan>(session_.table_, shape, *op.weight, op.bias, op.activation,
                                               choice == KernelChoice::dense, input_layout, output_layout,
                                               session_.threads_);
  session_.scratch_bytes_ = std::max(session_.scratch_bytes_, plan->scratch_bytes());
  int residual = -1;
  LaneLayout residual_layout;
  if (op.inputs.size() == 2) {
    LaneLayout wanted = output_layout;
    if (!output_layout.tokens) wanted = layout_of(op.inputs[1]);
    residual = lane(op.inputs[1], wanted);
    residual_layout = session_.forms_[size_t(op.inputs[1])].layout;
  }
  const int output = session_.new_buffer(output_layout.bytes());
  session_.add_stage(plan->n_tasks(), {input, output, residual}, [=](Context& context, int64_t task, int thread) {
    const LaneView from = input_layout.view(context.buffer(input)), to = output_layout.view(context.buffer(output));
    LaneView add{};
    if (residual >= 0) add = residual_layout.view(context.buffer(residual));
    plan->run(task, from, to, residual >= 0 ? &add : nullptr, context.scratch(thread));
  });
  finish(op.output, output, output_layout);
}

bool LaneBuilder::conv(const Op& op) {
  const LaneLayout output = layout_of(op.output);
  if (!output.lanes) return false;
  Window window;
  float fill;
  window_of(op, window, fill);
  LaneLayout input;
  const int buffer = window_buffer(op, window, fill, input);
  const Shape& w = op.weight->shape;
  add_conv(op, {w[1] * op.groups, w[0], op.groups, window}, buffer, input, output);
  return true;
}

bool LaneBuilder::linear(const Op& op) {
  const Shape& x = session_.shapes_[size_t(op.inputs[0])];
  const int64_t rows = count(x) / x.back();
  KernelChoice choice = KernelChoice::rows;
  if (!op.kernels.empty()) choice = op.kernels.front().second;
  for (const auto& [batch, kernel] : op.kernels)
    if (batch <= session_.total_) choice = kernel;
  if (choice == KernelChoice::gather) return false;
  const LaneLayout input = token_layout(session_.table_, rows, x.back());
  const LaneLayout output = token_layout(session_.table_, rows, op.weight->shape[0]);
  const int buffer = lane(op.inputs[0], input);
  add_conv(op, {x.back(), op.weight->shape[0], 1, {1, 1, 1, 1, 1, 1, 0, 0}}, buffer, input, output);
  return true;
}

}  // namespace secateur
