// secateur.runtime._native: the engine for Python. Checks types, copies weights, and owns no logic.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "dispatch.h"
#include "engine.h"
#include "error.h"
#include "memory.h"

namespace nb = nanobind;

namespace secateur {

namespace {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using NumpyArray = nb::ndarray<nb::numpy>;

Shape shape_of(const Array& array) {
  Shape shape;
  for (size_t i = 0; i < array.ndim(); i++) shape.push_back(int64_t(array.shape(i)));
  return shape;
}

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float value;
  if (exponent == 0)
    value = std::ldexp(float(fraction), -24);
  else if (exponent == 31)
    value = fraction ? NAN : INFINITY;
  else
    value = std::ldexp(float(fraction + 1024), exponent - 25);
  return bits >> 15 ? -value : value;
}

void read_numbers(const std::string& name, const Array& array, Weight& weight) {
  const nb::dlpack::dtype type = array.dtype();
  const size_t n = array.size();
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return type.code == uint8_t(code) && type.bits == bits;
  };
  if (is(nb::dlpack::dtype_code::Int, 64)) {
    const auto* data = static_cast<const int64_t*>(array.data());
    weight.is_integer = true;
    weight.integers.assign(data, data + n);
    return;
  }
  weight.numbers.resize(n);
  if (is(nb::dlpack::dtype_code::Float, 32)) {
    if (n) std::memcpy(weight.numbers.data(), array.data(), n * 4);
  } else if (is(nb::dlpack::dtype_code::Float, 16)) {
    const auto* data = static_cast<const uint16_t*>(array.data());
    for (size_t i = 0; i < n; i++) weight.numbers[i] = half_to_float(data[i]);
  } else if (is(nb::dlpack::dtype_code::UInt, 16)) {  // the bits of bfloat16
    const auto* data = static_cast<const uint16_t*>(array.data());
    for (size_t i = 0; i < n; i++) {
      const uint32_t bits = uint32_t(data[i]) << 16;
      std::memcpy(&weight.numbers[i], &bits, 4);
    }
  } else {
    throw PlanError("weight '" + name + "' must be float32, float16, int64, or bfloat16 as uint16");
  }
}

std::map<std::string, Weight> read_weights(const nb::dict& given) {
  std::map<std::string, Weight> weights;
  for (const auto& [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    Weight& weight = weights[name];
    if (nb::isinstance<nb::tuple>(value)) {
      const auto pair = nb::cast<nb::tuple>(value);
      if (pair.size() != 2) throw PlanError("weight '" + name + "' must be an array, or positions and numbers");
      const auto positions = nb::cast<nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(pair[0]);
      const auto numbers = nb::cast<Array>(pair[1]);
      if (numbers.ndim() != 1 || numbers.size() != positions.size())
        throw PlanError("weight '" + name + "' has not as many positions as numbers");
      weight.dense = false;
      weight.positions.assign(positions.data(), positions.data() + positions.size());
      read_numbers(name, numbers, weight);
      if (weight.is_integer) throw PlanError("weight '" + name + "' of integers must be dense");
    } else {
      const auto array = nb::cast<Array>(value);
      weight.shape = shape_of(array);
      read_numbers(name, array, weight);
    }
  }
  return weights;
}

std::unique_ptr<Engine> new_engine(const std::string& program, const nb::dict& weights, int threads) {
  auto read = read_weights(weights);
  nb::gil_scoped_release release;
  return std::make_unique<Engine>(program, std::move(read), threads);
}

// Inputs as the engine wants them, and the batch size.
struct Call {
  std::vector<const void*> inputs;
  int64_t batch;
};

Call read_inputs(const Engine& engine, const std::vector<Array>& arrays) {
  Call call{};
  std::vector<Shape> shapes;
  for (const Array& array : arrays) shapes.push_back(shape_of(array));
  call.batch = engine.batch_of(shapes);
  for (size_t i = 0; i < arrays.size(); i++) {
    const bool integer = engine.input(i).is_integer;
    if (arrays[i].dtype() != (integer ? nb::dtype<int64_t>() : nb::dtype<float>()))
      throw PlanError("input " + std::to_string(i) + " must be " + (integer ? "int64" : "float32"));
    call.inputs.push_back(arrays[i].data());
  }
  return call;
}

// Memory that NumPy will own.
struct Outputs {
  std::vector<std::unique_ptr<char[]>> memory;
  std::vector<void*> pointers;
  std::vector<Shape> shapes;

  Outputs(const Engine& engine, int64_t batch) {
    int64_t all_bytes = 0;
    for (size_t i = 0; i < engine.n_outputs(); i++) {
      shapes.push_back(engine.output_shape(i, batch));
      const auto bytes = size_t(count(shapes.back())) * (engine.output(i).is_integer ? 8 : 4);
      all_bytes += int64_t(bytes);
      check_available(all_bytes);  // nothing has been written yet, so all of them together
      memory.emplace_back(new char[bytes]);
      pointers.push_back(memory.back().get());
    }
  }

  NumpyArray release(const Engine& engine, size_t i) {
    char* data = memory[i].get();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<char*>(p); });
    memory[i].release();
    std::vector<size_t> shape(shapes[i].begin(), shapes[i].end());
    return NumpyArray(data, shape.size(), shape.data(), owner, nullptr,
                      engine.output(i).is_integer ? nb::dtype<int64_t>() : nb::dtype<float>());
  }
};

nb::list run(Engine& engine, const std::vector<Array>& arrays) {
  const Call call = read_inputs(engine, arrays);
  Outputs outputs(engine, call.batch);
  {
    nb::gil_scoped_release release;
    engine.run(call.inputs, outputs.pointers, call.batch, nullptr);
  }
  nb::list result;
  for (size_t i = 0; i < engine.n_outputs(); i++) result.append(outputs.release(engine, i));
  return result;
}

NumpyArray profile(Engine& engine, const std::vector<Array>& arrays, int repeats) {
  if (repeats < 1) throw PlanError("repeats must be at least 1");
  const Call call = read_inputs(engine, arrays);
  Outputs outputs(engine, call.batch);
  const size_t n = engine.n_ops();
  auto seconds = std::make_unique<double[]>(size_t(repeats) * n);  // zeros
  {
    nb::gil_scoped_release release;
    for (int i = 0; i < repeats; i++)
      engine.run(call.inputs, outputs.pointers, call.batch, seconds.get() + size_t(i) * n);
  }
  double* data = seconds.get();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<double*>(p); });
  seconds.release();
  const size_t shape[2] = {size_t(repeats), n};
  return NumpyArray(data, 2, shape, owner, nullptr, nb::dtype<double>());
}

std::vector<std::string> kernels(const std::string& op) {
  if (op == "conv") return {"dense", "rows", "winograd"};
  if (op == "linear") return {"dense", "rows", "gather"};
  throw PlanError("only conv and linear have kernels, got '" + op + "'");
}

}  // namespace

}  // namespace secateur

NB_MODULE(_native, module) {
  using namespace secateur;
  nb::set_leak_warnings(false);  // a thread that is in a call when Python ends keeps its engine
  nb::class_<Engine>(module, "Engine")
      .def(nb::new_(&new_engine), nb::arg("program"), nb::arg("weights"), nb::arg("threads"))
      .def("run", &run, nb::arg("inputs"))
      .def("profile", &profile, nb::arg("inputs"), nb::arg("repeats"));
  module.def("isa", [](const std::string& precision) { return std::string(chosen_table(precision == "fp16").isa); },
             nb::arg("precision"));
  module.def("kernels", &kernels, nb::arg("op"));
}
