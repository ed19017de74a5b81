// Where a program is cut, and that the parts compute what the whole does.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "engine.h"
#include "sections.h"

using namespace secateur;

namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::exit(1);
}

// Two 3×3 convolutions of stride 2, a shortcut around the third, a mean: 2 × 16², 4 × 8², 4 × 4², 4 × 4², 4.
const char* const text =
    R"({"precision":"fp32","working_set":[],"one_thread":0,"values":[{"shape":[-1,2,16,16],"dtype":"f32"},{"shape":[-1,4,8,8],"dtype":"f32"},
{"shape":[-1,4,4,4],"dtype":"f32"},{"shape":[-1,4,4,4],"dtype":"f32"},{"shape":[-1,4,4,4],"dtype":"f32"},
{"shape":[-1,4],"dtype":"f32"}],
"inputs":[{"name":"x","value":0}],"outputs":[{"name":"y","value":5}],
"weights":{"a":{"shape":[4,2,3,3],"dtype":"f32","coding":"dense"},"b":{"shape":[4,4,3,3],"dtype":"f32","coding":"dense"}},
"ops":[{"op":"conv","name":"1","inputs":[0],"output":1,"weight":"a","bias":null,"stride":[2,2],"padding":[1,1,1,1],
"dilation":[1,1],"groups":1,"activation":"relu","kernels":[[1,"rows"]],"measured":[]},
{"op":"conv","name":"2","inputs":[1],"output":2,"weight":"b","bias":null,"stride":[2,2],"padding":[1,1,1,1],
"dilation":[1,1],"groups":1,"activation":"relu","kernels":[[1,"dense"]],"measured":[]},
{"op":"conv","name":"3","inputs":[2],"output":3,"weight":"b","bias":null,"stride":[1,1],"padding":[1,1,1,1],
"dilation":[1,1],"groups":1,"activation":"relu","kernels":[[1,"rows"]],"measured":[]},
{"op":"add","name":"4","inputs":[3,2],"output":4,"activation":"none"},
{"op":"mean","name":"5","inputs":[4],"output":5,"dims":[2,3],"keep":false}],"provenance":{}})";

std::map<std::string, Weight> weights() {
  std::map<std::string, Weight> all;
  for (const auto& [name, shape] : {std::pair<std::string, Shape>{"a", {4, 2, 3, 3}}, {"b", {4, 4, 3, 3}}}) {
    Weight& weight = all[name];
    weight.shape = shape;
    for (int64_t i = 0; i < count(shape); i++) weight.numbers.push_back(float(i * 7 % 11) / 11.0f - 0.4f);
  }
  return all;
}

std::vector<float> run(int64_t working_set, int64_t batch, int threads, size_t* n_timed) {
  const std::string none = "\"working_set\":[]";
  std::string program = text;
  program.replace(program.find(none), none.size(), "\"working_set\":[[1," + std::to_string(working_set) + "]]");
  Engine engine(program, weights(), threads);
  std::vector<float> x(size_t(batch) * 512), y(size_t(batch) * 4, -1.0f);
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
  // Bytes of an image in each operation: 3072, 1280, 512, 768, 272.
  const std::vector<Section> parts = sections_of(program, 16, 16, 3072);
  expect(parts.size() == 2, "one cut");
  expect(parts[0].first_op == 0 && parts[0].chunk == 1 && parts[0].program.outputs == std::vector<int>{2},
         "images pass the first two operations one at a time");
  expect(parts[1].first_op == 2 && parts[1].chunk == 4 && parts[1].program.inputs == std::vector<int>{2},
         "and the others four at a time");
  expect(sections_of(program, 16, 3, 3072).size() == 1, "no cut where the batch is too small for it");
  expect(sections_of(program, 16, 16, 1 << 20).size() == 1, "no cut where all fits");
  expect(sections_of(program, 16, 16, 1 << 20)[0].chunk == 16, "where all fits, all lanes hold images");
  for (const int64_t batch : {1, 4, 9, 16, 37}) {
    for (const int threads : {1, 2, 3}) {
      size_t n_timed;
      const std::vector<float> expected = run(1 << 20, batch, threads, &n_timed);
      for (const int64_t working_set : {3072, 1280, 600, 300, 1}) {
        const std::vector<float> found = run(working_set, batch, threads, &n_timed);
        expect(n_timed == 5, "every operation is timed");
        for (size_t i = 0; i < found.size(); i++) {
          const float difference = std::abs(found[i] - expected[i]);
          expect(difference <= 1e-5f * (1.0f + std::abs(expected[i])), "parts compute what the whole does");
        }
      }
    }
  }
  std::printf("sections agree\n");
}
