// The type that each operation takes and gives. Buffers are as long as the types say, so memory safety rests on this.
#include "error.h"
#include "program.h"

namespace secateur {

namespace {

// Of what an operation reads at a place, given whether the first, or for `where` the second, is one of integers.
bool reads_integers(const Op& op, size_t place, bool integers) {
  switch (op.kind) {
    case OpKind::embedding: return true;
    case OpKind::where: return place > 0 && integers;
    case OpKind::binary: return integers && op.binary != Binary::div && op.activation == Activation::none;
    case OpKind::compare:
    case OpKind::convert:
    case OpKind::cumsum: return integers;
    default: return integers && op.kind >= OpKind::reshape && op.kind <= OpKind::constant;
  }
}

bool gives_integers(const Op& op, bool integers) {
  if (op.kind == OpKind::constant) return op.weight->is_integer;
  if (op.kind == OpKind::convert) return op.flag;
  return op.kind != OpKind::embedding && op.kind != OpKind::compare && integers;
}

}  // namespace

void check_types(const Program& program) {
  for (const Op& op : program.ops) {
    const size_t leading = op.kind == OpKind::where ? 1 : 0;
    const bool integers = op.inputs.size() > leading && program.values[size_t(op.inputs[leading])].is_integer;
    for (size_t i = 0; i < op.inputs.size(); i++)
      if (program.values[size_t(op.inputs[i])].is_integer != reads_integers(op, i, integers))
        throw PlanError(op.where() + " has an input of the wrong type");
    if (program.values[size_t(op.output)].is_integer != gives_integers(op, integers))
      throw PlanError(op.where() + " has an output of the wrong type");
  }
}

}  // namespace secateur
