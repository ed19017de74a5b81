// How fast convolutions run on one thread, layer by layer: executed GFLOP/s (non-zeros only) and the same as if dense.
//   bench_conv [images] [zeros …]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "conv.h"
#include "dispatch.h"

using namespace secateur;

namespace {

struct Layer {
  int64_t channels, outputs, size, window, stride;
};

const Layer layers[] = {
    {64, 64, 32, 3, 1},    {128, 128, 16, 3, 1},  {256, 256, 8, 3, 1},    {512, 512, 4, 3, 1},   {512, 512, 2, 3, 1},
    {64, 128, 32, 3, 2},   {64, 64, 56, 3, 1},    {128, 128, 28, 3, 1},   {256, 256, 14, 3, 1},  {512, 512, 7, 3, 1},
    {64, 256, 56, 1, 1},   {256, 64, 56, 1, 1},   {128, 512, 28, 1, 1},   {512, 128, 28, 1, 1},  {256, 1024, 14, 1, 1},
    {1024, 256, 14, 1, 1}, {512, 2048, 7, 1, 1},  {2048, 512, 7, 1, 1},
};

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Memory {
  char* data;
  explicit Memory(int64_t bytes) : data(static_cast<char*>(::operator new(size_t(bytes) + 4096, std::align_val_t(4096)))) {
    float* numbers = reinterpret_cast<float*>(data);
    for (int64_t i = 0; i < bytes / 4; i++) numbers[i] = float(i % 17) - 8.0f;
  }
  ~Memory() { ::operator delete(data, std::align_val_t(4096)); }
};

void measure(const KernelTable& table, const Layer& layer, int32_t images, double zeros) {
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
  const LaneLayout output = image_layout(table.lanes, images, layer.outputs, size, size);
  const LaneLayout whole = image_layout(table.lanes, images, layer.channels, layer.size, layer.size);
  const LaneLayout input = window_input(whole, output, window).layout;
  const ConvPlan plan(table, {layer.channels, layer.outputs, 1, window}, weight, nullptr, Activation::relu,
                      zeros == 0.0, input, output, 1);
  Memory in(input.bytes()), out(output.bytes()), scratch(plan.scratch_bytes());
  double best = 1e9, total = 0;
  for (int repeat = 0; repeat < 5 || (total < 0.1 && repeat < 200); repeat++) {
    const double start = thread_seconds();
    for (int64_t task = 0; task < plan.n_tasks(); task++)
      plan.run(task, input.view(in.data), output.view(out.data), nullptr, scratch.data);
    const double seconds = thread_seconds() - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  const double useful = 2.0 * double(size * size * images);
  std::printf("%5lld -> %4lld  %2lldx%-2lld  %lldx%lld/%lld  zeros %.2f  %9.1f us  %6.1f GFLOP/s  (dense %7.1f)  %s\n",
              (long long)layer.channels, (long long)layer.outputs, (long long)size, (long long)size,
              (long long)layer.window, (long long)layer.window, (long long)layer.stride, zeros, best * 1e6,
              useful * double(stored) / best / 1e9, useful * double(count(weight.shape)) / best / 1e9,
              plan.describe().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const KernelTable& table = chosen_table();
  const int32_t images = argc > 1 ? int32_t(std::atoi(argv[1])) : table.lanes;
  std::vector<double> zeros;
  for (int i = 2; i < argc; i++) zeros.push_back(std::atof(argv[i]));
  if (zeros.empty()) zeros = {0.0, 0.8, 0.9, 0.95};
  std::printf("%s, %d images\n", table.isa, images);
  for (const double z : zeros)
    for (const Layer& layer : layers) measure(table, layer, images, z);
}
