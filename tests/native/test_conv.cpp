// Every row and dense kernel of every instruction set of this machine, and whole convolutions through the layouts,
// against reference.h. Prints one line for each instruction set; exits with 1 at the first difference, or
// if no convolution had its input sliced among threads.
#include <memory>

#include "conv.h"
#include "dispatch.h"
#include "mover.h"
#include "testing.h"
#include "winograd.h"

using namespace secateur;
using namespace testing;

namespace {

// One tile of one kernel: two blocks of steps, so that partial sums are kept once and finished once.
void check_rows(const KernelTable& table, const RowsKernel& kernel) {
  const int64_t vector = table.lanes * table.number_bytes, th = kernel.tile_height, tw = kernel.tile_width;
  const int64_t stride = kernel.stride_x ? kernel.stride_x : 3;
  const int64_t columns = (tw - 1) * stride + 3, rows = th + 2, n_rows = 3;
  const int64_t in_row = columns * vector, plane = rows * in_row + 64 * between(0, 2);
  Buffer input(2 * plane), residual(n_rows * th * tw * vector), output(n_rows * th * tw * vector);
  Buffer partial(n_rows * th * tw * vector);
  std::vector<Step> steps[2];
  std::vector<double> weights[2];
  std::vector<RowRun> runs[2];
  for (int block = 0; block < 2; block++) {
    for (int32_t r = 0; r < n_rows; r++) {
      const auto n = int32_t(between(0, 9));
      runs[block].push_back({r, n});
      for (int i = 0; i < n; i++) {
        const float weight = uniform();
        weights[block].push_back(double(weight));
        steps[block].push_back({table.weight_bits(weight),
                                int32_t(between(0, 1) * plane + between(0, 2) * in_row + between(0, 2) * vector)});
      }
    }
  }
  const float bias[] = {uniform(), uniform(), uniform()};
  const Activation activation = some_activation();
  const auto view = [&](const Buffer& b) { return LaneView{b.data, th * tw * vector, tw * vector}; };
  for (int block = 0; block < 2; block++) {
    std::vector<Step> padded = steps[block];
    padded.resize(padded.size() + 8, Step{0, 0});
    RowsCall call{};
    call.runs = runs[block].data();
    call.n_runs = n_rows;
    call.steps = padded.data();
    call.input = input.data;
    call.input_row = in_row;
    call.input_step = stride * vector;
    call.partial = partial.data;
    call.bias = bias;
    call.finish = {view(output), view(residual), activation};
    call.first = block == 0;
    call.last = block == 1;
    kernel.run(call);
  }
  for (int64_t r = 0; r < n_rows; r++)
    for (int64_t y = 0; y < th; y++)
      for (int64_t x = 0; x < tw; x++)
        for (int64_t lane = 0; lane < table.lanes; lane++) {
          double sum = double(bias[r]), magnitude = 0.0;
          for (int block = 0; block < 2; block++) {
            size_t at = 0;
            for (int64_t q = 0; q < r; q++) at += size_t(runs[block][size_t(q)].count);
            for (int32_t i = 0; i < runs[block][size_t(r)].count; i++) {
              const int32_t offset = steps[block][at + size_t(i)].offset;
              const double term = weights[block][at + size_t(i)] *
                                  input.number(offset + y * in_row + x * stride * vector + lane * number_bytes);
              sum += term;
              magnitude += std::fabs(term);
            }
          }
          const int64_t place = ((r * th + y) * tw + x) * vector + lane * number_bytes;
          sum += residual.number(place);
          expect_near(output.number(place), reference::activated(sum, activation), magnitude, "rows");
        }
}

void check_dense(const KernelTable& table, const DenseKernel& kernel) {
  const int64_t vector = table.lanes * table.number_bytes, th = kernel.tile_height, tw = kernel.tile_width,
                m = kernel.channels;
  const int64_t stride = kernel.stride_x ? kernel.stride_x : 3, n = between(0, 3) ? between(0, 20) : between(250, 600);
  const int64_t columns = (tw - 1) * stride + 3, in_row = columns * vector;
  Buffer input((th + 2) * in_row), output(m * th * tw * vector);
  std::vector<int32_t> offsets;
  std::vector<float> weights, bias;
  std::vector<WeightBits> bits;
  for (int64_t k = 0; k < n; k++) offsets.push_back(int32_t(between(0, 2) * in_row + between(0, 2) * vector));
  for (int64_t k = 0; k < n * m; k++) weights.push_back(uniform());
  for (const float weight : weights) bits.push_back(table.weight_bits(weight));
  for (int64_t k = 0; k < m; k++) bias.push_back(uniform());
  const Activation activation = some_activation();
  const Buffer partial(m * th * tw * vector);
  DenseCall call{};
  call.input = input.data;
  call.input_row = in_row;
  call.input_step = stride * vector;
  call.partial = partial.data;
  call.bias = bias.data();
  call.finish = {{output.data, th * tw * vector, tw * vector}, {}, activation};
  // In one block or two; halves are always summed in one.
  int64_t begin = 0, end = number_bytes == 4 && n > 1 ? between(1, n - 1) : n;
  do {
    call.weights = bits.data() + begin * m;
    call.offsets = offsets.data() + begin;
    call.n_steps = end - begin;
    call.first = begin == 0;
    call.last = end == n;
    kernel.run(call);
    begin = end;
    end = n;
  } while (begin < n);
  for (int64_t c = 0; c < m; c++)
    for (int64_t y = 0; y < th; y++)
      for (int64_t x = 0; x < tw; x++)
        for (int64_t lane = 0; lane < table.lanes; lane++) {
          double sum = double(bias[size_t(c)]), magnitude = 0.0;
          for (int64_t k = 0; k < n; k++) {
            const double term =
                double(weights[size_t(k * m + c)]) *
                input.number(offsets[size_t(k)] + y * in_row + x * stride * vector + lane * number_bytes);
            sum += term;
            magnitude += std::fabs(term);
          }
          expect_near(output.number(((c * th + y) * tw + x) * vector + lane * number_bytes),
                      reference::activated(sum, activation), magnitude, "dense");
        }
}

void move(const KernelTable& table, const LaneLayout& from, char* source, const LaneLayout& to, char* target,
          const Window& window) {
  const bool same = source == target;
  const Mover mover(table, from, 0, to, same ? 0 : 1, window, Region::all);
  for (int32_t group = 0; group < to.groups; group++) mover.run(source, {group, {0, to.channels}}, target);
}

// A convolution as the engine would run it: of any geometry, dense and sparse, or by Winograd's transforms; whether it
// was sliced.
bool check_conv(const KernelTable& table, bool winograd) {
  reference::Conv p{};
  p.groups = winograd || between(0, 3) ? 1 : between(1, 3);
  const auto one_to = [&](int64_t most) { return winograd ? 1 : between(1, most); };
  p.kh = winograd ? 3 : between(1, 4), p.kw = winograd ? 3 : between(1, 4);
  p.sy = one_to(3), p.sx = one_to(3), p.dy = one_to(2), p.dx = one_to(2);
  p.top = between(0, p.kh * p.dy - 1), p.left = between(0, p.kw * p.dx - 1);
  p.outputs = p.groups * between(1, winograd ? 40 : 9);
  const int64_t reach_y = (p.kh - 1) * p.dy + 1, reach_x = (p.kw - 1) * p.dx + 1;
  int64_t images_lanes = 1;
  while (images_lanes < table.lanes && between(0, 1)) images_lanes *= 2;
  const int64_t images = between(images_lanes / 2 + 1, images_lanes),
                channels = p.groups * between(1, winograd ? 160 : 24);
  reference::Image x(images, channels, between(1, 20) + reach_y, between(1, 20) + reach_x);
  for (float& number : x.numbers) number = uniform();
  const int64_t bottom = between(0, p.top), right = between(0, p.left);
  const int64_t height = (x.height + p.top + bottom - reach_y) / p.sy + 1;
  const int64_t width = (x.width + p.left + right - reach_x) / p.sx + 1;
  Weight weight;
  weight.shape = {p.outputs, channels / p.groups, p.kh, p.kw};
  const double zeros = double(between(0, 10)) / 10.0;
  for (int64_t i = 0; i < count(weight.shape); i++)
    weight.numbers.push_back(double(between(0, 99)) < zeros * 100 ? 0.0f : uniform());
  Weight bias;
  bias.shape = {p.outputs};
  for (int64_t i = 0; i < p.outputs; i++) bias.numbers.push_back(uniform());
  reference::Image residual(images, p.outputs, height, width);
  for (float& number : residual.numbers) number = uniform();
  const Activation activation = some_activation();
  const bool with_residual = between(0, 1);

  const Window window{p.kh, p.kw, p.sy, p.sx, p.dy, p.dx, p.top, p.left};
  const auto lanes = int32_t(images_lanes);
  const auto groups = [](int64_t h, int64_t w) { return h == 1 && w == 1 ? 1 : int32_t(between(1, 3)); };
  const LaneLayout output = image_layout(table, lanes, p.outputs, height, width, groups(height, width));
  LaneLayout whole = image_layout(table, lanes, channels, x.height, x.width, groups(x.height, x.width));
  const WindowInput needed = window_input(whole, output, window);
  Buffer from(whole.bytes()), in(needed.layout.bytes()), out(output.bytes()), add(output.bytes());
  if (needed.direct) {
    convert(table, needed.layout, in.data, x, true);
    move(table, needed.layout, in.data, needed.layout, in.data, every_pixel);
  } else {
    convert(table, whole, from.data, x, true);
    move(table, whole, from.data, needed.layout, in.data, window);
  }
  convert(table, output, add.data, residual, true);
  const bool dense = between(0, 1);
  const bool copies = !needed.direct && output.groups == 1 && between(0, 1);
  const Sharing sharing{output.groups > 1 ? 1 : int(between(1, 3)), copies || between(0, 1), copies};
  const ConvShape shape{channels, p.outputs, p.groups, window};
  std::unique_ptr<const Convolution> made;
  if (winograd)
    made = std::make_unique<WinogradPlan>(table, shape, weight, &bias, activation, output, sharing);
  else
    made = std::make_unique<ConvPlan>(table, shape, weight, &bias, activation, dense, needed.layout, output, sharing);
  const Convolution& plan = *made;
  Buffer scratch(std::max<int64_t>(plan.scratch_bytes(), 64));
  const Mover mover(table, whole, 0, needed.layout, 1, window, Region::all);
  const Buffer copy(std::max<int64_t>(plan.channels_at_a_time() * needed.layout.plane(), 64));
  for (int64_t group = 0; group < output.groups; group++) {
    Convolution::Call call{};
    call.input = needed.layout.view(copies ? copy.data : in.data, group);
    call.output = output.view(out.data, group);
    if (with_residual) call.residual = output.view(add.data, group);
    call.scratch = scratch.data;
    if (copies) call.fill = [&](const Share& channels) { mover.run(from.data, {0, channels}, copy.data); };
    for (int64_t task = 0; task < plan.n_tasks(); task++) plan.run(task, call);
    if (plan.sliced()) plan.add_slices({0, p.outputs}, call);
  }
  reference::Image got(images, p.outputs, height, width);
  convert(table, output, out.data, got, false);
  reference::Image wanted = reference::conv(x, p, weight.numbers, bias.numbers, with_residual ? &residual : nullptr,
                                            height, width, activation);
  for (float& number : x.numbers) number = std::fabs(number);
  for (float& number : weight.numbers) number = std::fabs(number);
  const std::vector<float> none(size_t(p.outputs), 0.0f);
  reference::Image magnitudes = reference::conv(x, p, weight.numbers, none, nullptr, height, width, Activation::none);
  const double transforms = winograd ? 4.0 : 1.0;  // what they add up before and after the products
  for (size_t i = 0; i < got.numbers.size(); i++)
    expect_near(double(got.numbers[i]), double(wanted.numbers[i]), transforms * double(magnitudes.numbers[i]),
                winograd ? "winograd" : "conv");
  return plan.sliced();
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
  for (const KernelTable* table : usable_tables()) {
    number_bytes = table->number_bytes;
    int kernels = 0;
    for (int round = 0; round < 3; round++) {
      for (int32_t i = 0; i < table->n_rows; i++)
        if (table->rows[i].run) check_rows(*table, table->rows[i]), kernels += round == 0;
      for (int32_t i = 0; i < table->n_dense; i++)
        if (table->dense[i].run) check_dense(*table, table->dense[i]), kernels += round == 0;
    }
    int sliced = 0;
    for (int i = 0; i < rounds; i++) sliced += check_conv(*table, false);
    for (int i = 0; table->winograd_input && i < rounds; i++) check_conv(*table, true);
    std::printf("%s: %d kernels, %d convolutions agree, %d of them sliced\n", table->isa, kernels, rounds, sliced);
    if (!sliced) return 1;
  }
}
