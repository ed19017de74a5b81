// Vectors of the instruction set this file is compiled for. Included inside its namespace, by kernels_*.cpp only:
// SECATEUR_LANES is set there, and SECATEUR_HALF where lane tensors hold _Float16.

// Floats: in plain arrays, and for all that needs their range or precision.
typedef float F __attribute__((vector_size(SECATEUR_LANES * 4)));
typedef int32_t I __attribute__((vector_size(SECATEUR_LANES * 4)));
// The same without the promise of alignment, for plain arrays.
typedef float U __attribute__((vector_size(SECATEUR_LANES * 4), aligned(4)));

// Numbers of lane tensors, in vectors just as wide: convolutions compute in them.
#ifdef SECATEUR_HALF
typedef _Float16 Number;
typedef int16_t Place;
typedef _Float16 Part __attribute__((vector_size(SECATEUR_LANES * 2)));
#else
typedef float Number;
typedef int32_t Place;
typedef F Part;
#endif
typedef Number V __attribute__((vector_size(SECATEUR_LANES * 4)));
typedef Place Places __attribute__((vector_size(SECATEUR_LANES * 4)));

constexpr int floats = SECATEUR_LANES;
constexpr ptrdiff_t vector_bytes = floats * 4;
constexpr int lanes = vector_bytes / int(sizeof(Number));
constexpr ptrdiff_t part_bytes = floats * int(sizeof(Number));  // what is widened to one F

#define SECATEUR_INLINE static inline __attribute__((always_inline))

// Tells the compiler that `v` was changed in a way it cannot see, and is in a register.
#if defined(__x86_64__) && defined(__AVX512F__)
#define SECATEUR_IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__x86_64__)
#define SECATEUR_IN_REGISTER(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define SECATEUR_IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define SECATEUR_IN_REGISTER(v) (void)0
#endif

// Tells the compiler that a pointer or integer is in a register, and that nothing is known of it.
#define SECATEUR_OPAQUE(value) __asm__("" : "+r"(value))

SECATEUR_INLINE V load(const void* p) { return *static_cast<const V*>(p); }
SECATEUR_INLINE void store(void* p, V v) { *static_cast<V*>(p) = v; }
SECATEUR_INLINE F load_plain(const float* p) { return *reinterpret_cast<const U*>(p); }
SECATEUR_INLINE void store_plain(float* p, F v) { *reinterpret_cast<U*>(p) = v; }

// The first n numbers, n > 0, or all if there are fewer: what lies behind them is not touched, and loaded as zeros.
SECATEUR_INLINE F load_first(const float* p, int64_t n) {
  if (n >= floats) return load_plain(p);
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(__mmask16((1 << n) - 1), p);
#else
  F v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return v;
#endif
}
SECATEUR_INLINE void store_first(float* p, F v, int64_t n) {
  if (n >= floats) return store_plain(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16((1 << n) - 1), v);
#else
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
#endif
}

template <typename Vector, typename Element>
SECATEUR_INLINE Vector spread_as(Element x) {
  return x - Vector{};
}
SECATEUR_INLINE F spread(float x) { return spread_as<F>(x); }
SECATEUR_INLINE V spread_number(float x) { return spread_as<V>(Number(x)); }

// The weight of a step in every lane (see Step): a broadcast of 32 bits, which costs a load and nothing more.
SECATEUR_INLINE V spread_weight(WeightBits bits) {
#ifdef SECATEUR_HALF
  typedef WeightBits Bits __attribute__((vector_size(SECATEUR_LANES * 4)));
  return (V)(spread_as<Bits>(bits));
#else
  float weight;
  __builtin_memcpy(&weight, &bits, sizeof weight);
  return spread(weight);
#endif
}

template <typename Vector>
SECATEUR_INLINE Vector at_least(Vector v, Vector low) {
  return v < low ? low : v;
}  // a NaN stays
template <typename Vector>
SECATEUR_INLINE Vector at_most(Vector v, Vector high) {
  return v > high ? high : v;
}

// As many numbers of a lane tensor as there are floats in a vector, widened; and back, rounded.
SECATEUR_INLINE F load_part(const void* p) {
#if defined(SECATEUR_HALF) && defined(__AVX512FP16__)
  // GCC 12 would convert one by one; with a mask, because its form without one reads an uninitialized variable
  return _mm512_maskz_cvtph_ps(__mmask16(-1), _mm256_load_si256(static_cast<const __m256i*>(p)));
#else
  return __builtin_convertvector(*static_cast<const Part*>(p), F);
#endif
}
SECATEUR_INLINE void store_part(void* p, F v) { *static_cast<Part*>(p) = __builtin_convertvector(v, Part); }

// A whole vector widened to floats, in which sums are kept that grow long.
struct Wide {
  F part[lanes / floats];
};
constexpr bool is_half = sizeof(Number) == 2;
constexpr ptrdiff_t wide_bytes = lanes * 4;

SECATEUR_INLINE Wide widened(V v) {
  Wide wide;
#pragma GCC unroll 2
  for (int i = 0; i < lanes / floats; i++) wide.part[i] = load_part(reinterpret_cast<const char*>(&v) + i * part_bytes);
  return wide;
}
SECATEUR_INLINE V narrowed(const Wide& wide) {
  V v;
#pragma GCC unroll 2
  for (int i = 0; i < lanes / floats; i++) store_part(reinterpret_cast<char*>(&v) + i * part_bytes, wide.part[i]);
  return v;
}
SECATEUR_INLINE Wide sum_of(const char* kept, V v) {
  Wide wide = widened(v);
#pragma GCC unroll 2
  for (int i = 0; i < lanes / floats; i++) wide.part[i] += reinterpret_cast<const F*>(kept)[i];
  return wide;
}
SECATEUR_INLINE void store_wide(char* kept, const Wide& wide) {
#pragma GCC unroll 2
  for (int i = 0; i < lanes / floats; i++) reinterpret_cast<F*>(kept)[i] = wide.part[i];
}

SECATEUR_INLINE V permute(V v, Places places) {
#if defined(__clang__)
  V result;
  for (int i = 0; i < lanes; i++) result[i] = v[places[i] & (lanes - 1)];
  return result;
#else
  return __builtin_shuffle(v, places);
#endif
}

// Place p < floats takes a[p], others b[p − floats].
SECATEUR_INLINE F permute_two(F a, F b, I places) {
#if defined(__clang__)
  F result;
  for (int i = 0; i < floats; i++) result[i] = places[i] < floats ? a[places[i]] : b[places[i] - floats];
  return result;
#else
  return __builtin_shuffle(a, b, places);
#endif
}

// The larger of two numbers or, in each lane, of two vectors; a NaN if either is one.
template <typename T>
SECATEUR_INLINE T larger(T a, T b) {
  const T most = b > a ? b : a;
  return b != b ? b : most;
}

SECATEUR_INLINE float sum_of(F v) {
  float sum = 0;
  for (int i = 0; i < floats; i++) sum += v[i];
  return sum;
}

// e^x, relative error below 2 ulp; 0 below −87.3 and infinity above 88.3, where floats nearly end: 2^n · polynomial
// (Cephes expf) with the reduction x = n·ln2 + r, ln2 in two parts.
SECATEUR_INLINE F exponential(F x) {
  const F clipped = at_most(at_least(x, spread(-87.3f)), spread(88.3f));
  const F scaled = clipped * 1.44269504f;
  const F rounder = spread(12582912.0f);     // 1.5 · 2^23: adding it rounds to the nearest integer
  const F n = (scaled + rounder) - rounder;  // never folded: -ffast-math is off
  F r = clipped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  F p = spread(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  I bits = (__builtin_convertvector(n, I) + 127) << 23;
  F power;
  __builtin_memcpy(&power, &bits, sizeof power);
  F result = p * power;
  result = x < spread(-87.3f) ? F{} : result;
  result = x > spread(88.3f) ? spread(__builtin_inff()) : result;
  return x != x ? x : result;
}

SECATEUR_INLINE F sigmoid(F x) { return 1.0f / (1.0f + exponential(-x)); }

SECATEUR_INLINE F hyperbolic_tangent(F x) {
  // near 0 the quotient cancels: the Taylor series to x^7 is exact to float there
  F magnitude = x < 0 ? -x : x;
  F e = exponential(-2.0f * magnitude);
  F far = (1.0f - e) / (1.0f + e);
  far = x < 0 ? -far : far;
  F s = x * x;
  F near = x * (1.0f + s * (-0.333333333f + s * (0.133333333f + s * -0.0539682540f)));
  return magnitude < spread(0.15f) ? near : far;
}

// erf by Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
SECATEUR_INLINE F error_function(F x) {
  F magnitude = x < 0 ? -x : x;
  F t = 1.0f / (1.0f + 0.3275911f * magnitude);
  F p = spread(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  F result = 1.0f - p * t * exponential(-magnitude * magnitude);
  return x < 0 ? -result : result;
}

// erf where what is near 0 counts too: there the Taylor series to x^9, whose relative error is below 1e-7.
SECATEUR_INLINE F full_error_function(F x) {
  const F magnitude = x < 0 ? -x : x, s = x * x;
  F near = spread(5.2239776e-3f);
  near = near * s - 2.6866171e-2f;
  near = near * s + 1.1283792e-1f;
  near = near * s - 3.7612639e-1f;
  near = (near * s + 1.1283792f) * x;
  return magnitude < spread(0.3f) ? near : error_function(x);
}

// e^x over its whole range: each half of it lies where `exponential` is exact, and their product overflows to infinity
// and underflows to 0.
SECATEUR_INLINE F full_exponential(F x) {
  const F half = exponential(0.5f * x);
  return half * half;
}

// ln x, relative error below 2 ulp: x = 2^e · m with m in [√½, √2), and a polynomial of m − 1 (Cephes logf).
SECATEUR_INLINE F logarithm(F x) {
  const auto tiny = x < spread(1.17549435e-38f);  // below the normal numbers: scaled up, 0 and less are seen to last
  const F scaled = tiny ? x * 8388608.0f : x;
  I bits;
  __builtin_memcpy(&bits, &scaled, sizeof bits);
  F e = __builtin_convertvector(((bits >> 23) & 255) - 126, F) - (tiny ? spread(23.0f) : F{});
  bits = (bits & 0x007FFFFF) | 0x3F000000;
  F m;
  __builtin_memcpy(&m, &bits, sizeof m);
  const auto low = m < spread(0.707106781f);
  e = low ? e - 1.0f : e;
  m = low ? m + m - 1.0f : m - 1.0f;
  F p = spread(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const F square = m * m;
  F result = p * m * square - 2.12194440e-4f * e - 0.5f * square;
  result = m + result + 0.693359375f * e;
  const F infinity = spread(__builtin_inff());
  result = x == infinity ? x : result;
  result = x == F{} ? -infinity : result;
  return x < F{} || x != x ? spread(__builtin_nanf("")) : result;
}

// ln(1 + x), exact where 1 + x is not: what that rounds off is put right by x/((1 + x) − 1) (Kahan).
SECATEUR_INLINE F logarithm_of_more(F x) {
  const F sum = 1.0f + x, kept = sum - 1.0f;
  const F result = logarithm(sum) * (x / kept);
  return kept == F{} ? x : sum == spread(__builtin_inff()) ? sum : result;
}

SECATEUR_INLINE F square_root(F x) {
  for (int i = 0; i < floats; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

SECATEUR_INLINE F sine(F x) {
  for (int i = 0; i < floats; i++) x[i] = __builtin_sinf(x[i]);
  return x;
}

SECATEUR_INLINE F cosine(F x) {
  for (int i = 0; i < floats; i++) x[i] = __builtin_cosf(x[i]);
  return x;
}

// The nearest whole number, of two the even one: 2^23 added and taken off again, where a fraction fits.
SECATEUR_INLINE F nearest(F x) {
  const F magnitude = x < 0 ? -x : x, rounder = spread(8388608.0f);
  const F whole = (magnitude + rounder) - rounder;
  return magnitude < rounder ? (x < 0 ? -whole : whole) : x;
}

SECATEUR_INLINE F activated(F x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return at_least(x, F{});
    case Activation::relu6: return at_most(at_least(x, F{}), spread(6.0f));
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
    case Activation::hardswish: return x * at_most(at_least(x + 3.0f, F{}), spread(6.0f)) / 6.0f;
    case Activation::hardsigmoid: return at_most(at_least(x + 3.0f, F{}), spread(6.0f)) / 6.0f;
    case Activation::sigmoid: return sigmoid(x);
    case Activation::tanh: return hyperbolic_tangent(x);
    case Activation::exp: return full_exponential(x);
    case Activation::log: return logarithm(x);
    case Activation::log1p: return logarithm_of_more(x);
    case Activation::sqrt: return square_root(x);
    case Activation::erf: return full_error_function(x);
    case Activation::sin: return sine(x);
    case Activation::cos: return cosine(x);
    case Activation::round: return nearest(x);
    case Activation::floor: {
      const F whole = nearest(x);
      return whole > x ? whole - 1.0f : whole;
    }
  }
  return x;
}

// Whether the activation is no more than a clamp, and to what: kernels then apply it in registers.
SECATEUR_INLINE bool is_clamp(Activation activation, float* low, float* high) {
  *low = activation == Activation::none ? -__builtin_inff() : 0.0f;
  *high = activation == Activation::relu6 ? 6.0f : __builtin_inff();
  return activation <= Activation::relu6;
}
