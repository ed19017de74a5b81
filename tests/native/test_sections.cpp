// Where a program is cut, and that the parts compute what the whole does.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "dispatch.h"
#include "engine.h"
#include "sections.h"
#include "testing.h"

using namespace secateur;

namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::exit(1);
}

std::string conv(int input, int output, const char* weight, int stride, const char* kernel) {
  const std::string strides = std::to_string(stride) + "," + std::to_string(stride);
  return R"({"op":"conv","name":"","inputs":[)" + std::to_string(input) + R"(],"output":)" + std::to_string(output) +
         R"(,"weight":")" + weight + R"(","bias":null,"stride":[)" + strides +
         R"(],"padding":[1,1,1,1],"dilation":[1,1],"groups":1,"activation":"relu","kernels":[[1,")" + kernel +
         R"("]],"measured":[]},)";
}

// Four 3×3 convolutions of stride 2, from 2 × 64² to 32 × 4²; a shortcut around the fifth; a mean.
const std::string text =
    R"({"precision":"fp32","working_set":[],"one_thread":0,"values":[{"shape":[-1,2,64,64],"dtype":"f32"},
{"shape":[-1,32,32,32],"dtype":"f32"},{"shape":[-1,32,16,16],"dtype":"f32"},{"shape":[-1,32,8,8],"dtype":"f32"},
{"shape":[-1,32,4,4],"dtype":"f32"},{"shape":[-1,32,4,4],"dtype":"f32"},{"shape":[-1,32,4,4],"dtype":"f32"},{"shape":[-1,32],"dtype":"f32"}],
"inputs":[{"name":"x","value":0}],"outputs":[{"name":"y","value":7}],
"weights":{"a":{"shape":[32,2,3,3],"dtype":"f32","coding":"dense"},"b":{"shape":[32,32,3,3],"dtype":"f32","coding":"dense"}},
"ops":[)" +
    conv(0, 1, "a", 2, "rows") + conv(1, 2, "b", 2, "dense") + conv(2, 3, "b", 2, "rows") +
    conv(3, 4, "b", 2, "dense") + conv(4, 5, "b", 1, "rows") +
    R"({"op":"add","name":"","inputs":[5,4],"output":6,"activation":"none"},
{"op":"mean","name":"","inputs":[6],"output":7,"dims":[2,3],"keep":false}],"provenance":{}})";

std::map<std::string, Weight> weights() {
  std::map<std::string, Weight> all;
  for (const auto& [name, shape] : {std::pair<std::string, Shape>{"a", {32, 2, 3, 3}}, {"b", {32, 32, 3, 3}}}) {
    Weight& weight = all[name];
    weight.shape = shape;
    for (int64_t i = 0; i < count(shape); i++) weight.numbers.push_back(float(i * 7 % 11) / 11.0f - 0.4f);
  }
  return all;
}

std::vector<float> run(int64_t working_set, int64_t batch, int threads, size_t* n_timed) {
  const std::string some = "\"working_set\":[[1," + std::to_string(working_set) + "]]";
  const std::string program = testing::replaced(text, "\"working_set\":[]", some);
  Engine engine(program, weights(), threads);
  std::vector<float> x(size_t(batch) * 8192), y(size_t(batch) * 32, -1.0f);
  for (size_t i = 0; i < x.size(); i++) x[i] = float(i * 13 % 29) / 29.0f - 0.3f;
  std::vector<double> seconds(engine.n_ops(), 0.0);
  engine.run({x.data()}, {y.data()}, batch, seconds.data());
  *n_timed = 0;
  for (const double s : seconds) *n_timed += s > 0;
  return y;
}

}  // namespace

int main() {
  const Program program = read_program(text, weights());
  const KernelTable& table = chosen_table(false);
  const auto sections = [&](int64_t batch, int threads, int64_t working_set) {
    return sections_of(program, table, batch, threads, working_set);
  };
  constexpr int64_t large = int64_t(1) << 30, small = 1 << 10;
  if (table.lanes >= 8) {
    // An image of the first two operations needs 160 KB each, of the third 40 KB; the last planes have 16 pixels.
    const std::vector<Section> parts = sections(16, 1, 1 << 20);
    expect(parts.size() == 2, "one cut");
    expect(parts[0].first_op == 0 && parts[0].chunk == 4 && parts[0].program.outputs == std::vector<int>{3},
           "large images pass four at a time");
    expect(parts[1].first_op == 3 && parts[1].chunk == table.lanes && parts[1].program.inputs == std::vector<int>{3},
           "and small ones as many at a time as there are lanes");
  }
  expect(sections(16, 1, large).size() == 1, "no cut where all fits");
  expect(sections(16, 1, large)[0].chunk == table.lanes, "where all fits, all lanes hold images");
  expect(sections(16, 1, small).size() == 1, "no cut where nothing fits");
  expect(sections(16, 2, large)[0].chunk <= 8, "each thread has images of its own");
  expect(sections(3, 1, large)[0].chunk <= 3, "no more images at a time than there are");
  for (const int64_t batch : {1, 4, 9, 16, 37}) {
    for (const int threads : {1, 2, 3}) {
      size_t n_timed;
      const std::vector<float> expected = run(1 << 30, batch, threads, &n_timed);
      for (const int64_t working_set : {1 << 20, 1 << 18, 1 << 16, 1}) {
        const std::vector<float> found = run(working_set, batch, threads, &n_timed);
        expect(n_timed == 7, "every operation is timed");
        for (size_t i = 0; i < found.size(); i++) {
          const float difference = std::abs(found[i] - expected[i]);
          expect(difference <= 1e-5f * (1.0f + std::abs(expected[i])), "parts compute what the whole does");
        }
      }
    }
  }
  std::printf("sections agree\n");
}
