#include "plain_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "memory.h"
#include "plain_rows.h"
#include "share.h"

namespace secateur {

namespace {

// First to `low`, then to `high`, which holds where they cross; a NaN stays.
float clipped(float x, float low, float high) {
  const float above = x < low ? low : x;
  return above > high ? high : above;
}

}  // namespace

void PlainBuilder::build(const Op& op) {
  switch (op.kind) {
    case OpKind::conv: return convolution(op);
    case OpKind::linear: return gather_linear(op);
    case OpKind::activate:
    case OpKind::clip:
    case OpKind::scale_shift: return elementwise(op);
    case OpKind::binary: return binary(op);
    case OpKind::compare: return compare(op);
    case OpKind::where: return where(op);
    case OpKind::convert: return convert(op);
    case OpKind::cumsum: return cumsum(op);
    case OpKind::max_pool:
    case OpKind::avg_pool:
    case OpKind::adaptive_avg_pool: return pool(op);
    case OpKind::mean:
    case OpKind::sum: return mean(op);
    case OpKind::softmax: return softmax(op);
    case OpKind::layer_norm: return layer_norm(op);
    case OpKind::matmul: return matmul(op);
    case OpKind::attention: return attention(op);
    case OpKind::embedding: return embedding(op);
    case OpKind::constant: return constant(op);
    case OpKind::cat: return cat(op);
    default: return moved(op);
  }
}

// The slow way, for more images at once than there are lanes; the engine goes it only if the batch is not the first
// dimension all through a program.
void PlainBuilder::convolution(const Op& op) {
  const Shape x = session_.shapes_[size_t(op.inputs[0])], y = session_.shapes_[size_t(op.output)];
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const int residual = op.inputs.size() == 2 ? session_.plain(op.inputs[1]) : -1;
  const auto rows = std::make_shared<SparseRows>(sparse_rows(*op.weight, op.groups));
  const auto bias = std::make_shared<std::vector<float>>(size_t(y[1]), 0.0f);
  if (op.bias) *bias = op.bias->all();
  const auto activate = session_.table_.activate;
  const auto stride = op.stride, dilation = op.dilation;
  const auto padding = op.padding;
  const Activation activation = op.activation;
  session_.add_stage(y[0] * y[1], {from, to, residual}, [=](Context& context, int64_t task, int) {
    const int64_t image = task / y[1], channel = task % y[1], plane = y[2] * y[3];
    const float* in = floats(context, from) + image * x[1] * x[2] * x[3];
    float* out = floats(context, to) + task * plane;
    for (int64_t i = 0; i < plane; i++)
      out[i] = (*bias)[size_t(channel)] + (residual < 0 ? 0.0f : floats(context, residual)[task * plane + i]);
    for (int64_t e = rows->starts[size_t(channel)]; e < rows->starts[size_t(channel) + 1]; e++) {
      const auto& entry = rows->entries[size_t(e)];
      for (int64_t i = 0; i < y[2]; i++) {
        const int64_t iy = i * stride[0] + entry.ky * dilation[0] - padding[0];
        if (iy < 0 || iy >= x[2]) continue;
        for (int64_t j = 0; j < y[3]; j++) {
          const int64_t ix = j * stride[1] + entry.kx * dilation[1] - padding[1];
          if (ix >= 0 && ix < x[3]) out[i * y[3] + j] += entry.weight * in[(entry.channel * x[2] + iy) * x[3] + ix];
        }
      }
    }
    activate(out, plane, activation);
  });
}

// Slices of as many outputs as floats in a vector, the longest rows together.
GatheredRows::GatheredRows(const SparseRows& sparse, int64_t outputs, int64_t lanes) {
  std::vector<int32_t> order;
  for (int64_t r = 0; r < outputs; r++) order.push_back(int32_t(r));
  const auto length = [&](int32_t r) { return sparse.starts[size_t(r) + 1] - sparse.starts[size_t(r)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
  const int64_t slices = (outputs + lanes - 1) / lanes;
  int64_t padded = 0;
  for (int64_t s = 0; s < slices; s++) padded += length(order[size_t(s * lanes)]) * lanes;
  check_available(padded * 8);
  weights.reserve(size_t(padded));
  columns.reserve(size_t(padded));
  for (int64_t s = 0; s < slices; s++) {
    const int64_t steps = length(order[size_t(s * lanes)]);
    n_steps.push_back(int32_t(steps));
    first.push_back(int64_t(weights.size()));
    const size_t base = weights.size();
    weights.resize(base + size_t(steps * lanes), 0.0f);
    columns.resize(base + size_t(steps * lanes), 0);
    for (int64_t i = 0; i < lanes; i++) {
      const int64_t place = s * lanes + i;
      const int32_t row = place < outputs ? order[size_t(place)] : -1;
      rows.push_back(row);
      if (row < 0) continue;
      for (int64_t k = 0; k < length(row); k++) {
        const auto& entry = sparse.entries[size_t(sparse.starts[size_t(row)] + k)];
        weights[base + size_t(k * lanes + i)] = entry.weight;
        columns[base + size_t(k * lanes + i)] = entry.channel;
      }
    }
  }
}

void PlainBuilder::gather_linear(const Op& op) {
  const Shape& x = session_.shapes_[size_t(op.inputs[0])];
  const int64_t inputs = x.back(), outputs = op.weight->shape[0], n_rows = count(x) / inputs;
  const int64_t lanes = session_.table_.floats, slices = (outputs + lanes - 1) / lanes;
  // A recurrent layer reads the same weight in every step: one copy of it stays in the cache.
  std::shared_ptr<const GatheredRows>& packed = session_.gathered_[op.weight];
  if (!packed) {
    packed = std::make_shared<GatheredRows>(sparse_rows(*op.weight, 1), outputs, lanes);
    session_.weight_bytes_ += int64_t(packed->weights.size() * (sizeof(float) + sizeof(int32_t)));
  }
  const auto bias = std::make_shared<std::vector<float>>(size_t(outputs), 0.0f);
  if (op.bias) *bias = op.bias->all();
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const int residual = op.inputs.size() == 2 ? session_.plain(op.inputs[1]) : -1;
  const int64_t parts = tasks_for(session_.threads_, slices, int64_t(packed->weights.size()));
  const auto gather = session_.table_.gather;
  const Activation activation = op.activation;
  session_.add_stage(n_rows * parts, {from, to, residual}, [=, packed = packed](Context& context, int64_t task, int) {
    const int64_t row = task / parts;
    const Share share = share_of(slices, task % parts, parts);
    if (share.begin == share.end) return;
    GatherCall call{};
    call.weights = packed->weights.data() + packed->first[size_t(share.begin)];
    call.columns = packed->columns.data() + packed->first[size_t(share.begin)];
    call.n_steps = packed->n_steps.data() + share.begin;
    call.rows = packed->rows.data() + share.begin * lanes;
    call.n_slices = share.end - share.begin;
    call.bias = bias->data();
    call.input = floats(context, from) + row * inputs;
    call.residual = residual < 0 ? nullptr : floats(context, residual) + row * outputs;
    call.output = floats(context, to) + row * outputs;
    call.activation = activation;
    gather(call);
  });
}

void PlainBuilder::elementwise(const Op& op) {
  const Shape shape = or_one(session_.shapes_[size_t(op.output)]);
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const int64_t inner = op.kind == OpKind::scale_shift ? count(shape) / shape[0] / shape[1] : count(shape);
  const int64_t rows = count(shape) / inner, channels = op.kind == OpKind::scale_shift ? shape[1] : 1;
  const auto scale = std::make_shared<std::vector<float>>(), shift = std::make_shared<std::vector<float>>();
  if (op.kind == OpKind::scale_shift) {
    *scale = op.weight->all();
    *shift = op.bias->all();
  }
  const auto activate = session_.table_.activate;
  const OpKind kind = op.kind;
  const Activation activation = op.activation;
  const auto low = float(op.low), high = float(op.high);
  session_.add_stage(1, {from, to}, [=](Context& context, int64_t, int) {
    const float* in = floats(context, from);
    float* out = floats(context, to);
    for (int64_t r = 0; r < rows; r++, in += inner, out += inner) {
      const float a = scale->empty() ? 1.0f : (*scale)[size_t(r % channels)];
      const float b = shift->empty() ? 0.0f : (*shift)[size_t(r % channels)];
      for (int64_t i = 0; i < inner; i++) {
        const float v = scale->empty() ? in[i] : in[i] * a + b;
        out[i] = kind == OpKind::clip ? clipped(v, low, high) : v;
      }
      activate(out, inner, activation);
    }
  });
}

void PlainBuilder::binary(const Op& op) {
  if (is_integer(op.output)) return integer_binary(op);
  const auto activate = session_.table_.activate;
  const Binary operation = op.binary;
  const Activation activation = op.activation;
  pairs<float, float>(op, [=](const float* l, int64_t i, const float* m, int64_t j, float* out, int64_t n) {
    switch (operation) {
      case Binary::add:
        for (int64_t k = 0; k < n; k++) out[k] = l[k * i] + m[k * j];
        break;
      case Binary::sub:
        for (int64_t k = 0; k < n; k++) out[k] = l[k * i] - m[k * j];
        break;
      case Binary::mul:
        for (int64_t k = 0; k < n; k++) out[k] = l[k * i] * m[k * j];
        break;
      case Binary::div:
        for (int64_t k = 0; k < n; k++) out[k] = l[k * i] / m[k * j];
        break;
    }
    activate(out, n, activation);
  });
}

void PlainBuilder::pool(const Op& op) {
  const Shape x = session_.shapes_[size_t(op.inputs[0])], y = session_.shapes_[size_t(op.output)];
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const Op copy = op;
  session_.add_stage(y[0] * y[1], {from, to}, [=](Context& context, int64_t task, int) {
    const float* in = floats(context, from) + task * x[2] * x[3];
    float* out = floats(context, to) + task * y[2] * y[3];
    const bool adaptive = copy.kind == OpKind::adaptive_avg_pool, most = copy.kind == OpKind::max_pool;
    const auto range = [&](int64_t i, int64_t size, int64_t n, size_t axis) -> Share {
      if (adaptive) return {i * size / n, ((i + 1) * size + n - 1) / n};
      const int64_t begin = i * copy.stride[axis] - copy.padding[axis];
      return {std::max<int64_t>(begin, 0), std::min(begin + copy.window[axis], size)};
    };
    for (int64_t i = 0; i < y[2]; i++) {
      const Share rows = range(i, x[2], y[2], 0);
      for (int64_t j = 0; j < y[3]; j++) {
        const Share columns = range(j, x[3], y[3], 1);
        double result = most ? -std::numeric_limits<double>::infinity() : 0.0;
        for (int64_t r = rows.begin; r < rows.end; r++)
          for (int64_t c = columns.begin; c < columns.end; c++) {
            const auto v = double(in[r * x[3] + c]);
            result = most ? (v > result || v != v ? v : result) : result + v;
          }
        int64_t n = (rows.end - rows.begin) * (columns.end - columns.begin);
        if (copy.kind == OpKind::avg_pool && copy.flag) n = copy.window[0] * copy.window[1];
        out[i * y[3] + j] = float(most ? result : result / double(n));
      }
    }
  });
}

void PlainBuilder::mean(const Op& op) {
  const Shape x = session_.shapes_[size_t(op.inputs[0])];
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  std::vector<bool> summed(x.size(), false);
  for (const int64_t d : op.dims) summed[size_t(d)] = true;
  std::vector<int64_t> steps(x.size(), 0);
  int64_t outputs = 1;
  for (size_t d = x.size(); d-- > 0;)
    if (!summed[d]) {
      steps[d] = outputs;
      outputs *= x[d];
    }
  const int64_t inner = x.back(), rows = count(x) / inner;
  const double divisor = op.kind == OpKind::sum ? 1.0 : double(rows * inner) / double(outputs);
  const int sums = session_.new_buffer(outputs * int64_t(sizeof(double)));
  session_.add_stage(1, {from, to, sums}, [=](Context& context, int64_t, int) {
    const float* in = floats(context, from);
    float* out = floats(context, to);
    auto* const sum = reinterpret_cast<double*>(context.buffer(sums));
    std::fill(sum, sum + outputs, 0.0);
    for (int64_t r = 0; r < rows; r++, in += inner) {
      double* target = sum + row_start(x, steps, r);
      if (steps.back() == 0)
        *target += std::accumulate(in, in + inner, 0.0);
      else
        for (int64_t i = 0; i < inner; i++) target[i * steps.back()] += double(in[i]);
    }
    for (int64_t i = 0; i < outputs; i++) out[i] = float(sum[i] / divisor);
  });
}

void PlainBuilder::softmax(const Op& op) {
  const Shape x = session_.shapes_[size_t(op.inputs[0])];
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const int64_t n = x[size_t(op.dim)], step = strides_of(x)[size_t(op.dim)], total = count(x);
  const auto kernel = session_.table_.softmax;
  session_.add_stage(1, {from, to}, [=](Context& context, int64_t, int) {
    const float* in = floats(context, from);
    float* out = floats(context, to);
    if (step == 1) {
      std::memcpy(out, in, size_t(total) * 4);
      kernel(out, total / n, n);
      return;
    }
    for (int64_t i = 0; i < total / n; i++) {
      const int64_t at = i / step * step * n + i % step;
      float most = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int64_t k = 0; k < n; k++) most = std::max(most, in[at + k * step]);
      for (int64_t k = 0; k < n; k++) sum += out[at + k * step] = std::exp(in[at + k * step] - most);
      for (int64_t k = 0; k < n; k++) out[at + k * step] /= sum;
    }
  });
}

void PlainBuilder::layer_norm(const Op& op) {
  const Shape x = session_.shapes_[size_t(op.inputs[0])];
  const int from = session_.plain(op.inputs[0]), to = session_.new_plain(op.output);
  const int64_t n = count(Shape(x.end() - op.n_dims, x.end())), rows = count(x) / n;
  const auto scale = std::make_shared<std::vector<float>>(size_t(n), 1.0f);
  const auto shift = std::make_shared<std::vector<float>>(size_t(n), 0.0f);
  if (op.weight) *scale = op.weight->all();
  if (op.bias) *shift = op.bias->all();
  const double epsilon = op.epsilon;
  const int64_t tasks = tasks_for(session_.threads_, rows, rows * n);
  session_.add_stage(tasks, {from, to}, [=](Context& context, int64_t task, int) {
    const Share share = share_of(rows, task, tasks);
    for (int64_t r = share.begin; r < share.end; r++) {
      const float* in = floats(context, from) + r * n;
      float* out = floats(context, to) + r * n;
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < n; i++) sum += double(in[i]);
      const double mean = sum / double(n);
      for (int64_t i = 0; i < n; i++) squares += (double(in[i]) - mean) * (double(in[i]) - mean);
      const auto inverse = float(1.0 / std::sqrt(squares / double(n) + epsilon));
      for (int64_t i = 0; i < n; i++)
        out[i] = (in[i] - float(mean)) * inverse * (*scale)[size_t(i)] + (*shift)[size_t(i)];
    }
  });
}

}  // namespace secateur
