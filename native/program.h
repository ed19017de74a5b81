// What a plan computes (docs/plan.md), read from its JSON and checked: every id, name, count and range that the
// rest of the engine relies on.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels.h"

namespace secateur {

using Shape = std::vector<int64_t>;

enum class OpKind {
  conv,
  linear,
  scale_shift,
  activate,
  clip,
  binary,
  compare,
  where,
  convert,
  cumsum,
  max_pool,
  avg_pool,
  adaptive_avg_pool,
  mean,
  sum,
  softmax,
  layer_norm,
  matmul,
  attention,
  embedding,
  reshape,
  permute,
  slice,
  cat,
  pad,
  expand,
  constant
};

struct Value {
  Shape shape;  // −k: k times the batch
  bool is_integer = false;
};

// A weight as given: all numbers, or the positions (flat, rising) and numbers of the stored ones. Borrowed only
// while the engine is built.
struct Weight {
  Shape shape;
  std::vector<uint32_t> positions;  // empty if dense
  std::vector<float> numbers;
  std::vector<int64_t> integers;  // instead of numbers, if i64
  bool dense = true;
  bool is_integer = false;

  std::vector<float> all() const;  // with the zeros
};

enum class KernelChoice { dense, rows, gather, winograd };
const char* kernel_name(KernelChoice choice);

enum class Comparison { equal, less, less_equal };

struct Op {
  OpKind kind;
  std::string name;
  std::vector<int> inputs;
  int output = -1;
  const Weight* weight = nullptr;  // scale of scale_shift and layer_norm too
  const Weight* bias = nullptr;    // shift of those
  Activation activation = Activation::none;
  Binary binary = Binary::add;
  Comparison comparison = Comparison::equal;
  std::array<int64_t, 2> window{1, 1}, stride{1, 1}, dilation{1, 1};
  std::array<int64_t, 4> padding{0, 0, 0, 0};  // top, left, bottom, right
  int64_t groups = 1;
  std::vector<std::pair<int64_t, KernelChoice>> kernels;
  std::vector<int64_t> dims;                         // of mean, sum and permute
  std::vector<std::pair<int64_t, int64_t>> margins;  // of pad
  int64_t dim = 0, start = 0, stop = 0, step = 1, n_dims = 0;
  double low = 0, high = 0, epsilon = 0, number = 0, factor = 1;
  bool flag = false;   // keep, count_padding, causal; of convert: to i64
  bool exact = false;  // not done in halves, see exact.cpp

  std::string where() const;                                         // for messages: kind and name
  KernelChoice kernel_for(int64_t batch, KernelChoice usual) const;  // the latter if none is named
};

struct Program {
  std::vector<Value> values;
  std::vector<int> inputs, outputs;
  std::vector<Op> ops;
  std::map<std::string, Weight> weights;
  bool half = false;                                     // of precision fp16: convolutions may compute in it
  std::vector<std::pair<int64_t, int64_t>> working_set;  // batch, bytes
  int64_t one_thread = 0;                                // up to this batch size one thread is faster alone

  // What an operation may read and write at a time, where images can be taken a few at a time.
  int64_t working_set_for(int64_t batch) const;
};

// The program of a JSON text. `weights` must have exactly the names and shapes it lists.
Program read_program(std::string_view text, std::map<std::string, Weight> weights);

// Marks in a program of halves what must not be done in them.
void mark_exact(Program& program);

// For each value, the operation that reads it last, counted from 1; one more than there are for an output.
std::vector<size_t> last_readers(const Program& program);

// Whether an operation is a convolution that can be computed some channels at a time, right before they are read: the
// next one is depthwise, nobody else needs the value, and there is little input to read again for each part.
bool feeds_next(const Program& program, const std::vector<size_t>& last, size_t place);

// Shape of an operation's output for one batch size, from the shapes of its inputs; throws if they do not fit.
Shape infer_shape(const Op& op, const std::vector<Shape>& inputs, const Shape& declared);

// Throws if an operation reads or writes a value of a type that is not its own.
void check_types(const Program& program);

// Negative dimensions times the batch. Throws if the result has more than 2^40 numbers.
Shape at_batch(const Shape& shape, int64_t batch);
int64_t count(const Shape& shape);
std::string text_of(const Shape& shape);

}  // namespace secateur
