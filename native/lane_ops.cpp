#include "lane_ops.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace secateur {

namespace {

// Work of one stage below this is not worth a second thread: waking it costs about a microsecond.
constexpr int64_t worth_sharing = 32 * 1024;

// Blocks of so many pixels are one tile.
constexpr int64_t small_block = 16;

// How much larger blocks may be that need not be copied.
constexpr double most_larger = 1.2;

// With more threads, copies for all of them would take longer than they save.
constexpr int most_copies = 4;

// A task that turns plain numbers into lanes, or back.
ConvertCall convert_call(const LaneLayout& layout, int64_t n_images, const LaneTask& task, char* lanes, char* plain) {
  const int64_t first_row = layout.first_row(task.group);
  ConvertCall call{};
  call.n_channels = task.channels.end - task.channels.begin;
  call.height = layout.height - first_row;
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
  call.lane = at_channel(layout.view(lanes, task.group), task.channels.begin);
  call.plain = reinterpret_cast<float*>(plain) + task.channels.begin * call.channel_step + first_row * call.y_step;
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

LaneTasks LaneBuilder::tasks_for(const LaneLayout& layout) const {
  return {layout.groups, layout.channels, layout.groups > 1 ? 1 : shares(layout.channels, layout.bytes())};
}

LaneLayout LaneBuilder::layout_of(int value) const { return session_.layouts_[size_t(value)]; }

bool LaneBuilder::has_lanes(int value) const { return session_.forms_[size_t(value)].lane >= 0; }

bool LaneBuilder::window_of(const Op& op, Window& window, float& fill) const {
  window = {op.window[0],   op.window[1],   op.stride[0],  op.stride[1],
            op.dilation[0], op.dilation[1], op.padding[0], op.padding[1]};
  fill = 0;
  if (op.kind == OpKind::conv) {
    window = shape_of(op).window;
    return true;
  }
  if (op.kind == OpKind::max_pool) {
    fill = -std::numeric_limits<float>::infinity();
    return true;
  }
  const bool padded = op.padding != std::array<int64_t, 4>{0, 0, 0, 0};
  return op.kind == OpKind::avg_pool && (op.flag || !padded);
}

// The blocks that a reader wants, if they hold the value and are not much larger: what nobody else reads may lie so.
static void suit(LaneLayout& value, const WindowInput& input) {
  LaneLayout wanted = input.layout;
  wanted.top = wanted.left = wanted.bottom = wanted.right = 0;
  wanted.past = false;
  const auto blocks_hold = [](int64_t size, int64_t pitch, int64_t n) { return pitch == 0 || pitch * n >= size; };
  const int64_t now = value.block_height * value.block_width, then = wanted.block_height * wanted.block_width;
  if (blocks_hold(value.height, wanted.pitch_y, int64_t(wanted.groups) * wanted.grid_y) &&
      blocks_hold(value.width, wanted.pitch_x, wanted.grid_x) && double(then) <= most_larger * double(now))
    value = wanted;
}

// Every value that is a batch of images gets a layout, with the margins that those who read it need.
void LaneBuilder::plan_margins() {
  auto& layouts = session_.layouts_;
  for (const Shape& shape : session_.shapes_) {
    LaneLayout layout;
    if (shape.size() == 4 && shape[0] == session_.batch_ && session_.batch_ <= session_.table_.lanes)
      layout = image_layout(session_.table_, session_.images_, shape[1], shape[2], shape[3],
                            groups_for(session_.table_, session_.images_, shape[2], shape[3], session_.threads_));
    layouts.push_back(layout);
  }
  const Program& program = session_.program_;
  for (size_t i = 0; i < program.ops.size(); i++) {
    const Op& op = program.ops[i];
    Window window;
    float fill;
    if (!window_of(op, window, fill)) continue;
    LaneLayout &from = layouts[size_t(op.inputs[0])], &to = layouts[size_t(op.output)];
    const bool fed = i > 0 && feeds_next(program, session_.last_readers_, i - 1);
    if (!from.lanes || !to.lanes || (by_channels(to) && !fed)) continue;
    if (fed && from.groups == to.groups && !by_channels(to)) suit(from, window_input(from, to, window));
    const WindowInput input = window_input(from, to, window);
    if (!input.direct || !input.layout.has_margin()) continue;
    if (from.has_margin() && from.fill != fill) continue;  // two fills: the later reader makes itself a copy
    from.fill = fill;
    from.top = std::max(from.top, input.layout.top);
    from.left = std::max(from.left, input.layout.left);
    from.bottom = std::max(from.bottom, input.layout.bottom);
    from.right = std::max(from.right, input.layout.right);
    from.past = from.past || input.layout.past;
  }
}

// Whether threads share an operation by its channels, and each takes a copy of all that it reads: small batches of
// planes so small that there is one tile.
bool LaneBuilder::by_channels(const LaneLayout& output) const {
  return session_.threads_ > 1 && session_.threads_ <= most_copies && output.groups == 1 && !output.tokens &&
         output.images < output.lanes && output.block_height * output.block_width <= small_block;
}

bool LaneBuilder::build(const Op& op) {
  if (op.exact && session_.table_.number_bytes < 4) return false;
  switch (op.kind) {
    case OpKind::conv: return conv(op);
    case OpKind::linear: return linear(op);
    case OpKind::max_pool:
    case OpKind::avg_pool: return pool(op);
    case OpKind::mean:
    case OpKind::sum:
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
  const LaneTasks tasks = tasks_for(layout);
  const auto pack = session_.table_.pack;
  const int64_t batch = session_.batch_;
  session_.add_stage(tasks.count(), {from, to}, [=](Context& context, int64_t task, int) {
    pack(convert_call(layout, batch, tasks[task], context.buffer(to), context.buffer(from)));
  });
  finish(value, to, layout);
  return to;
}

void LaneBuilder::unpack(int value) {
  const auto& form = session_.forms_[size_t(value)];
  const LaneLayout layout = form.layout;
  const int from = form.lane, to = form.plain;
  const LaneTasks tasks = tasks_for(layout);
  const auto unpack = session_.table_.unpack;
  const int64_t batch = session_.batch_;
  session_.add_stage(tasks.count(), {from, to}, [=](Context& context, int64_t task, int) {
    unpack(convert_call(layout, batch, tasks[task], context.buffer(from), context.buffer(to)));
  });
}

void LaneBuilder::finish(int value, int buffer, const LaneLayout& layout) {
  auto& form = session_.forms_[size_t(value)];
  form.lane = buffer;
  form.layout = layout;
  form.borders = nullptr;
  if (!layout.has_margin()) return;
  if (layout.groups > 1) form.borders = give_borders(buffer, layout);
  const Region now = form.borders ? Region::blocks : Region::all;
  add_moves(std::make_shared<const Mover>(session_.table_, layout, buffer, layout, buffer, every_pixel, now));
}

// Each task of the last stage, which computed a group of the value, gives what others will need of it.
std::shared_ptr<const Borders> LaneBuilder::give_borders(int buffer, const LaneLayout& layout) {
  const int to = session_.new_buffer(0);
  const auto borders = std::make_shared<const Borders>(session_.table_, layout, to);
  session_.buffers_[size_t(to)].bytes = borders->bytes();
  session_.use({to});
  Session::Stage& last = session_.stages_.back();
  last.work = [=, compute = std::move(last.work)](Context& context, int64_t group, int thread) {
    compute(context, group, thread);
    borders->give(context.buffer(buffer), group, context.buffer(to));
  };
  return borders;
}

void LaneBuilder::add_moves(const std::shared_ptr<const Mover>& mover) {
  if (mover->empty()) return;
  const LaneTasks tasks{mover->to.groups, mover->to.channels,
                        mover->to.groups > 1 ? 1 : shares(mover->to.channels, mover->bytes())};
  session_.add_stage(tasks.count(), {mover->from_buffer, mover->to_buffer}, [=](Context& context, int64_t i, int) {
    const LaneTask task = tasks[i];
    char* const target = context.buffer(mover->to_buffer) + task.channels.begin * mover->to.plane();
    mover->run(context.buffer(mover->from_buffer), task, target);
  });
}

// The value itself if its blocks and margins suit, else a copy. Where tasks have groups or copies of their own, they
// fill them themselves: each thread then has what it reads in its own cache, and threads need not meet in between.
LaneBuilder::Source LaneBuilder::window_source(const Op& op, const Window& window, float fill, bool copies) {
  const int value = op.inputs[0];
  const LaneLayout from = layout_of(value), output = layout_of(op.output);
  const int buffer = lane(value, from);
  WindowInput input = window_input(from, output, window);
  const LaneLayout& need = input.layout;
  const bool fits = from.has_margins_for(need, fill);
  auto& form = session_.forms_[size_t(value)];
  Source source{buffer, from, nullptr};
  if (input.direct && fits) {
    if (need.has_margin()) source.filler = std::exchange(form.borders, nullptr);
    return source;
  }
  input.layout.fill = fill;
  source.layout = input.layout;
  source.buffer = copies ? -1 : session_.new_buffer(source.layout.bytes());
  const auto mover =
      std::make_shared<const Mover>(session_.table_, from, buffer, source.layout, source.buffer, window, Region::all);
  if (output.groups == 1 && !by_channels(output))
    add_moves(mover);
  else
    source.filler = mover;
  return source;
}

}  // namespace secateur
