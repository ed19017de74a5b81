#include "program.h"

#include <cmath>
#include <limits>

#include "error.h"
#include "json.h"
#include "memory.h"

namespace secateur {

namespace {

constexpr size_t most_ops = 100000, most_dims = 32;
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int64_t most_weights = (int64_t(1) << 31) - 1, largest = int64_t(1) << 40, most_pixels = int64_t(1) << 24;

const std::pair<const char*, OpKind> op_kinds[] = {
    {"conv", OpKind::conv},
    {"linear", OpKind::linear},
    {"scale_shift", OpKind::scale_shift},
    {"activate", OpKind::activate},
    {"clip", OpKind::clip},
    {"add", OpKind::binary},
    {"sub", OpKind::binary},
    {"mul", OpKind::binary},
    {"div", OpKind::binary},
    {"equal", OpKind::compare},
    {"less", OpKind::compare},
    {"less_equal", OpKind::compare},
    {"where", OpKind::where},
    {"convert", OpKind::convert},
    {"cumsum", OpKind::cumsum},
    {"max_pool", OpKind::max_pool},
    {"avg_pool", OpKind::avg_pool},
    {"adaptive_avg_pool", OpKind::adaptive_avg_pool},
    {"mean", OpKind::mean},
    {"sum", OpKind::sum},
    {"softmax", OpKind::softmax},
    {"layer_norm", OpKind::layer_norm},
    {"matmul", OpKind::matmul},
    {"attention", OpKind::attention},
    {"embedding", OpKind::embedding},
    {"reshape", OpKind::reshape},
    {"permute", OpKind::permute},
    {"slice", OpKind::slice},
    {"cat", OpKind::cat},
    {"pad", OpKind::pad},
    {"expand", OpKind::expand},
    {"constant", OpKind::constant},
};

const char* const activation_names[] = {"none",        "relu",    "relu6", "silu",  "gelu", "gelu_tanh", "hardswish",
                                        "hardsigmoid", "sigmoid", "tanh",  "exp",   "log",  "log1p",     "sqrt",
                                        "erf",         "sin",     "cos",   "floor", "round"};
const char* const binary_names[] = {"add", "sub", "mul", "div"};
const char* const comparison_names[] = {"equal", "less", "less_equal"};
const char* const kernel_names[] = {"dense", "rows", "gather", "winograd"};

template <typename E, size_t N>
E named(const std::string& name, const char* const (&names)[N], const char* what) {
  for (size_t i = 0; i < N; i++)
    if (name == names[i]) return E(i);
  throw PlanError(std::string("unknown ") + what + " '" + name + "'");
}

int64_t bounded(const Json& json, const char* what, int64_t low, int64_t high) {
  const int64_t n = json.integer(what);
  if (n < low || n > high)
    throw PlanError(std::string(what) + " must be in " + std::to_string(low) + " … " + std::to_string(high) + ", got " +
                    std::to_string(n));
  return n;
}

template <size_t N>
std::array<int64_t, N> numbers(const Json& json, const char* what, int64_t low) {
  const auto& list = json.list(what);
  if (list.size() != N) throw PlanError(std::string(what) + " must have " + std::to_string(N) + " numbers");
  std::array<int64_t, N> result;
  for (size_t i = 0; i < N; i++) result[i] = bounded(list[i], what, low, most_pixels);
  return result;
}

std::vector<int64_t> number_list(const Json& json, const char* what, int64_t high) {
  std::vector<int64_t> result;
  if (json.list(what).size() > most_dims) throw PlanError(std::string(what) + " is too long");
  for (const Json& item : json.list(what)) result.push_back(bounded(item, what, 0, high));
  return result;
}

Shape read_shape(const Json& json, bool batch) {
  const auto& list = json.list("shape");
  if (list.size() > most_dims) throw PlanError("a shape has more than 32 dimensions");
  Shape shape;
  int negative = 0;
  int64_t product = 1;
  for (const Json& item : list) {
    const int64_t n = item.integer("dimension");
    if (n == 0 || (n < 0 && !batch) || n == std::numeric_limits<int64_t>::min())
      throw PlanError("dimension " + std::to_string(n) + " is not allowed");
    negative += n < 0;
    const int64_t size = n < 0 ? -n : n;
    if (size > largest / product) throw PlanError("a shape has more than 2^40 numbers");
    product *= size;
    shape.push_back(n);
  }
  if (negative > 1) throw PlanError("a shape has two batch dimensions");
  return shape;
}

bool is_integer_type(const std::string& dtype) {
  if (dtype != "f32" && dtype != "i64") throw PlanError("unknown type '" + dtype + "'");
  return dtype == "i64";
}

int read_id(const Json& json, const std::vector<Value>& values) {
  return int(bounded(json, "value id", 0, int64_t(values.size()) - 1));
}

const Weight* weight_of(const Json& op, const char* key, const Program& program, bool integer = false) {
  const Json& name = op.at(key);
  if (name.is_null()) return nullptr;
  const auto found = program.weights.find(name.text(key));
  if (found == program.weights.end()) throw PlanError("weight '" + name.text(key) + "' is not in the plan");
  if (found->second.is_integer != integer) throw PlanError("weight '" + found->first + "' has the wrong type");
  return &found->second;
}

const Weight* needed(const Weight* weight, const char* key) {
  if (!weight) throw PlanError(std::string(key) + " must not be null");
  return weight;
}

// null stands for a number that JSON has no name for.
double real_or(const Json& json, const char* key, double null) {
  return json.at(key).is_null() ? null : json.at(key).real(key);
}

void read_kernels(const Json& json, Op& op) {
  if (json.list("kernels").size() > 1000) throw PlanError("kernels is too long");
  for (const Json& pair : json.list("kernels")) {
    const auto& items = pair.list("kernels");
    if (items.size() != 2) throw PlanError("kernels must be pairs of a batch size and a name");
    const auto choice = named<KernelChoice>(items[1].text("kernel"), kernel_names, "kernel");
    op.kernels.emplace_back(bounded(items[0], "batch", 1, largest), choice);
  }
}

void read_attributes(const Json& json, const Program& program, Op& op) {
  if (const Json* activation = json.find("activation"))
    op.activation = named<Activation>(activation->text("activation"), activation_names, "activation");
  switch (op.kind) {
    case OpKind::conv:
      op.stride = numbers<2>(json.at("stride"), "stride", 1);
      op.padding = numbers<4>(json.at("padding"), "padding", 0);
      op.dilation = numbers<2>(json.at("dilation"), "dilation", 1);
      op.groups = bounded(json.at("groups"), "groups", 1, largest);
      [[fallthrough]];
    case OpKind::linear:
      op.weight = needed(weight_of(json, "weight", program), "weight");
      op.bias = weight_of(json, "bias", program);
      read_kernels(json.at("kernels"), op);
      break;
    case OpKind::scale_shift:
    case OpKind::layer_norm:
      op.weight = weight_of(json, "scale", program);
      op.bias = weight_of(json, "shift", program);
      if (op.kind == OpKind::layer_norm) {
        op.n_dims = bounded(json.at("n_dims"), "n_dims", 1, most_dims);
        op.epsilon = json.at("eps").real("eps");
        if (op.epsilon < 0) throw PlanError("eps must not be negative");
      } else {
        needed(op.weight, "scale");
        needed(op.bias, "shift");
      }
      break;
    case OpKind::clip:
      op.low = real_or(json, "low", -infinity);
      op.high = real_or(json, "high", infinity);
      break;
    case OpKind::max_pool:
    case OpKind::avg_pool:
      op.window = numbers<2>(json.at("kernel"), "kernel", 1);
      op.stride = numbers<2>(json.at("stride"), "stride", 1);
      op.padding = numbers<4>(json.at("padding"), "padding", 0);
      if (op.kind == OpKind::avg_pool) op.flag = json.at("count_padding").boolean("count_padding");
      break;
    case OpKind::adaptive_avg_pool: op.window = numbers<2>(json.at("size"), "size", 1); break;
    case OpKind::mean:
    case OpKind::sum: op.flag = json.at("keep").boolean("keep"); [[fallthrough]];
    case OpKind::permute: op.dims = number_list(json.at("dims"), "dims", most_dims); break;
    case OpKind::slice:
      op.start = bounded(json.at("start"), "start", 0, largest);
      op.stop = bounded(json.at("stop"), "stop", 1, largest);
      op.step = bounded(json.at("step"), "step", 1, largest);
      [[fallthrough]];
    case OpKind::softmax:
    case OpKind::cumsum:
    case OpKind::cat: op.dim = bounded(json.at("dim"), "dim", 0, most_dims); break;
    case OpKind::convert: op.flag = is_integer_type(json.at("dtype").text("dtype")); break;
    case OpKind::attention:
      op.factor = json.at("factor").real("factor");
      op.flag = json.at("causal").boolean("causal");
      break;
    case OpKind::embedding: op.weight = needed(weight_of(json, "weight", program), "weight"); break;
    case OpKind::constant: {
      const auto found = program.weights.find(json.at("weight").text("weight"));
      if (found == program.weights.end()) throw PlanError("its weight is not in the plan");
      op.weight = &found->second;
      break;
    }
    case OpKind::pad:
      op.number = real_or(json, "value", -infinity);
      for (const Json& pair : json.at("padding").list("padding")) {
        const auto margin = numbers<2>(pair, "padding", 0);
        op.margins.emplace_back(margin[0], margin[1]);
      }
      break;
    default: break;
  }
}

Op read_op(const Json& json, const Program& program) {
  Op op{};
  op.name = json.at("name").text("name");
  const std::string& kind = json.at("op").text("op");
  try {
    bool known = false;
    for (const auto& [name, value] : op_kinds)
      if (kind == name) {
        op.kind = value;
        known = true;
      }
    if (!known) throw PlanError("this operation is unknown to the native engine");
    if (op.kind == OpKind::binary) op.binary = named<Binary>(kind, binary_names, "operation");
    if (op.kind == OpKind::compare) op.comparison = named<Comparison>(kind, comparison_names, "operation");
    for (const Json& id : json.at("inputs").list("inputs")) op.inputs.push_back(read_id(id, program.values));
    op.output = read_id(json.at("output"), program.values);
    read_attributes(json, program, op);
  } catch (const PlanError& error) {
    throw PlanError(kind + " '" + op.name + "': " + error.what());
  }
  return op;
}

void check_weights(const Json& listed, std::map<std::string, Weight>& weights) {
  if (listed.object("weights").size() != weights.size()) throw PlanError("the weights given are not those listed");
  for (const auto& [name, entry] : listed.object("weights")) {
    const auto found = weights.find(name);
    if (found == weights.end()) throw PlanError("weight '" + name + "' is missing");
    Weight& weight = found->second;
    const Shape shape = read_shape(entry.at("shape"), false);
    const int64_t n = count(shape);
    if (n > most_weights) throw PlanError("weight '" + name + "' has more than 2^31 − 1 numbers");
    if (weight.dense) {
      if (shape != weight.shape) throw PlanError("weight '" + name + "' must have the shape " + text_of(shape));
    } else {
      int64_t last = -1;
      for (const uint32_t position : weight.positions) {
        if (int64_t(position) <= last || int64_t(position) >= n)
          throw PlanError("weight '" + name + "' has positions that do not rise or leave its shape");
        last = position;
      }
      weight.shape = shape;
    }
  }
}

void check_order(const Program& program) {
  std::vector<char> written(program.values.size(), 0);
  const auto write = [&](int id, const std::string& where) {
    if (written[size_t(id)]) throw PlanError(where + " writes value " + std::to_string(id) + " a second time");
    written[size_t(id)] = 1;
  };
  for (const int id : program.inputs) write(id, "an input");
  if (program.inputs.empty() || program.outputs.empty()) throw PlanError("a program needs inputs and outputs");
  const Shape& first = program.values[size_t(program.inputs[0])].shape;
  if (first.empty() || first[0] != -1) throw PlanError("its first input must have −1 as its first dimension");
  for (const Op& op : program.ops) {
    for (const int id : op.inputs)
      if (!written[size_t(id)]) throw PlanError(op.where() + " reads value " + std::to_string(id) + " too early");
    write(op.output, op.where());
  }
  for (const int id : program.outputs)
    if (!written[size_t(id)]) throw PlanError("output " + std::to_string(id) + " is never written");
}

}  // namespace

std::vector<float> Weight::all() const {
  if (dense) return numbers;
  check_available(count(shape) * 4);
  std::vector<float> result(size_t(count(shape)), 0.0f);
  for (size_t i = 0; i < positions.size(); i++) result[positions[i]] = numbers[i];
  return result;
}

std::string Op::where() const {
  if (kind == OpKind::binary) return std::string(binary_names[int(binary)]) + " '" + name + "'";
  if (kind == OpKind::compare) return std::string(comparison_names[int(comparison)]) + " '" + name + "'";
  for (const auto& [text, value] : op_kinds)
    if (value == kind) return std::string(text) + " '" + name + "'";
  return "'" + name + "'";
}

const char* kernel_name(KernelChoice choice) { return kernel_names[size_t(choice)]; }

KernelChoice Op::kernel_for(int64_t batch, KernelChoice usual) const {
  KernelChoice choice = kernels.empty() ? usual : kernels.front().second;
  for (const auto& [from, kernel] : kernels)
    if (from <= batch) choice = kernel;
  return choice;
}

int64_t count(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Shape at_batch(const Shape& shape, int64_t batch) {
  Shape result;
  int64_t product = 1;
  for (const int64_t d : shape) {
    const int64_t factor = d < 0 ? batch : 1, size = d < 0 ? -d : d;
    if (size > largest / factor || size * factor > largest / product)
      throw PlanError("a value has more than 2^40 numbers at batch size " + std::to_string(batch));
    result.push_back(size * factor);
    product *= size * factor;
  }
  return result;
}

int64_t Program::working_set_for(int64_t batch) const {
  constexpr int64_t usual = 8 << 20;
  int64_t bytes = working_set.empty() ? usual : working_set.front().second;
  for (const auto& [least, found] : working_set)
    if (least <= batch) bytes = found;
  return bytes;
}

Program read_program(std::string_view text, std::map<std::string, Weight> weights) {
  const Json json = Json::parse(text);
  Program program;
  program.weights = std::move(weights);
  program.half = json.at("precision").text("precision") == "fp16";
  check_weights(json.at("weights"), program.weights);
  if (json.at("values").list("values").size() > 2 * most_ops) throw PlanError("it has too many values");
  for (const Json& value : json.at("values").list("values")) {
    const bool is_integer = is_integer_type(value.at("dtype").text("dtype"));
    program.values.push_back({read_shape(value.at("shape"), true), is_integer});
  }
  for (const Json& input : json.at("inputs").list("inputs"))
    program.inputs.push_back(read_id(input.at("value"), program.values));
  for (const Json& output : json.at("outputs").list("outputs"))
    program.outputs.push_back(read_id(output.at("value"), program.values));
  for (const Json& pair : json.at("working_set").list("working_set")) {
    const auto& items = pair.list("working_set");
    if (items.size() != 2) throw PlanError("working_set must be pairs of a batch size and a number of bytes");
    program.working_set.emplace_back(bounded(items[0], "batch", 1, largest), bounded(items[1], "bytes", 1, largest));
  }
  program.one_thread = bounded(json.at("one_thread"), "one_thread", 0, largest);
  const auto& ops = json.at("ops").list("ops");
  if (ops.size() > most_ops) throw PlanError("it has more than 100,000 operations");
  for (const Json& op : ops) program.ops.push_back(read_op(op, program));
  check_order(program);
  check_types(program);
  if (program.half) mark_exact(program);
  return program;
}

std::vector<size_t> last_readers(const Program& program) {
  std::vector<size_t> last(program.values.size(), 0);
  for (size_t i = 0; i < program.ops.size(); i++)
    for (const int id : program.ops[i].inputs) last[size_t(id)] = i + 1;
  for (const int id : program.outputs) last[size_t(id)] = program.ops.size() + 1;
  return last;
}

bool feeds_next(const Program& program, const std::vector<size_t>& last, size_t place) {
  if (place + 1 >= program.ops.size()) return false;
  const Op &op = program.ops[place], &reader = program.ops[place + 1];
  if (op.kind != OpKind::conv || op.groups > 1 || op.inputs.size() > 1 || last[size_t(op.output)] != place + 2)
    return false;
  const int64_t inputs = op.weight->shape[1], outputs = op.weight->shape[0];
  return reader.kind == OpKind::conv && reader.inputs.size() == 1 && reader.groups == outputs &&
         reader.weight->shape[0] == outputs && outputs >= 2 * inputs;
}

}  // namespace secateur
