// Convolutions and linear layers on vectors of lanes: who shares them, where they read from, and what runs with what.
#include <algorithm>
#include <utility>

#include "lane_ops.h"
#include "winograd.h"

namespace secateur {

namespace {

// Output of a convolution that its reader finds in the second-level cache.
constexpr int64_t fed_bytes = 256 * 1024;

// Output channels that the dense kernel takes at a time.
constexpr int64_t panel = 8;

}  // namespace

// In how many parts a convolution is computed because the next one reads it so; 1 if it does not.
int64_t LaneBuilder::parts_to_feed(const Op& op, bool dense) const {
  const Program& program = session_.program_;
  const auto place = size_t(session_.op_);
  const LaneLayout from = layout_of(op.output);
  if (session_.threads_ > 1 || !from.lanes || !feeds_next(program, session_.last_readers_, place)) return 1;
  const Op& reader = program.ops[place + 1];
  Window window;
  float fill;
  window_of(reader, window, fill);
  const WindowInput input = window_input(from, layout_of(reader.output), window);
  if (!input.direct || !from.has_margins_for(input.layout, fill)) return 1;
  const int64_t wanted = std::min(from.channels, (from.bytes() + fed_bytes - 1) / fed_bytes);
  if (!dense || wanted == 1) return wanted;
  int64_t parts = 0;  // of whole panels: the fewest that are enough, or as many as there can be
  for (int64_t n = from.channels / panel; n > 0 && (n >= wanted || parts == 0); n--)
    if (from.channels % (panel * n) == 0) parts = n;
  return parts > 0 ? parts : wanted;
}

// Computes the part of the feeder's output that belongs to a task, with its margins, at the beginning of the buffer.
Work LaneBuilder::feed_from(const Session::Feeder& feeder, const LaneLayout& layout, int buffer) const {
  const Mover margins(session_.table_, layout, buffer, layout, buffer, every_pixel, Region::all);
  return [=](Context& context, int64_t task, int thread) {
    char* const to = context.buffer(buffer);
    const Share channels = share_of(layout.channels, task, feeder.parts);
    Convolution::Call call{};
    call.input = feeder.layout.view(context.buffer(feeder.buffer));
    call.output = at_channel(layout.view(to), -channels.begin);
    call.scratch = context.scratch(thread);
    feeder.plan->run(task, call);
    margins.run(to, {0, {0, channels.end - channels.begin}}, to);
  };
}

// Where the output goes, with the residual. A sum that nobody else needs its operand of is written over it: half as many
// lines to fetch and to keep.
LaneBuilder::Target LaneBuilder::target_of(const Op& op, const Source& input, const LaneLayout& layout) {
  Target target{-1, layout, -1, {}, -1};
  if (op.inputs.size() == 2) {
    target.residual = lane(op.inputs[1], layout.tokens ? layout : layout_of(op.inputs[1]));
    target.residual_layout = session_.forms_[size_t(op.inputs[1])].layout;
    const bool is_read = target.residual == input.buffer || (input.mover && input.mover->from_buffer == target.residual);
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
  const auto feeder = std::exchange(session_.feeder_, std::nullopt);
  const bool grouped = layout.groups > 1, copies = input.buffer < 0;
  const Sharing sharing{grouped ? 1 : session_.threads_, by_channels(layout), copies,
                        feeder ? feeder->parts : parts_to_feed(op, dense)};
  std::shared_ptr<const Convolution> plan;
  if (winograd)
    plan = std::make_shared<WinogradPlan>(session_.table_, shape, *op.weight, op.bias, op.activation, layout, sharing);
  else
    plan = std::make_shared<ConvPlan>(session_.table_, shape, *op.weight, op.bias, op.activation, dense, input.layout,
                                      layout, sharing);
  if (!plan->sliced()) session_.scratch_bytes_ = std::max(session_.scratch_bytes_, plan->scratch_bytes());
  if (!feeder && sharing.parts > 1) {
    session_.feeder_ = {session_.op_, sharing.parts, plan, input.buffer, input.layout};
    return;
  }
  const int64_t copy_bytes = plan->channels_at_a_time() * input.layout.plane();
  const int64_t n_copies = !copies ? 0 : feeder ? 1 : plan->n_tasks();
  if (copies) input.buffer = session_.new_buffer(copy_bytes * n_copies);
  Target target = target_of(op, input, layout);
  if (plan->sliced()) target.sums = session_.new_buffer(plan->scratch_bytes());
  const Work feed = feeder ? feed_from(*feeder, input.layout, input.buffer) : nullptr;
  const int source = feeder ? feeder->buffer : input.mover ? input.mover->from_buffer : -1;
  session_.add_stage(grouped ? layout.groups : plan->n_tasks(),
                     {input.buffer, source, target.buffer, target.residual, target.sums},
                     [=](Context& context, int64_t task, int thread) {
    const int64_t group = grouped ? task : 0;
    char* const from = context.buffer(input.buffer) + (n_copies > 1 ? task * copy_bytes : 0);
    const auto fill = [&](const Share& channels) {
      if (feed) return feed(context, task, thread);
      input.mover->run(context.buffer(input.mover->from_buffer), {group, channels}, from);
    };
    if (input.mover && !copies) fill({0, shape.channels});
    Convolution::Call call = target.call(context, group, thread);
    call.input = input.layout.view(from, group);
    if (copies) call.fill = fill;
    plan->run(task - group, call);
  });
  if (feeder) session_.stages_.back().op = feeder->op;
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
  const Source input = session_.feeder_ ? Source{-1, layout_of(op.inputs[0]), nullptr}
                                        : window_source(op, shape.window, 0, by_channels(output));
  add_conv(op, shape, input, output);
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
