// Stages that work on plain arrays in C order, as torch has them.
#pragma once

#include "plain_rows.h"
#include "session.h"
#include "share.h"

namespace secateur {

class PlainBuilder {
 public:
  explicit PlainBuilder(Session& session) : session_(session) {}

  void build(const Op& op);

 private:
  struct Walk {  // over the dimensions `shape`, with a step for each in what is read and what is written
    Shape shape;
    std::vector<int64_t> from_steps, to_steps;
    int64_t from_start, to_start;
  };

  void convolution(const Op& op);
  void gather_linear(const Op& op);
  void elementwise(const Op& op);
  void binary(const Op& op);
  void integer_binary(const Op& op);
  void compare(const Op& op);
  void where(const Op& op);
  void convert(const Op& op);
  void cumsum(const Op& op);
  void copy(const Op& op, const Walk& walk);
  void moved(const Op& op);
  void cat(const Op& op);
  void pool(const Op& op);
  void mean(const Op& op);
  void softmax(const Op& op);
  void layer_norm(const Op& op);
  void matmul(const Op& op);
  void attention(const Op& op);
  void embedding(const Op& op);
  void constant(const Op& op);

  template <typename From, typename To, typename Row>
  void pairs(const Op& op, Row row);
  template <typename T>
  void chosen(const Op& op);
  template <typename T, typename Sum>
  void sums(const Op& op);

  bool is_integer(int value) const { return session_.program_.values[size_t(value)].is_integer; }

  Session& session_;
};

// Two operands broadcast: row(left, its step, right, its step, out, numbers in the row).
template <typename From, typename To, typename Row>
void PlainBuilder::pairs(const Op& op, Row row) {
  const Shape shape = or_one(session_.shapes_[size_t(op.output)]);
  const int a = session_.plain(op.inputs[0]), b = session_.plain(op.inputs[1]);
  const int to = session_.new_plain(op.output);
  const auto left = broadcast_steps(session_.shapes_[size_t(op.inputs[0])], shape);
  const auto right = broadcast_steps(session_.shapes_[size_t(op.inputs[1])], shape);
  const int64_t inner = shape.back(), rows = count(shape) / inner;
  const int64_t tasks = tasks_for(session_.threads_, rows, rows * inner);
  session_.add_stage(tasks, {a, b, to}, [=](Context& context, int64_t task, int) {
    const Share share = share_of(rows, task, tasks);
    for (int64_t r = share.begin; r < share.end; r++)
      row(numbers_of<From>(context, a) + row_start(shape, left, r), left.back(),
          numbers_of<From>(context, b) + row_start(shape, right, r), right.back(),
          numbers_of<To>(context, to) + r * inner, inner);
  });
}

}  // namespace secateur
