// Every kernel of every instruction set of this machine but the convolutions (test_conv.cpp), at random sizes, against
// plain loops. Prints one line for each instruction set; exits with 1 at the first difference.
#include <algorithm>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "testing.h"

using namespace secateur;
using namespace testing;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// Vectors of random lanes, with room behind rows and channels.
struct Block {
  int64_t channels, height, width, lanes, row, plane;
  Buffer memory;

  Block(int64_t lanes_, int64_t c, int64_t h, int64_t w)
      : channels(c),
        height(h),
        width(w),
        lanes(lanes_),
        row((w + between(0, 2)) * lanes * number_bytes),
        plane(h * row + between(0, 2) * lanes * number_bytes),
        memory(c * plane) {}
  LaneView view() const { return {memory.data, plane, row}; }
  int64_t place(int64_t c, int64_t y, int64_t x, int64_t lane) const {
    return c * plane + y * row + (x * lanes + lane) * number_bytes;
  }
  double at(int64_t c, int64_t y, int64_t x, int64_t lane) const { return memory.number(place(c, y, x, lane)); }
  void set(int64_t c, int64_t y, int64_t x, int64_t lane, double v) const { memory.set(place(c, y, x, lane), v); }
};

// Compares each number of a block with what `wanted` says; `scale` as in expect_near.
template <typename Wanted>
void expect_block(const Block& block, const char* what, const Wanted& wanted) {
  for (int64_t c = 0; c < block.channels; c++)
    for (int64_t y = 0; y < block.height; y++)
      for (int64_t x = 0; x < block.width; x++)
        for (int64_t lane = 0; lane < block.lanes; lane++) {
          const double number = wanted(c, y, x, lane);
          expect_near(block.at(c, y, x, lane), number, std::fabs(number), what);
        }
}

void check_binary(void (*kernel)(const BinaryCall&), int64_t lanes) {
  const int64_t c = between(1, 3), h = between(1, 4), w = between(1, 5);
  const bool one_left = between(0, 3) == 0, one_right = between(0, 3) == 0;  // one pixel for all
  const Block left(lanes, c, one_left ? 1 : h, one_left ? 1 : w), right(lanes, c, one_right ? 1 : h, one_right ? 1 : w);
  const Block output(lanes, c, h, w);
  const auto operation = Binary(between(0, 3));
  const Activation activation = some_activation();
  BinaryCall call{left.view(),
                  right.view(),
                  output.view(),
                  one_left ? 0 : lanes * number_bytes,
                  one_right ? 0 : lanes * number_bytes,
                  c,
                  h,
                  w,
                  operation,
                  activation};
  if (one_left) call.left.row = 0;
  if (one_right) call.right.row = 0;
  kernel(call);
  expect_block(output, "binary", [&](int64_t i, int64_t y, int64_t x, int64_t lane) {
    const auto a = left.at(i, one_left ? 0 : y, one_left ? 0 : x, lane);
    const auto b = right.at(i, one_right ? 0 : y, one_right ? 0 : x, lane);
    const double result = operation == Binary::add   ? a + b
                          : operation == Binary::sub ? a - b
                          : operation == Binary::mul ? a * b
                                                     : a / b;
    return reference::activated(result, activation);
  });
}

void check_map(void (*kernel)(const MapCall&), int64_t lanes) {
  const int64_t c = between(1, 3), h = between(1, 4), w = between(1, 5);
  const Block input(lanes, c, h, w), output(lanes, c, h, w);
  const Buffer scale(c * 4, 4), shift(c * 4, 4);
  const bool scaled = between(0, 1), clipped = between(0, 1);
  const float low = clipped ? -0.3f : -infinity, high = clipped ? 0.4f : infinity;
  const Activation activation = some_activation();
  kernel({input.view(), output.view(), c, h, w, scaled ? scale.floats() : nullptr, scaled ? shift.floats() : nullptr,
          activation, low, high});
  expect_block(output, "map", [&](int64_t i, int64_t y, int64_t x, int64_t lane) {
    auto v = input.at(i, y, x, lane);
    if (scaled) v = v * double(scale.floats()[i]) + double(shift.floats()[i]);
    return std::min(std::max(reference::activated(v, activation), double(low)), double(high));
  });
}

void check_pool(void (*kernel)(const PoolCall&), int64_t lanes, bool mean) {
  const int64_t c = between(1, 3), h = between(1, 4), w = between(1, 5);
  const auto wy = int32_t(between(1, 3)), wx = int32_t(between(1, 3));
  const auto sy = int32_t(between(1, 3)), sx = int32_t(between(1, 3));
  const Block input(lanes, c, (h - 1) * sy + wy, (w - 1) * sx + wx), output(lanes, c, h, w);
  const float scale = 0.25f;
  if (!mean && between(0, 3) == 0)
    input.set(0, between(0, input.height - 1), between(0, input.width - 1), 0, std::nan(""));
  kernel({input.view(), output.view(), c, h, w, wy, wx, sy, sx, scale});
  expect_block(output, mean ? "mean_pool" : "max_pool", [&](int64_t i, int64_t y, int64_t x, int64_t lane) {
    double sum = 0, most = -double(infinity);
    for (int64_t ky = 0; ky < wy; ky++)
      for (int64_t kx = 0; kx < wx; kx++) {
        const auto v = input.at(i, y * sy + ky, x * sx + kx, lane);
        sum += v;
        if (v > most || std::isnan(v)) most = v;  // and then a NaN it stays
      }
    return mean ? sum * double(scale) : most;
  });
}

void check_mean(void (*kernel)(const MeanCall&), int64_t lanes) {
  const int64_t c = between(1, 3), h = between(1, 4), w = between(1, 5);
  const Block input(lanes, c, h, w), output(lanes, c, 1, 1);
  int64_t per_image = 1;
  while (per_image < lanes && between(0, 2)) per_image *= 2;
  std::vector<float> valid;
  for (int64_t i = 0; i < h * w * lanes; i++) valid.push_back(between(0, 4) ? 1.0f : 0.0f);
  for (int64_t lane = 0; lane < lanes; lane++)
    if (valid[size_t(lane)] == 0.0f) input.set(0, 0, 0, lane, double(infinity));  // what is not valid may be anything
  const float scale = 0.125f;
  kernel({input.view(), output.view(), c, h, w, valid.data(), int32_t(per_image), scale});
  expect_block(output, "mean", [&](int64_t i, int64_t, int64_t, int64_t lane) {
    double sum = 0;
    for (int64_t y = 0; y < h; y++)
      for (int64_t x = 0; x < w; x++)
        for (int64_t l = lane / per_image * per_image; l < (lane / per_image + 1) * per_image; l++)
          if (valid[size_t((y * w + x) * lanes + l)] != 0.0f) sum += input.at(i, y, x, l);
    return sum * double(scale);
  });
}

void check_layer_norm(void (*kernel)(const NormCall&), int64_t lanes) {
  const int64_t c = between(1, 40), w = between(1, 5);
  const Block input(lanes, c, 1, w), output(lanes, c, 1, w);
  const Buffer scale(c * 4, 4), shift(c * 4, 4);
  const bool scaled = between(0, 1), shifted = between(0, 1);
  const float epsilon = 1e-2f;
  kernel({input.view(), output.view(), c, w, scaled ? scale.floats() : nullptr, shifted ? shift.floats() : nullptr,
          epsilon});
  expect_block(output, "layer_norm", [&](int64_t i, int64_t, int64_t x, int64_t lane) {
    double mean = 0, variance = 0;
    for (int64_t k = 0; k < c; k++) mean += input.at(k, 0, x, lane) / double(c);
    for (int64_t k = 0; k < c; k++) variance += std::pow(input.at(k, 0, x, lane) - mean, 2) / double(c);
    const double v = (input.at(i, 0, x, lane) - mean) / std::sqrt(variance + double(epsilon));
    return v * (scaled ? double(scale.floats()[i]) : 1.0) + (shifted ? double(shift.floats()[i]) : 0.0);
  });
}

void check_activate(void (*kernel)(float*, int64_t, Activation), int64_t lanes) {
  for (int activation = 0; activation <= int(Activation::round); activation++) {
    const int64_t n = between(0, 4 * lanes);
    const Buffer numbers(n * 4, 4);
    std::vector<float> before;
    for (int64_t i = 0; i < n; i++) {
      float& x = numbers.floats()[i];
      x *= between(0, 1) ? 4.0f : 200.0f;  // the exponential overflows float from 88 on
      if (between(0, 20) == 0) x = 0.0f;
      if (between(0, 20) == 0) x = std::numeric_limits<float>::quiet_NaN();
      before.push_back(x);
    }
    kernel(numbers.floats(), n, Activation(activation));
    for (int64_t i = 0; i < n; i++) {
      const auto x = double(before[size_t(i)]);
      const auto wanted = double(float(std::isnan(x) ? x : reference::activated(x, Activation(activation))));
      expect_near(double(numbers.floats()[i]), wanted, std::fabs(wanted), "activate", 4);
    }
  }
}

void check_matmul(void (*kernel)(const MatmulCall&), int64_t lanes) {
  const int64_t m = between(1, 9), n = between(1, 5 * lanes), k = between(0, 3) ? between(1, 40) : between(250, 300);
  const bool transposed = between(0, 1);
  const int64_t a_row = k + between(0, 3), b_row = (transposed ? k : n) + between(0, 3), c_row = n + between(0, 3);
  const Buffer a(m * a_row * 4, 4), b((transposed ? n : k) * b_row * 4, 4), c(m * c_row * 4, 4);
  const float scale = between(0, 1) ? 1.0f : 0.3f;
  kernel({a.floats(), b.floats(), c.floats(), m, n, k, a_row, b_row, c_row, transposed, scale});
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0, size = 0;
      for (int64_t l = 0; l < k; l++) {
        const float right = b.floats()[transposed ? j * b_row + l : l * b_row + j];
        sum += double(a.floats()[i * a_row + l]) * double(right);
        size += std::fabs(double(a.floats()[i * a_row + l]) * double(right));
      }
      expect_near(double(c.floats()[i * c_row + j]), sum * double(scale), size, "matmul", 4);
    }
}

void check_softmax(void (*kernel)(float*, int64_t, int64_t), int64_t lanes) {
  const int64_t rows = between(1, 3), n = between(1, 4 * lanes);
  const Buffer numbers(rows * n * 4, 4);
  std::vector<double> before;
  for (int64_t i = 0; i < rows * n; i++) {
    float& x = numbers.floats()[i];
    x *= 60.0f;                                      // differences of which the exponential is no float
    if (i % n && between(0, 4) == 0) x = -infinity;  // masked
    before.push_back(double(x));
  }
  kernel(numbers.floats(), rows, n);
  for (int64_t r = 0; r < rows; r++) {
    const auto row = before.begin() + r * n;
    const double most = *std::max_element(row, row + n);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += std::exp(row[i] - most);
    for (int64_t i = 0; i < n; i++)
      expect_near(double(numbers.floats()[r * n + i]), std::exp(row[i] - most) / sum, 0.0, "softmax", 4);
  }
}

void check_gather(void (*kernel)(const GatherCall&), int64_t lanes) {
  const int64_t slices = between(1, 3), inputs = between(1, 50), outputs = slices * lanes - between(0, lanes - 1);
  std::vector<int32_t> n_steps, columns, rows;
  for (int64_t s = 0; s < slices; s++) n_steps.push_back(int32_t(between(0, 9)));
  for (int64_t i = 0; i < slices * lanes; i++) rows.push_back(i < outputs ? int32_t(i) : -1);
  std::shuffle(rows.begin(), rows.end(), generator);
  int64_t total = 0;
  for (const int32_t n : n_steps) total += n * lanes;
  for (int64_t i = 0; i < total; i++) columns.push_back(int32_t(between(0, inputs - 1)));
  const Buffer weights(total * 4, 4), input(inputs * 4, 4), bias(outputs * 4, 4);
  const Buffer residual(outputs * 4, 4), output(outputs * 4, 4);
  const bool add = between(0, 1);
  const Activation activation = some_activation();
  kernel({weights.floats(), columns.data(), n_steps.data(), rows.data(), slices, bias.floats(), input.floats(),
          add ? residual.floats() : nullptr, output.floats(), activation});
  int64_t base = 0;
  for (int64_t s = 0; s < slices; base += n_steps[size_t(s)] * lanes, s++)
    for (int64_t lane = 0; lane < lanes; lane++) {
      const int64_t row = rows[size_t(s * lanes + lane)];
      if (row < 0) continue;
      double sum = double(bias.floats()[row]) + (add ? double(residual.floats()[row]) : 0.0);
      for (int64_t k = 0; k < n_steps[size_t(s)]; k++) {
        const auto at = size_t(base + k * lanes + lane);
        sum += double(weights.floats()[at]) * double(input.floats()[columns[at]]);
      }
      expect_near(double(output.floats()[row]), reference::activated(sum, activation), std::fabs(sum), "gather", 4);
    }
}

// Vectors of two planes of `places` each, moved by patterns of every kind.
void check_move(void (*kernel)(const MoveCall&), int64_t lanes) {
  const int64_t channels = between(1, 3), places = between(1, 6), n_patterns = 4, vector = lanes * number_bytes;
  const Buffer from(channels * places * vector), to(channels * places * vector);
  std::vector<Move> moves;
  std::vector<int32_t> patterns;
  for (int64_t i = 0; i < n_patterns * lanes; i++)  // the last pattern names floats of the whole plane
    patterns.push_back(int32_t(between(-1, (i / lanes + 1 == n_patterns ? places * lanes : lanes) - 1)));
  for (int64_t place = 0; place < places; place++)
    for (int64_t n = between(1, 3), k = 0; k < n; k++) {
      const auto source = int32_t(between(-2, places - 1));
      const auto pattern = int32_t(source == from_many ? n_patterns - 1 : between(0, n_patterns - 2));
      moves.push_back({int32_t(place * vector), source < 0 ? source : source * int32_t(vector), pattern, k == 0});
    }
  const float fill = -7.5f;
  std::vector<double> wanted;
  for (int64_t i = 0; i < channels * places * lanes; i++) wanted.push_back(to.number(i * number_bytes));
  for (int64_t c = 0; c < channels; c++)
    for (const Move& move : moves)
      for (int64_t lane = 0; lane < lanes; lane++) {
        const auto taken = [&](int64_t number) { return from.number((c * places * lanes + number) * number_bytes); };
        const int32_t place = patterns[size_t(move.pattern * lanes + lane)];
        double& number = wanted[size_t((c * places) * lanes + move.to / number_bytes + lane)];
        if (move.from == from_none)
          number = double(fill);
        else if (move.from == from_many)
          number = place < 0 ? double(fill) : taken(place);
        else if (place >= 0)
          number = taken(move.from / number_bytes + place);
        else if (move.first)
          number = double(fill);
      }
  kernel({to.data, places * vector, from.data, places * vector, moves.data(), int64_t(moves.size()), patterns.data(),
          fill, channels});
  for (size_t i = 0; i < wanted.size(); i++) expect_near(to.number(int64_t(i) * number_bytes), wanted[i], 0.0, "move");
}

// To lanes, each number to its place, and back, bit for bit.
void check_convert(const KernelTable& table) {
  const bool tokens = between(0, 1);
  int32_t images_lanes = 1;
  while (!tokens && images_lanes < table.lanes && between(0, 1)) images_lanes *= 2;
  const int64_t images = between(images_lanes / 2 + 1, images_lanes), channels = between(1, 40);
  const bool pixel = between(0, 4) == 0;
  reference::Image image(images, channels, tokens || pixel ? 1 : between(1, 20), pixel ? 1 : between(1, 40));
  for (float& number : image.numbers) number = uniform();
  const LaneLayout layout = tokens ? token_layout(table, image.width, channels)
                                   : image_layout(table, images_lanes, channels, image.height, image.width,
                                                  pixel ? 1 : int32_t(between(1, 3)));
  const Buffer lanes(layout.bytes());
  convert(table, layout, lanes.data, image, true);
  reference::Image again(images, channels, image.height, image.width);
  convert(table, layout, lanes.data, again, false);
  for (int64_t n = 0; n < images; n++)
    for (int64_t c = 0; c < channels; c++)
      for (int64_t y = 0; y < image.height; y++)
        for (int64_t x = 0; x < image.width; x++) {
          const int64_t by = y / layout.block_height, bx = x / layout.block_width;
          const int64_t group = by / layout.grid_y;
          const int64_t lane = (n * layout.grid_y + by % layout.grid_y) * layout.grid_x + bx;
          const int64_t at = group * layout.group_bytes() + c * layout.plane() +
                             (y - by * layout.block_height) * layout.row() +
                             ((x - bx * layout.block_width) * table.lanes + lane) * number_bytes;
          const auto plain =
              size_t(tokens ? x * channels + c : ((n * channels + c) * image.height + y) * image.width + x);
          if (lanes.number(at) != double(image.numbers[plain]) || again.numbers[plain] != image.numbers[plain]) {
            std::printf("%s of a number that is not the same\n",
                        again.numbers[plain] == image.numbers[plain] ? "pack" : "unpack");
            std::exit(1);
          }
        }
}

void check(const KernelTable& table) {
  // A kernel that is added to the table does not compile here, so that whoever adds it adds a test.
  const auto& [isa, lanes, number_size, floats, weight_bits, rows, n_rows, dense, n_dense, winograd_input,
               winograd_output, gather, move, pack, unpack, binary, map, max_pool, mean_pool, mean, layer_norm,
               activate, matmul, softmax] = table;
  check_gather(gather, floats);
  check_move(move, lanes);
  check_convert(table);
  check_binary(binary, lanes);
  check_map(map, lanes);
  check_pool(max_pool, lanes, false);
  check_pool(mean_pool, lanes, true);
  check_mean(mean, lanes);
  check_layer_norm(layer_norm, lanes);
  check_activate(activate, floats);
  check_matmul(matmul, floats);
  check_softmax(softmax, floats);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
  for (const KernelTable* table : usable_tables()) {
    number_bytes = table->number_bytes;
    for (int i = 0; i < rounds; i++) check(*table);
    std::printf("%s: the other kernels agree, %d rounds\n", table->isa, rounds);
  }
}
