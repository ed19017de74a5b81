// The shape that each operation gives, for one batch size. This is what memory safety rests on: every loop of the
// engine runs over a shape that was checked here.
#include <algorithm>

#include "error.h"
#include "program.h"

namespace secateur {

namespace {

void need(bool condition, const char* what) {
  if (!condition) throw PlanError(what);
}

// Windows that fit; each must touch the image where `touching`, as in pools.
int64_t windows(int64_t size, int64_t window, int64_t stride, int64_t dilation, int64_t before, int64_t after,
                bool touching) {
  const int64_t reach = dilation * (window - 1) + 1;
  need(before < reach && after < reach + stride, "its padding is larger than its window");
  need(size + before + after >= reach, "its window does not fit its input");
  const int64_t n = (size + before + after - reach) / stride + 1;
  need(!touching || (n - 1) * stride - before < size, "a window lies in the padding alone");
  return n;
}

Shape image_shape(const Op& op, const Shape& x, int64_t channels, int64_t kh, int64_t kw, bool pool) {
  const auto& p = op.padding;
  return {x[0], channels, windows(x[2], kh, op.stride[0], op.dilation[0], p[0], p[2], pool),
          windows(x[3], kw, op.stride[1], op.dilation[1], p[1], p[3], pool)};
}

void check_bias(const Op& op, int64_t n) {
  if (op.bias) need(op.bias->shape == Shape{n}, "its bias does not fit its weight");
}

Shape conv_shape(const Op& op, const Shape& x) {
  const Shape& w = op.weight->shape;
  need(x.size() == 4 && w.size() == 4, "its input and weight must have four dimensions");
  need(op.groups <= w[0] && w[0] % op.groups == 0, "its groups do not divide its weight");
  need(x[1] % op.groups == 0 && x[1] / op.groups == w[1], "its weight does not fit the channels of its input");
  check_bias(op, w[0]);
  return image_shape(op, x, w[0], w[2], w[3], false);
}

Shape linear_shape(const Op& op, const Shape& x) {
  const Shape& w = op.weight->shape;
  need(w.size() == 2 && !x.empty() && x.back() == w[1], "its weight does not fit its input");
  check_bias(op, w[0]);
  Shape y = x;
  y.back() = w[0];
  return y;
}

Shape broadcast(const Shape& a, const Shape& b) {
  Shape result(std::max(a.size(), b.size()));
  for (size_t i = 1; i <= result.size(); i++) {
    const int64_t x = i <= a.size() ? a[a.size() - i] : 1, y = i <= b.size() ? b[b.size() - i] : 1;
    need(x == y || x == 1 || y == 1, "its inputs do not broadcast");
    result[result.size() - i] = x == 1 ? y : x;
  }
  return result;
}

Shape reduced_shape(const Op& op, const Shape& x) {
  std::vector<bool> gone(x.size(), false);
  for (const int64_t d : op.dims) {
    need(d < int64_t(x.size()) && !gone[size_t(d)], "its dims do not fit its input");
    gone[size_t(d)] = true;
  }
  need(!op.dims.empty(), "its dims are empty");
  Shape y;
  for (size_t i = 0; i < x.size(); i++) {
    if (!gone[i])
      y.push_back(x[i]);
    else if (op.flag)
      y.push_back(1);
  }
  return y;
}

Shape norm_shape(const Op& op, const Shape& x) {
  need(op.n_dims <= int64_t(x.size()), "its n_dims do not fit its input");
  const Shape tail(x.end() - op.n_dims, x.end());
  need(!op.weight || op.weight->shape == tail, "its scale does not fit its input");
  need(!op.bias || op.bias->shape == tail, "its shift does not fit its input");
  return x;
}

Shape matmul_shape(const Shape& a, const Shape& b) {
  need(a.size() >= 2 && b.size() >= 2 && a.back() == b[b.size() - 2], "its inputs are no matrix product");
  Shape y = broadcast(Shape(a.begin(), a.end() - 2), Shape(b.begin(), b.end() - 2));
  y.push_back(a[a.size() - 2]);
  y.push_back(b.back());
  return y;
}

Shape attention_shape(const std::vector<Shape>& in) {
  const Shape &q = in[0], &k = in[1], &v = in[2];
  const size_t n = q.size();
  need(n >= 2 && k.size() == n && v.size() == n, "q, k and v must have the same number of dimensions");
  need(std::equal(q.begin(), q.end() - 2, k.begin()) && std::equal(q.begin(), q.end() - 2, v.begin()),
       "q, k and v differ in their leading dimensions");
  need(q[n - 1] == k[n - 1] && k[n - 2] == v[n - 2], "q, k and v do not fit each other");
  Shape scores = q, y = q;
  scores.back() = k[n - 2];
  y.back() = v.back();
  if (in.size() == 4) need(broadcast(in[3], scores) == scores, "its mask does not fit its scores");
  return y;
}

Shape cat_shape(const Op& op, const std::vector<Shape>& in) {
  const size_t dim = size_t(op.dim);
  Shape y = in[0];
  need(dim < y.size(), "its dim is not one of its inputs");
  for (size_t i = 1; i < in.size(); i++) {
    need(in[i].size() == y.size(), "its inputs have different numbers of dimensions");
    for (size_t d = 0; d < y.size(); d++) need(d == dim || in[i][d] == y[d], "its inputs differ in more than one dim");
    y[dim] += in[i][dim];
  }
  return y;
}

Shape moved_shape(const Op& op, const std::vector<Shape>& in, const Shape& declared) {
  const Shape& x = in[0];
  Shape y = x;
  switch (op.kind) {
    case OpKind::reshape:
      need(count(x) == count(declared), "its output has another number of numbers");
      return declared;
    case OpKind::permute: {
      std::vector<bool> seen(x.size(), false);
      need(op.dims.size() == x.size(), "its dims do not fit its input");
      for (size_t i = 0; i < x.size(); i++) {
        const size_t d = size_t(op.dims[i]);
        need(d < x.size() && !seen[d], "its dims are no order");
        seen[d] = true;
        y[i] = x[d];
      }
      return y;
    }
    case OpKind::slice:
      need(op.dim < int64_t(x.size()), "its dim is not one of its input");
      need(op.start < op.stop && op.stop <= x[size_t(op.dim)], "it reaches past its input");
      y[size_t(op.dim)] = (op.stop - op.start - 1) / op.step + 1;
      return y;
    case OpKind::pad:
      need(op.margins.size() == x.size(), "its padding does not fit its input");
      for (size_t i = 0; i < x.size(); i++) y[i] += op.margins[i].first + op.margins[i].second;
      return y;
    default:  // expand
      need(declared.size() == x.size(), "its output has another number of dimensions");
      for (size_t i = 0; i < x.size(); i++) need(x[i] == 1 || x[i] == declared[i], "it does not expand to its output");
      return declared;
  }
}

Shape shape_of(const Op& op, const std::vector<Shape>& in, const Shape& declared) {
  size_t fewest = 1, most = 1;
  if (op.kind == OpKind::conv || op.kind == OpKind::linear) most = 2;
  if (op.kind == OpKind::binary || op.kind == OpKind::compare || op.kind == OpKind::matmul) fewest = most = 2;
  if (op.kind == OpKind::where) fewest = most = 3;
  if (op.kind == OpKind::attention) fewest = 3, most = 4;
  if (op.kind == OpKind::cat) most = 10000;
  if (op.kind == OpKind::constant) fewest = most = 0;
  need(in.size() >= fewest && in.size() <= most, "it has the wrong number of inputs");
  Shape y;
  switch (op.kind) {
    case OpKind::conv: y = conv_shape(op, in[0]); break;
    case OpKind::linear: y = linear_shape(op, in[0]); break;
    case OpKind::scale_shift:
      need(in[0].size() >= 2 && op.weight->shape == Shape{in[0][1]} && op.bias->shape == op.weight->shape,
           "its scale and shift do not fit its input");
      return in[0];
    case OpKind::activate:
    case OpKind::convert:
    case OpKind::clip: return in[0];
    case OpKind::binary:
    case OpKind::compare: return broadcast(in[0], in[1]);
    case OpKind::where: return broadcast(broadcast(in[0], in[1]), in[2]);
    case OpKind::max_pool:
    case OpKind::avg_pool:
      need(in[0].size() == 4, "its input must have four dimensions");
      return image_shape(op, in[0], in[0][1], op.window[0], op.window[1], true);
    case OpKind::adaptive_avg_pool:
      need(in[0].size() == 4, "its input must have four dimensions");
      return {in[0][0], in[0][1], op.window[0], op.window[1]};
    case OpKind::mean:
    case OpKind::sum: return reduced_shape(op, in[0]);
    case OpKind::softmax:
    case OpKind::cumsum: need(op.dim < int64_t(in[0].size()), "its dim is not one of its input"); return in[0];
    case OpKind::layer_norm: return norm_shape(op, in[0]);
    case OpKind::matmul: return matmul_shape(in[0], in[1]);
    case OpKind::attention: return attention_shape(in);
    case OpKind::embedding:
      need(op.weight->shape.size() == 2, "its weight must have two dimensions");
      y = in[0];
      y.push_back(op.weight->shape[1]);
      return y;
    case OpKind::cat: return cat_shape(op, in);
    case OpKind::constant: return op.weight->shape;
    default: return moved_shape(op, in, declared);
  }
  if (in.size() == 2) need(in[1] == y, "its residual does not fit its output");  // conv and linear
  return y;
}

}  // namespace

Shape infer_shape(const Op& op, const std::vector<Shape>& inputs, const Shape& declared) {
  try {
    const Shape shape = shape_of(op, inputs, declared);
    if (shape != declared)
      throw PlanError("its output has the shape " + text_of(shape) + ", the plan says " + text_of(declared));
    return shape;
  } catch (const PlanError& error) {
    throw PlanError(op.where() + ": " + error.what());
  }
}

}  // namespace secateur
