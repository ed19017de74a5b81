// Stages that work on plain arrays in C order, as torch has them.
#pragma once

#include "session.h"

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

  template <typename From, typename To, typename F>
  void pairs(const Op& op, F f);
  template <typename T>
  void chosen(const Op& op);
  template <typename T, typename Sum>
  void sums(const Op& op);

  bool is_integer(int value) const { return session_.program_.values[size_t(value)].is_integer; }

  Session& session_;
};

}  // namespace secateur
