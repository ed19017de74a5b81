// Convolutions and linear layers on vectors of lanes: who shares them, where they read from, and what runs with what.
#include <algorithm>
#include <utility>

#include "lane_ops.h"
#include "winograd.h"

namespace secateur {

namespace {

// Output of a convolution that its reader finds in the second-level cache.
constexpr int64_t fed_bytes = 256 * 1024;

// A strip larger than this does not stay in the second-level cache with what is made of it. Below, threads that meet
// after each part lose more than is won.
constexpr int64_t worth_meeting = 1 << 20;

// Output channels that the dense kernel takes at a time.
constexpr int64_t panel = 8;

}  // namespace

// In how many parts a convolution is computed because the next one reads it so; 0 if it does not.
int64_t LaneBuilder::parts_to_feed(const Op& op, bool dense) const {
  const Program& program = session_.program_;
  const auto place = size_t(session_.op_);
  const LaneLayout from = layout_of(op.output);
  if (!from.lanes || !feeds_next(program, session_.last_readers_, place)) return 0;
  const LaneLayout to = layout_of(program.ops[place + 1].output);
  const bool strips = from.groups > 1, channels = by_channels(to);
  if (from.groups != to.groups || (strips && from.group_bytes() < worth_meeting)) return 0;
  if (session_.threads_ > 1 && !strips) {
    const WindowInput input = window_input(layout_of(op.inputs[0]), from, shape_of(op).window);
    if (!channels || !input.direct || input.layout.has_margin()) return 0;  // each thread would have a copy of it
  }
  const int64_t threads = channels ? session_.threads_ : 1;
  const int64_t near = (from.group_bytes() + fed_bytes - 1) / fed_bytes;
  const int64_t wanted = std::min(from.channels, (near + threads - 1) / threads * threads);
  if (!dense || wanted == 1) return wanted;
  int64_t parts = 0;  // of whole panels: the fewest that are enough, or as many as there can be
  for (int64_t n = from.channels / panel; n > 0 && (n >= wanted || parts == 0); n--)
    if (from.channels % (panel * n) == 0 && n % threads == 0) parts = n;
  return parts > 0 ? parts : wanted;
}

// A convolution of one channel each, and before it the one that feeds it, part by part of the channels: what passes
// between them stays in the second-level cache. Threads that share channels take whole parts. Threads that have strips
// of the image meet after each part, since a strip's margins come from the next one's; meanwhile they compute another
// part.
void LaneBuilder::add_fed(const Op& op, const ConvShape& shape, const LaneLayout& output) {
  const Session::Feeder feeder = *std::exchange(session_.feeder_, std::nullopt);
  const int64_t parts = feeder.parts;
  LaneLayout between = layout_of(op.inputs[0]);  // a part of it
  between.channels = (between.channels + parts - 1) / parts;
  const WindowInput input = window_input(between, output, shape.window);
  const bool direct = input.direct && between.has_margins_for(input.layout, 0), strips = output.groups > 1;
  const LaneLayout& read = direct ? between : input.layout;
  const auto plan = std::make_shared<const ConvPlan>(session_.table_, shape, *op.weight, op.bias, op.activation, false,
                                                     read, output, Sharing{1, false, true, parts});
  session_.scratch_bytes_ = std::max(session_.scratch_bytes_, plan->scratch_bytes());
  session_.weight_bytes_ += plan->weight_bytes();
  const int64_t n_buffers = strips ? std::min<int64_t>(parts, 2) : session_.threads_;
  const int buffers = session_.new_buffer(between.bytes() * n_buffers), target = session_.new_buffer(output.bytes());
  const int copies = direct ? -1 : session_.new_buffer(read.bytes() * n_buffers);
  const auto mover = std::make_shared<const Mover>(session_.table_, between, buffers, read, direct ? buffers : copies,
                                                   direct ? every_pixel : shape.window, Region::all);
  const auto feed = [=](Context& context, int64_t part, int64_t group, int thread, int64_t buffer) {
    const Share channels = share_of(shape.channels, part, parts);
    Convolution::Call call{};
    call.input = feeder.layout.view(context.buffer(feeder.buffer), group);
    call.output = at_channel(between.view(context.buffer(buffers) + buffer * between.bytes(), group), -channels.begin);
    call.scratch = context.scratch(thread);
    feeder.plan->run(part, call);
  };
  const auto use = [=](Context& context, int64_t part, int64_t group, int thread, int64_t buffer) {
    char* const from = context.buffer(buffers) + buffer * between.bytes();
    char* const to = direct ? from : context.buffer(copies) + buffer * read.bytes();
    Convolution::Call call{};
    call.fill = [&](const Share& channels) { mover->run(from, {group, {0, channels.end - channels.begin}}, to); };
    call.input = read.view(to, group);
    call.output = output.view(context.buffer(target), group);
    call.scratch = context.scratch(thread);
    plan->run(part, call);
  };
  const std::vector<int> used{feeder.filler ? feeder.filler->from_buffer : -1, feeder.buffer, buffers, copies, target};
  const size_t first_stage = session_.stages_.size();
  if (!strips)
    session_.add_stage(parts, used, [=](Context& context, int64_t part, int thread) {
      feed(context, part, 0, thread, thread);
      use(context, part, 0, thread, thread);
    });
  for (int64_t stage = 0; strips && stage <= parts; stage++)
    session_.add_stage(output.groups, used, [=](Context& context, int64_t group, int thread) {
      if (stage == 0 && feeder.filler)
        feeder.filler->run(context.buffer(feeder.filler->from_buffer), {group, {0, feeder.layout.channels}},
                           context.buffer(feeder.buffer));
      if (stage < parts) feed(context, stage, group, thread, stage % 2);
      if (stage > 0) use(context, stage - 1, group, thread, (stage - 1) % 2);
    });
  for (size_t i = first_stage; i < session_.stages_.size(); i++) session_.stages_[i].op = feeder.op;
  finish(op.output, target, output);
}

// Where the output goes, with the residual. A sum that nobody else needs its operand of is written over it: half as
// many lines to fetch and to keep.
LaneBuilder::Target LaneBuilder::target_of(const Op& op, const Source& input, const LaneLayout& layout) {
  Target target{-1, layout, -1, {}, -1};
  if (op.inputs.size() == 2) {
    target.residual = lane(op.inputs[1], layout.tokens ? layout : layout_of(op.inputs[1]));
    target.residual_layout = session_.forms_[size_t(op.inputs[1])].layout;
    const bool is_read =
        target.residual == input.buffer || (input.filler && input.filler->from_buffer == target.residual);
    if (!is_read && target.residual_layout.same_places(layout) && !session_.is_read_later(op.inputs[1]))
      target.buffer = target.residual;
  }
  if (target.buffer < 0) target.buffer = session_.new_buffer(layout.bytes());
  return target;
}

void LaneBuilder::add_conv(const Op& op, const ConvShape& shape, Source input, const LaneLayout& layout) {
  const double stored = double(op.weight->numbers.size()), all = double(count(op.weight->shape));
  const KernelChoice usual = stored > 0.7 * all ? KernelChoice::dense : KernelChoice::rows;
  const KernelChoice choice = op.kernel_for(session_.total_, usual);
  const bool winograd = choice == KernelChoice::winograd && WinogradPlan::takes(session_.table_, shape);
  const bool dense = choice == KernelChoice::dense || choice == KernelChoice::winograd;
  const int64_t parts = parts_to_feed(op, dense);
  const bool grouped = layout.groups > 1, copies = input.buffer < 0;
  const Sharing sharing{grouped ? 1 : session_.threads_, by_channels(layout), copies, std::max<int64_t>(1, parts)};
  std::shared_ptr<const Convolution> plan;
  if (winograd)
    plan = std::make_shared<WinogradPlan>(session_.table_, shape, *op.weight, op.bias, op.activation, layout, sharing);
  else
    plan = std::make_shared<ConvPlan>(session_.table_, shape, *op.weight, op.bias, op.activation, dense, input.layout,
                                      layout, sharing);
  session_.weight_bytes_ += plan->weight_bytes();
  if (!plan->sliced()) session_.scratch_bytes_ = std::max(session_.scratch_bytes_, plan->scratch_bytes());
  if (parts > 0) {
    session_.feeder_ = {session_.op_, parts, plan, input.buffer, input.layout, input.filler};
    return;
  }
  const int64_t copy_bytes = plan->channels_at_a_time() * input.layout.plane();
  const int64_t n_copies = copies ? plan->n_tasks() : 0;
  if (copies) input.buffer = session_.new_buffer(copy_bytes * n_copies);
  Target target = target_of(op, input, layout);
  if (plan->sliced()) target.sums = session_.new_buffer(plan->scratch_bytes());
  const int source = input.filler ? input.filler->from_buffer : -1;
  session_.add_stage(grouped ? layout.groups : plan->n_tasks(),
                     {input.buffer, source, target.buffer, target.residual, target.sums},
                     [=](Context& context, int64_t task, int thread) {
    const int64_t group = grouped ? task : 0;
    char* const from = context.buffer(input.buffer) + (n_copies > 1 ? task * copy_bytes : 0);
    const auto fill = [&](const Share& channels) {
      input.filler->run(context.buffer(input.filler->from_buffer), {group, channels}, from);
    };
    if (input.filler && !copies) fill({0, shape.channels});
    Convolution::Call call = target.call(context, group, thread);
    call.input = input.layout.view(from, group);
    if (copies) call.fill = fill;
    plan->run(task - group, call);
  });
  if (plan->sliced()) {
    const LaneTasks tasks = tasks_for(layout);
    session_.add_stage(tasks.count(), {target.sums, target.buffer, target.residual},
                       [=](Context& context, int64_t task, int thread) {
      plan->add_slices(tasks[task].channels, target.call(context, 0, thread));
    });
  }
  finish(op.output, target.buffer, layout);
}

Convolution::Call LaneBuilder::Target::call(Context& context, int64_t group, int thread) const {
  Convolution::Call call{};
  call.output = layout.view(context.buffer(buffer), group);
  if (residual >= 0) call.residual = residual_layout.view(context.buffer(residual), group);
  call.scratch = sums < 0 ? context.scratch(thread) : context.buffer(sums);
  return call;
}

bool LaneBuilder::conv(const Op& op) {
  const LaneLayout output = layout_of(op.output);
  if (!output.lanes) return false;
  const ConvShape shape = shape_of(op);
  if (session_.feeder_)
    add_fed(op, shape, output);
  else
    add_conv(op, shape, window_source(op, shape.window, 0, by_channels(output)), output);
  return true;
}

bool LaneBuilder::linear(const Op& op) {
  const Shape& x = session_.shapes_[size_t(op.inputs[0])];
  const int64_t rows = count(x) / x.back();
  if (op.kernel_for(session_.total_, KernelChoice::rows) == KernelChoice::gather) return false;
  const LaneLayout input = token_layout(session_.table_, rows, x.back());
  const LaneLayout output = token_layout(session_.table_, rows, op.weight->shape[0]);
  const int buffer = lane(op.inputs[0], input);
  add_conv(op, {x.back(), op.weight->shape[0], 1, {1, 1, 1, 1, 1, 1, 0, 0}}, {buffer, input, nullptr}, output);
  return true;
}

}  // namespace secateur
