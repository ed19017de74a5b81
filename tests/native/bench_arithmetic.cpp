// What one core multiplies and adds from registers, by instruction, as lines of JSON: fp32, fp16, and products of pairs
// of bf16. benchmarks/half.py keeps them.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>

namespace {

constexpr int sums = 16;  // enough to hide the latency of every instruction
constexpr int64_t rounds = 2000000;

double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

#define MEASURE(name, features, Vector, instruction)                                                                  \
  __attribute__((target(features))) double name() {                                                                   \
    Vector sum[sums] = {}, a = {}, b = {};                                                                            \
    __asm__ volatile("" : "+v"(a), "+v"(b));                                                                          \
    const double start = seconds();                                                                                   \
    for (int64_t i = 0; i < rounds; i++) {                                                                            \
      _Pragma("GCC unroll 16") for (int s = 0; s < sums;                                                              \
                                    s++) __asm__ volatile(instruction " %2, %1, %0" : "+v"(sum[s]) : "v"(a), "v"(b)); \
    }                                                                                                                 \
    return seconds() - start;                                                                                         \
  }

MEASURE(fp32, "avx512f", __m512, "vfmadd231ps")
MEASURE(fp16, "avx512f,avx512fp16", __m512i, "vfmadd231ph")
MEASURE(bf16, "avx512f,avx512bf16", __m512, "vdpbf16ps")

void print(const char* instruction, double (*run)(), int products) {
  double best = run();
  for (int repeat = 0; repeat < 5; repeat++) best = std::min(best, run());
  std::printf("{\"instruction\": \"%s\", \"gflops\": %.1f}\n", instruction,
              2e-9 * products * sums * double(rounds) / best);
}

}  // namespace

int main() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) print("vfmadd231ps", fp32, 16);
  if (__builtin_cpu_supports("avx512fp16")) print("vfmadd231ph", fp16, 32);
  if (__builtin_cpu_supports("avx512bf16")) print("vdpbf16ps", bf16, 32);
}
