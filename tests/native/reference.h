// Slow and plain: what the kernels are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace reference {

// The nearest number of half precision, ties to even.
inline double rounded_to_half(double x) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), -14) - 10;
  const double result = std::ldexp(std::nearbyint(std::ldexp(x, -exponent)), exponent);
  return std::fabs(result) > 65504.0 ? std::copysign(HUGE_VAL, x) : result;
}

inline double value_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent ? std::ldexp(fraction + 1024, exponent - 25) : std::ldexp(fraction, -24);
  if (exponent == 31) value = fraction ? NAN : HUGE_VAL;
  return bits >> 15 ? -value : value;
}

// Of a number that half precision has.
inline uint16_t bits_of_half(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (std::isinf(x)) return sign | 0x7C00;
  if (x < std::ldexp(1.0, -14)) return uint16_t(sign | int(std::ldexp(x, 24)));
  const int exponent = std::ilogb(x);
  return uint16_t(sign | (exponent + 15) << 10 | (int(std::ldexp(x, 10 - exponent)) - 1024));
}

inline double activated(double x, secateur::Activation activation) {
  using secateur::Activation;
  const double six = std::min(std::max(x + 3.0, 0.0), 6.0) / 6.0;
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return std::max(x, 0.0);
    case Activation::relu6: return std::min(std::max(x, 0.0), 6.0);
    case Activation::silu: return x / (1.0 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case Activation::hardswish: return x * six;
    case Activation::hardsigmoid: return six;
    case Activation::sigmoid: return 1.0 / (1.0 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::exp: return std::exp(x);
    case Activation::log: return std::log(x);
    case Activation::log1p: return std::log1p(x);
    case Activation::sqrt: return std::sqrt(x);
    case Activation::erf: return std::erf(x);
    case Activation::sin: return std::sin(x);
    case Activation::cos: return std::cos(x);
    case Activation::floor: return std::floor(x);
    case Activation::round: return std::nearbyint(x);
  }
  return x;
}

struct Image {
  int64_t n, channels, height, width;
  std::vector<float> numbers;

  Image(int64_t n_, int64_t c, int64_t h, int64_t w)
      : n(n_), channels(c), height(h), width(w), numbers(size_t(n_ * c * h * w), 0.0f) {}
  float& at(int64_t i, int64_t c, int64_t y, int64_t x) {
    return numbers[size_t(((i * channels + c) * height + y) * width + x)];
  }
};

struct Conv {
  int64_t outputs, groups, kh, kw, sy, sx, dy, dx, top, left;
};

// weight is (outputs, channels / groups, kh, kw).
Image conv(Image& x, const Conv& p, const std::vector<float>& weight, const std::vector<float>& bias, Image* residual,
           int64_t height, int64_t width, secateur::Activation activation);

}  // namespace reference
