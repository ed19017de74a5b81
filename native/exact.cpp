// Which operations of a plan of halves must not be done in them: squares, which leave the range of a half where their
// roots are ordinary numbers; bounds and constants that a half would take for 0, such as that of a norm to divide by;
// and maxima that are compared with what they were taken from.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace secateur {

namespace {

// Whether numbers go on as they are, but for their sign and for what is left out.
bool keeps_numbers(OpKind kind) {
  switch (kind) {
    case OpKind::scale_shift:
    case OpKind::binary:
    case OpKind::where:
    case OpKind::reshape:
    case OpKind::permute:
    case OpKind::slice:
    case OpKind::cat:
    case OpKind::expand: return true;
    default: return false;
  }
}

// Whether a result may be as large, or as small, as what the operation reads.
bool keeps_range(OpKind kind) {
  switch (kind) {
    case OpKind::clip:
    case OpKind::max_pool:
    case OpKind::avg_pool:
    case OpKind::adaptive_avg_pool:
    case OpKind::mean:
    case OpKind::sum:
    case OpKind::pad: return true;
    default: return keeps_numbers(kind);
  }
}

constexpr double least_half = 6.103515625e-05;  // below, halves lose digits, and below 3e-8 all of them

bool is_bounded(const Op* maker) {
  return maker && maker->kind == OpKind::activate &&
         (maker->activation == Activation::sigmoid || maker->activation == Activation::tanh);
}

bool is_tiny(double number) { return number != 0 && std::abs(number) < least_half; }

// Whether an operation has a bound or a constant that a half would take for 0, as in x / (|x| + 1e-8).
bool has_tiny_number(const Op& op, const std::vector<Op*>& makers) {
  if (op.kind == OpKind::clip) return is_tiny(op.low) || is_tiny(op.high);
  if (op.kind != OpKind::binary) return false;
  return std::any_of(op.inputs.begin(), op.inputs.end(), [&](int id) {
    const Op* maker = makers[size_t(id)];
    if (!maker || maker->kind != OpKind::constant || maker->weight->is_integer) return false;
    const std::vector<float> numbers = maker->weight->all();
    return !numbers.empty() && std::all_of(numbers.begin(), numbers.end(), is_tiny);
  });
}

}  // namespace

void mark_exact(Program& program) {
  std::vector<Op*> makers(program.values.size(), nullptr);
  std::vector<bool> far(program.values.size(), false), compared(program.values.size(), false);
  for (Op& op : program.ops) {
    // how many inputs an operation has is checked later, with their shapes
    const bool squares =
        op.kind == OpKind::binary && op.binary == Binary::mul && op.inputs.size() == 2 && op.inputs[0] == op.inputs[1];
    bool reads_far = false;
    for (const int id : op.inputs) reads_far = reads_far || far[size_t(id)];
    op.exact = (squares && !is_bounded(makers[size_t(op.inputs[0])])) || has_tiny_number(op, makers) ||
               (reads_far && keeps_range(op.kind));
    far[size_t(op.output)] = op.exact;
    makers[size_t(op.output)] = &op;
  }
  for (auto op = program.ops.rbegin(); op != program.ops.rend(); ++op) {
    const bool passes = compared[size_t(op->output)] && keeps_numbers(op->kind);
    op->exact = op->exact || (compared[size_t(op->output)] && op->kind == OpKind::max_pool);
    if (passes || op->kind == OpKind::compare)
      for (const int id : op->inputs) compared[size_t(id)] = true;
  }
}

}  // namespace secateur
