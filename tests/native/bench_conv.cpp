// How fast the kernels run on one thread, as lines of JSON: first what they reach when all they read lies in one cache,
// then layer by layer; GFLOP/s count non-zeros only, and for
// Winograd's transforms the products that a dense convolution has. benchmarks/kernels.py keeps them.
//   bench_conv [fp32|fp16] [images] [zeros …]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "conv.h"
#include "dispatch.h"
#include "winograd.h"

using namespace secateur;

namespace {

struct Layer {
  int64_t channels, outputs, size, window, stride;
};

const Layer layers[] = {
    {64, 64, 32, 3, 1},    {128, 128, 16, 3, 1}, {256, 256, 8, 3, 1},  {512, 512, 4, 3, 1},  {512, 512, 2, 3, 1},
    {64, 128, 32, 3, 2},   {64, 64, 56, 3, 1},   {128, 128, 28, 3, 1}, {256, 256, 14, 3, 1}, {512, 512, 7, 3, 1},
    {64, 256, 56, 1, 1},   {256, 64, 56, 1, 1},  {128, 512, 28, 1, 1}, {512, 128, 28, 1, 1}, {256, 1024, 14, 1, 1},
    {1024, 256, 14, 1, 1}, {512, 2048, 7, 1, 1}, {2048, 512, 7, 1, 1},
};

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Memory {
  char* data;
  explicit Memory(int64_t bytes)
      : data(static_cast<char*>(::operator new(size_t(bytes) + 4096, std::align_val_t(4096)))) {
    std::memset(data, 0, size_t(bytes) + 4096);
  }
  ~Memory() { ::operator delete(data, std::align_val_t(4096)); }
};

template <typename Call>
double best_seconds(const Call& call) {
  double best = 1e9, total = 0;
  for (int repeat = 0; repeat < 5 || (total < 0.1 && repeat < 200); repeat++) {
    const double start = thread_seconds();
    call();
    const double seconds = thread_seconds() - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

void print_limit(const char* kernel, int64_t kilobytes, double gflops) {
  std::printf("{\"limit\": \"%s\", \"kilobytes\": %lld, \"gflops\": %.1f}\n", kernel, (long long)kilobytes, gflops);
}

// The row kernel of sixteen pixels, rows so long that their ends do not count, input vectors at random in `kilobytes`.
void limit_of_rows(const KernelTable& table, int64_t kilobytes) {
  const RowsKernel* kernel = nullptr;
  for (int32_t i = 0; i < table.n_rows; i++) {
    const RowsKernel& k = table.rows[i];
    if (k.tile_height == 4 && k.tile_width == 4 && k.stride_x == 1) kernel = &k;
  }
  if (!kernel) return;
  constexpr int32_t n_steps = 4096, n_rows = 64;
  const int64_t vector = table.lanes * table.number_bytes, tile = 16 * vector;
  Memory input(kilobytes * 1024), output(tile);
  std::mt19937 random(1);
  std::vector<Step> steps(n_steps * n_rows + 8, Step{0, 0});  // kernels read ahead
  const auto places = uint32_t(kilobytes * 1024 / tile);
  for (int32_t i = 0; i < n_steps * n_rows; i++)
    steps[size_t(i)] = {table.weight_bits(1.0f), int32_t(random() % places * tile)};
  const std::vector<RowRun> runs(n_rows, RowRun{0, n_steps});
  const float bias = 0.0f;
  RowsCall call{};
  call.runs = runs.data();
  call.n_runs = n_rows;
  call.steps = steps.data();
  call.input = input.data;
  call.input_row = 4 * vector;
  call.input_step = vector;
  call.bias = &bias;
  call.finish = {{output.data, 0, 4 * vector}, {}, Activation::none};
  call.first = call.last = true;
  const double best = best_seconds([&] { kernel->run(call); });
  print_limit("rows", kilobytes, 2.0 * n_steps * n_rows * 16 * table.lanes / best / 1e9);
}

#if defined(__x86_64__)
// Sixteen multiply-adds, each with an operand of its own from the first-level cache, and nothing else: what no row
// kernel can exceed, though this processor loads two vectors a cycle and multiplies and adds two.
__attribute__((target("avx512f"))) void limit_of_operands() {
  typedef float Vector __attribute__((vector_size(64)));
  constexpr int64_t n = 100000;
  alignas(64) static Vector from[16] = {};
  const double best = best_seconds([&]() __attribute__((target("avx512f"))) {
    Vector sums[16] = {}, weight = {};
    for (int64_t i = 0; i < n; i++) {
#pragma GCC unroll 16
      for (int s = 0; s < 16; s++)
        __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sums[s]) : "v"(weight), "m"(from[s]));
    }
  });
  print_limit("multiply-adds with an operand each", 1, 2.0 * n * 16 * 16 / best / 1e9);
}
#endif

// The fastest dense kernel with all it reads in the first-level cache.
void limit_of_dense(const KernelTable& table) {
  constexpr int32_t n_steps = 288;
  double most = 0;
  for (int32_t i = 0; i < table.n_dense; i++) {
    const DenseKernel& kernel = table.dense[i];
    if (!kernel.run || kernel.stride_x != 1) continue;
    const int64_t vector = table.lanes * table.number_bytes, pixels = kernel.tile_height * kernel.tile_width;
    Memory input(pixels * vector), output(pixels * vector);
    const std::vector<WeightBits> weights(size_t(n_steps * kernel.channels), table.weight_bits(1.0f));
    const std::vector<float> bias(size_t(kernel.channels), 0.0f);
    const std::vector<int32_t> offsets(n_steps, 0);
    DenseCall call{};
    call.weights = weights.data();
    call.offsets = offsets.data();
    call.n_steps = n_steps;
    call.input = input.data;
    call.input_row = kernel.tile_width * vector;
    call.input_step = vector;
    call.bias = bias.data();
    call.finish = {{output.data, 0, kernel.tile_width * vector}, {}, Activation::none};
    call.first = call.last = true;
    const double best = best_seconds([&] {
      for (int repeat = 0; repeat < 1000; repeat++) kernel.run(call);
    });
    most = std::max(most, 2000.0 * n_steps * double(kernel.channels) * double(pixels) * table.lanes / best / 1e9);
  }
  print_limit("dense", 4, most);
}

void measure(const KernelTable& table, const Layer& layer, int32_t images, double zeros, KernelChoice kernel) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  Weight weight;
  weight.shape = {layer.outputs, layer.channels, layer.window, layer.window};
  int64_t stored = 0;
  for (int64_t i = 0; i < count(weight.shape); i++) {
    const float x = uniform(random) >= float(zeros) ? uniform(random) + 0.1f : 0.0f;
    stored += x != 0.0f;
    weight.numbers.push_back(x);
  }
  const int64_t pad = layer.window / 2, size = (layer.size - 1) / layer.stride + 1;
  const Window window{layer.window, layer.window, layer.stride, layer.stride, 1, 1, pad, pad};
  const LaneLayout output = image_layout(table, images, layer.outputs, size, size, 1);
  const LaneLayout whole = image_layout(table, images, layer.channels, layer.size, layer.size, 1);
  const LaneLayout input = window_input(whole, output, window).layout;
  const ConvShape shape{layer.channels, layer.outputs, 1, window};
  const Sharing alone{1, false, false};
  std::unique_ptr<const Convolution> plan;
  if (kernel == KernelChoice::winograd) {
    if (!WinogradPlan::takes(table, shape)) return;
    plan = std::make_unique<WinogradPlan>(table, shape, weight, nullptr, Activation::relu, output, alone);
  } else {
    plan = std::make_unique<ConvPlan>(table, shape, weight, nullptr, Activation::relu, kernel == KernelChoice::dense,
                                      input, output, alone);
  }
  Memory in(input.bytes()), out(output.bytes()), scratch(plan->scratch_bytes());
  const double best = best_seconds([&] {
    for (int64_t task = 0; task < plan->n_tasks(); task++)
      plan->run(task, {input.view(in.data), output.view(out.data), {}, scratch.data, {}});
  });
  const double useful = 2.0 * double(size * size * images);
  std::printf(
      "{\"layer\": [%lld, %lld, %lld, %lld, %lld], \"zeros\": %.2f, \"kernel\": \"%s\", \"us\": %.1f, "
      "\"gflops\": %.1f, \"tiles\": \"%s\"}\n",
      (long long)layer.channels, (long long)layer.outputs, (long long)layer.size, (long long)layer.window,
      (long long)layer.stride, zeros, kernel_name(kernel), best * 1e6, useful * double(stored) / best / 1e9,
      plan->describe().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const KernelTable& table = chosen_table(argc > 1 && std::strcmp(argv[1], "fp16") == 0);
  const int32_t images = argc > 2 ? int32_t(std::atoi(argv[2])) : table.lanes;
  std::vector<double> zeros;
  for (int i = 3; i < argc; i++) zeros.push_back(std::atof(argv[i]));
  const std::vector<KernelChoice> with_zeros{KernelChoice::rows};
  const std::vector<KernelChoice> without_zeros{KernelChoice::dense, KernelChoice::winograd};
  if (zeros.empty()) zeros = {0.0, 0.5, 0.65, 0.8, 0.9, 0.95};
  std::printf("{\"isa\": \"%s\", \"images\": %d}\n", table.isa, images);
  limit_of_dense(table);
#if defined(__x86_64__)
  if (std::strcmp(table.isa, "avx512") == 0) limit_of_operands();
#endif
  for (const int64_t kilobytes : {16, 512, 8192}) limit_of_rows(table, kilobytes);
  for (const double z : zeros)
    for (const Layer& layer : layers)
      for (const KernelChoice kernel : z == 0.0 ? without_zeros : with_zeros) measure(table, layer, images, z, kernel);
}
