// Hostile plans: takes programs apart and puts them together wrongly, and runs whatever the engine accepts. Meant to be
// built with the address and undefined-behaviour sanitizers; then any bad access ends it.
//   fuzz_plans [rounds] [seed]
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>

#include "dispatch.h"
#include "engine.h"
#include "error.h"
#include "testing.h"
#include "winograd.h"

using namespace secateur;

namespace {

std::mt19937_64 generator;

size_t below(size_t n) { return size_t(generator() % n); }

// "?" is any kernel.
const char* const programs[] = {
    R"({"precision":"fp32","working_set":[],"one_thread":0,"values":[{"shape":[-1,4,36,28],"dtype":"f32"},
{"shape":[-1,4,18,14],"dtype":"f32"},{"shape":[-1,4,9,7],"dtype":"f32"},{"shape":[-1,6,5,4],"dtype":"f32"},
{"shape":[-1,6,5,4],"dtype":"f32"},{"shape":[-1,6,5,4],"dtype":"f32"},{"shape":[-1,6,2,2],"dtype":"f32"},
{"shape":[-1,6],"dtype":"f32"},{"shape":[-1,3],"dtype":"f32"},{"shape":[-1,6,5,4],"dtype":"f32"}],
"inputs":[{"name":"x","value":0}],"outputs":[{"name":"y","value":8}],
"weights":{"a":{"shape":[6,4,3,3],"dtype":"f32","coding":"delta"},"b":{"shape":[6,2,1,1],"dtype":"f32","coding":"dense"},
"c":{"shape":[3,6],"dtype":"f32","coding":"dense"},"w":{"shape":[6,6,3,3],"dtype":"f32","coding":"delta"},"s":{"shape":[6],"dtype":"f32","coding":"dense"}},
"ops":[{"op":"max_pool","name":"1","inputs":[0],"output":1,"kernel":[2,2],"stride":[2,2],"padding":[0,0,0,0]},
{"op":"max_pool","name":"2","inputs":[1],"output":2,"kernel":[2,2],"stride":[2,2],"padding":[0,0,0,0]},
{"op":"conv","name":"3","inputs":[2],"output":3,"weight":"a","bias":"s","stride":[2,2],"padding":[1,1,1,1],
"dilation":[1,1],"groups":1,"activation":"relu","kernels":[[1,"?"]],"measured":[]},
{"op":"conv","name":"4","inputs":[3,3],"output":4,"weight":"b","bias":null,"stride":[1,1],"padding":[0,0,0,0],
"dilation":[1,1],"groups":3,"activation":"silu","kernels":[[1,"?"]],"measured":[]},
{"op":"add","name":"5","inputs":[3,4],"output":5,"activation":"gelu"},
{"op":"conv","name":"9","inputs":[5],"output":9,"weight":"w","bias":"s","stride":[1,1],"padding":[1,1,1,1],
"dilation":[1,1],"groups":1,"activation":"tanh","kernels":[[1,"?"]],"measured":[]},
{"op":"max_pool","name":"6","inputs":[9],"output":6,"kernel":[3,3],"stride":[2,2],"padding":[0,1,0,0]},
{"op":"mean","name":"7","inputs":[6],"output":7,"dims":[2,3],"keep":false},
{"op":"linear","name":"8","inputs":[7],"output":8,"weight":"c","bias":null,"activation":"none",
"kernels":[[1,"?"],[2,"?"]],"measured":[]}],"provenance":{}})",
    R"({"precision":"fp32","working_set":[],"one_thread":0,"values":[{"shape":[-1,5],"dtype":"i64"},{"shape":[-1,5,8],"dtype":"f32"},
{"shape":[-1,5,8],"dtype":"f32"},{"shape":[-1,5,2,4],"dtype":"f32"},{"shape":[-1,2,5,4],"dtype":"f32"},
{"shape":[-1,2,5,4],"dtype":"f32"},{"shape":[-1,5,2,4],"dtype":"f32"},{"shape":[-5,8],"dtype":"f32"},
{"shape":[-5,8],"dtype":"f32"},{"shape":[-1,5,8],"dtype":"f32"},{"shape":[-1,3,8],"dtype":"f32"},
{"shape":[-1,6,8],"dtype":"f32"},{"shape":[-1,6,8],"dtype":"f32"},{"shape":[-1,8,10],"dtype":"f32"},
{"shape":[-1,6,8],"dtype":"f32"}],
"inputs":[{"name":"x","value":0}],"outputs":[{"name":"y","value":13}],
"weights":{"e":{"shape":[11,8],"dtype":"f32","coding":"dense"},"g":{"shape":[8],"dtype":"f32","coding":"dense"},
"w":{"shape":[8,8],"dtype":"f32","coding":"delta"}},
"ops":[{"op":"embedding","name":"1","inputs":[0],"output":1,"weight":"e"},
{"op":"layer_norm","name":"2","inputs":[1],"output":2,"n_dims":1,"scale":"g","shift":null,"eps":1e-5},
{"op":"reshape","name":"3","inputs":[2],"output":3},{"op":"permute","name":"4","inputs":[3],"output":4,"dims":[0,2,1,3]},
{"op":"attention","name":"5","inputs":[4,4,4],"output":5,"factor":0.5,"causal":true},
{"op":"permute","name":"6","inputs":[5],"output":6,"dims":[0,2,1,3]},{"op":"reshape","name":"7","inputs":[6],"output":7},
{"op":"linear","name":"8","inputs":[7,7],"output":8,"weight":"w","bias":"g","activation":"gelu","kernels":[[1,"?"]],
"measured":[]},{"op":"reshape","name":"9","inputs":[8],"output":9},
{"op":"slice","name":"10","inputs":[9],"output":10,"dim":1,"start":0,"stop":5,"step":2},
{"op":"cat","name":"11","inputs":[10,10],"output":11,"dim":1},{"op":"softmax","name":"12","inputs":[11],"output":12,"dim":2},
{"op":"where","name":"14","inputs":[11,12,11],"output":14},
{"op":"pad","name":"13","inputs":[14],"output":13,"padding":[[0,0],[1,1],[0,2]],"value":0.5}],"provenance":{}})",
    R"({"precision":"fp32","working_set":[],"one_thread":0,"values":[{"shape":[-1,2,40,40],"dtype":"f32"},
{"shape":[-1,44,40,40],"dtype":"f32"},{"shape":[-1,44,20,20],"dtype":"f32"},{"shape":[-1,44],"dtype":"f32"}],
"inputs":[{"name":"x","value":0}],"outputs":[{"name":"y","value":3}],
"weights":{"a":{"shape":[44,2,1,1],"dtype":"f32","coding":"delta"},"d":{"shape":[44,1,3,3],"dtype":"f32","coding":"dense"},
"s":{"shape":[44],"dtype":"f32","coding":"dense"}},
"ops":[{"op":"conv","name":"1","inputs":[0],"output":1,"weight":"a","bias":"s","stride":[1,1],"padding":[0,0,0,0],
"dilation":[1,1],"groups":1,"activation":"relu6","kernels":[[1,"?"]],"measured":[]},
{"op":"conv","name":"2","inputs":[1],"output":2,"weight":"d","bias":"s","stride":[2,2],"padding":[1,1,1,1],
"dilation":[1,1],"groups":44,"activation":"relu6","kernels":[[1,"?"]],"measured":[]},
{"op":"mean","name":"3","inputs":[2],"output":3,"dims":[2,3],"keep":false}],"provenance":{}})",
    R"({"precision":"fp32","working_set":[],"one_thread":0,"values":[{"shape":[-1,5],"dtype":"i64"},{"shape":[-1,5],"dtype":"f32"},
{"shape":[-1,5],"dtype":"i64"},{"shape":[-1,5],"dtype":"i64"},{"shape":[-1,5,5],"dtype":"f32"},{"shape":[-1,5,1],"dtype":"i64"},
{"shape":[-1,5],"dtype":"f32"},{"shape":[-1,5],"dtype":"i64"},{"shape":[-1,5],"dtype":"f32"},{"shape":[-1,5,5],"dtype":"f32"},
{"shape":[-1,5,8],"dtype":"f32"},{"shape":[-1,5,8],"dtype":"f32"},{"shape":[-1,1,5],"dtype":"i64"},
{"shape":[-1,1,5],"dtype":"f32"}],
"inputs":[{"name":"x","value":0}],"outputs":[{"name":"y","value":9},{"name":"z","value":11},{"name":"n","value":3}],
"weights":{"e":{"shape":[11,8],"dtype":"f32","coding":"dense"}},
"ops":[{"op":"convert","name":"1","inputs":[0],"output":1,"dtype":"f32"},
{"op":"cumsum","name":"2","inputs":[0],"output":2,"dim":1},
{"op":"mul","name":"3","inputs":[2,0],"output":3,"activation":"none"},
{"op":"reshape","name":"5","inputs":[3],"output":5},{"op":"reshape","name":"12","inputs":[0],"output":12},
{"op":"less_equal","name":"4","inputs":[5,12],"output":4},
{"op":"less","name":"6","inputs":[0,2],"output":6},{"op":"where","name":"7","inputs":[6,0,0],"output":7},
{"op":"equal","name":"8","inputs":[1,6],"output":8},{"op":"reshape","name":"13","inputs":[8],"output":13},{"op":"where","name":"9","inputs":[4,13,4],"output":9},
{"op":"embedding","name":"10","inputs":[7],"output":10,"weight":"e"},
{"op":"cumsum","name":"11","inputs":[10],"output":11,"dim":1}],"provenance":{}})",
};
constexpr size_t n_programs = sizeof programs / sizeof *programs;

// clang-format off: it would give each word a line
const char* const words[] = {"0", "-1", "1", "2", "3", "7", "64", "1000", "-5", "4294967296", "9223372036854775807",
                             "1e400", "0.5", "null", "true", "[]", "{}", "\"x\"", "\"rows\"", "\"dense\"",
                             "\"gather\"", "\"winograd\"", "\"i64\"", "\"f32\"", "\"tanh\"", "[1,1]", "[[", "]", ",", ":", "\"", "\\u0000"};
// clang-format on

std::string with_kernels(std::string text) {
  const char* const names[] = {"rows", "dense", "gather", "winograd"};
  for (size_t at; (at = text.find("\"?\"")) != std::string::npos;) text.replace(at + 1, 1, names[below(4)]);
  return text;
}

// Which kernels have run: rows, dense, gather, winograd. How often a program was cut; and how often an operation had no
// time of its own, as it ran part by part with the one before.
int ran[4], cut, fed;

void count_run(const Program& program, int64_t batch, int threads) {
  cut += sections_of(program, chosen_table(program.half), batch, threads, program.working_set_for(batch)).size() > 1;
  for (const Op& op : program.ops) {
    if (op.kernels.empty()) continue;
    const KernelChoice choice = op.kernel_for(batch, KernelChoice::rows);
    const bool winograd = choice == KernelChoice::winograd && op.kind == OpKind::conv &&
                          WinogradPlan::takes(chosen_table(program.half), shape_of(op));
    const bool dense = (choice == KernelChoice::dense || choice == KernelChoice::winograd) && op.groups == 1;
    const bool gather = choice == KernelChoice::gather && op.kind == OpKind::linear;
    ran[winograd ? 3 : dense ? 1 : gather ? 2 : 0]++;
  }
}

// Replaces a number by another, copies a piece to another place, drops a piece, or inserts a word.
std::string damaged(std::string text) {
  for (size_t edits = 1 + below(3); edits > 0; edits--) {
    const size_t at = below(text.size());
    switch (below(5)) {
      case 0: {
        size_t digit = text.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        size_t end = digit;
        while (end < text.size() && text[end] >= '0' && text[end] <= '9') end++;
        text.replace(digit, end - digit, words[below(12)]);
        break;
      }
      case 1: {
        size_t digit = text.find_first_of("0123456789", at);
        if (digit != std::string::npos) text[digit] = char('0' + below(10));
        break;
      }
      case 2: text.insert(at, text.substr(below(text.size()), below(40))); break;
      case 3: text.erase(at, 1 + below(20)); break;
      default: text.insert(at, words[below(sizeof words / sizeof *words)]);
    }
  }
  return text;
}

// Weights for what the untouched program lists, now and then of another size.
std::map<std::string, Weight> some_weights(size_t program) {
  struct Listed {
    const char* name;
    Shape shape;
    bool sparse;
  };
  const std::vector<Listed> listed[] = {{{"a", {6, 4, 3, 3}, true},
                                         {"b", {6, 2, 1, 1}, false},
                                         {"c", {3, 6}, false},
                                         {"w", {6, 6, 3, 3}, true},
                                         {"s", {6}, false}},
                                        {{"e", {11, 8}, false}, {"g", {8}, false}, {"w", {8, 8}, true}},
                                        {{"a", {44, 2, 1, 1}, true}, {"d", {44, 1, 3, 3}, false}, {"s", {44}, false}},
                                        {{"e", {11, 8}, false}}};
  std::map<std::string, Weight> weights;
  for (const auto& [name, shape, sparse] : listed[program]) {
    Weight& weight = weights[name];
    const int64_t n = count(shape);
    if (sparse) {
      weight.dense = false;
      const size_t one_in = 1 + below(3);
      for (int64_t i = 0; i < n; i++)
        if (below(one_in) == 0) weight.positions.push_back(uint32_t(below(500) ? i : int64_t(below(1000))));
      weight.numbers.assign(weight.positions.size(), 0.5f);
    } else {
      weight.shape = shape;
      weight.numbers.assign(size_t(n), 0.25f);
    }
  }
  return weights;
}

// Now and then so small that images pass one at a time, or some operations take fewer images at a time than others.
std::string with_working_set(const std::string& text) {
  const std::string some = "\"working_set\":[[1," + std::to_string(1 + below(40000)) + "]]";
  return below(2) ? testing::replaced(text, "\"working_set\":[]", some) : text;
}

std::string with_one_thread(const std::string& text) {
  return below(4) ? text : testing::replaced(text, "\"one_thread\":0", "\"one_thread\":4");
}

// Every second program computes in half precision, where the processor can.
std::string with_precision(const std::string& text) {
  return below(2) ? testing::replaced(text, "fp32", "fp16") : text;
}

bool try_one(size_t program) {
  const std::string text = damaged(with_precision(with_one_thread(with_working_set(with_kernels(programs[program])))));
  const std::map<std::string, Weight> weights = some_weights(program);
  try {
    const auto threads = int(1 + below(3));
    Engine engine(text, weights, threads);
    const auto batch = int64_t(1 + below(20));
    std::vector<std::vector<char>> memory;  // of the exact size, so that any read past it is seen
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    std::vector<Shape> shapes;
    int64_t total = 0;
    for (size_t i = 0; i < engine.n_inputs(); i++) shapes.push_back(at_batch(engine.input(i).shape, batch));
    for (size_t i = 0; i < engine.n_outputs(); i++) total += count(engine.output_shape(i, batch));
    for (const Shape& shape : shapes) total += count(shape);
    if (total > (1 << 22)) return true;
    for (size_t i = 0; i < shapes.size(); i++) {
      const auto n = size_t(count(shapes[i]));
      memory.emplace_back(n * (engine.input(i).is_integer ? 8 : 4));
      for (size_t k = 0; k < n; k++) {
        if (engine.input(i).is_integer)
          reinterpret_cast<int64_t*>(memory.back().data())[k] = int64_t(below(11));
        else
          reinterpret_cast<float*>(memory.back().data())[k] = float(below(11)) - 5.0f;
      }
      inputs.push_back(memory.back().data());
    }
    for (size_t i = 0; i < engine.n_outputs(); i++) {
      memory.emplace_back(size_t(count(engine.output_shape(i, batch))) * (engine.output(i).is_integer ? 8 : 4));
      outputs.push_back(memory.back().data());
    }
    std::vector<double> seconds(engine.n_ops(), 0.0);
    engine.run(inputs, outputs, engine.batch_of(shapes), seconds.data());
    fed += program == 2 && seconds.size() == 3 && seconds[1] == 0.0;
    count_run(read_program(text, weights), batch, threads);
    return true;
  } catch (const PlanError&) {
    return false;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  generator.seed(argc > 2 ? uint64_t(std::atoll(argv[2])) : 1);
  int accepted = 0;
  for (int i = 0; i < rounds; i++) accepted += try_one(below(n_programs));
  std::printf(
      "%d programs, %d accepted and run, %d refused; kernels: %d rows, %d dense, %d gather, %d "
      "winograd; %d cut, %d fed\n",
      rounds, accepted, rounds - accepted, ran[0], ran[1], ran[2], ran[3], cut, fed);
  return accepted < rounds && ran[0] > 0 && ran[1] > 0 && ran[2] > 0 && ran[3] > 0 && cut > 0 && fed > 0 ? 0 : 1;
}
