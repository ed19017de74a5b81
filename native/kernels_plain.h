// What runs on plain arrays of floats. Included inside the namespace of one instruction set, after kernels_lane.h.

static void activate_kernel(float* numbers, int64_t n, Activation activation) {
  if (activation == Activation::none) return;
  for (int64_t i = 0; i < n; i += floats)
    store_first(numbers + i, activated(load_first(numbers + i, n - i), activation), n - i);
}

// R rows of a × C vectors of columns of b.
template <int R, int C>
SECATEUR_INLINE void matmul_tile(const float* const* a, const float* b, int64_t b_row, int64_t k, F* sums) {
  for (int64_t i = 0; i < k; i++, b += b_row) {
    F right[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) right[c] = load_plain(b + c * floats);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const F left = spread(a[r][i]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r * C + c] += left * right[c];
    }
  }
}

// Columns j … of c, at most C · floats of them, from b with rows of b_row floats; sums are added to `carry` of c.
template <int C>
static void matmul_columns(const MatmulCall& call, const float* b, int64_t b_row, int64_t first_k, int64_t k, int64_t j,
                           int64_t columns, bool last) {
  constexpr int rows = 4;
  for (int64_t i = 0; i < call.m; i += rows) {
    const float* a[rows];
    const int64_t n = call.m - i < rows ? call.m - i : rows;
    for (int r = 0; r < rows; r++) a[r] = call.a + (i + (r < n ? r : n - 1)) * call.a_row + first_k;
    F sums[rows * C] = {};
    matmul_tile<rows, C>(a, b, b_row, k, sums);
    const float scale = last ? call.scale : 1.0f;
    for (int64_t r = 0; r < n; r++) {
      float* out = call.c + (i + r) * call.c_row + j;
      const F* v = sums + r * C;
      for (int64_t x = 0; x < columns; x += floats, v++) {
        const F sum = first_k ? load_first(out + x, columns - x) + *v : *v;
        store_first(out + x, sum * scale, columns - x);
      }
    }
  }
}

// b is copied, transposed if need be, a panel of columns at a time, so that it is read in vectors without a rest.
static void matmul_kernel(const MatmulCall& call) {
  constexpr int vectors = 4, width = vectors * floats, deep = 256;
  alignas(64) float panel[deep * width];
  for (int64_t j = 0; j < call.n; j += width) {
    const int64_t columns = call.n - j < width ? call.n - j : width;
    for (int64_t first = 0; first < call.k; first += deep) {
      const int64_t k = call.k - first < deep ? call.k - first : deep;
      const bool last = first + deep >= call.k;
      if (!call.b_transposed) {
        for (int64_t i = 0; i < k; i++)
          for (int64_t x = 0; x < width; x++)
            panel[i * width + x] = x < columns ? call.b[(first + i) * call.b_row + j + x] : 0.0f;
      } else {
        for (int v = 0; v < vectors; v++) {
          Runs runs{};
          for (int l = 0; l < floats; l++) {
            const int64_t column = j + v * floats + l;
            runs.length[l] = column < call.n ? k : 0;
            if (column < call.n) runs.start[l] = const_cast<float*>(call.b) + column * call.b_row + first;
          }
          convert_runs<true, float>(runs, reinterpret_cast<char*>(panel + v * floats), width * 4);
        }
      }
      if (columns > 2 * floats)
        matmul_columns<4>(call, panel, width, first, k, j, columns, last);
      else if (columns > floats)
        matmul_columns<2>(call, panel, width, first, k, j, columns, last);
      else
        matmul_columns<1>(call, panel, width, first, k, j, columns, last);
    }
  }
}

// The largest number, or a NaN if there is one.
static float largest_of(const float* numbers, int64_t n) {
  F most = spread(numbers[0]);
  int64_t i = 0;
  for (; i + floats <= n; i += floats) most = larger(most, load_plain(numbers + i));
  float result = most[0];
  for (int l = 1; l < floats; l++) result = larger(result, float(most[l]));
  for (; i < n; i++) result = larger(result, numbers[i]);
  return result;
}

static void softmax_kernel(float* numbers, int64_t n_rows, int64_t n) {
  for (int64_t r = 0; r < n_rows; r++) {
    float* row = numbers + r * n;
    const float most = largest_of(row, n);
    F sums = {};
    int64_t i = 0;
    for (; i + floats <= n; i += floats) {
      F v = load_plain(row + i);
      v = v == -__builtin_inff() ? F{} : exponential(v - most);
      store_plain(row + i, v);
      sums += v;
    }
    float sum = sum_of(sums);
    if (i < n) {
      float rest[floats];
      for (int j = 0; j < floats; j++) rest[j] = i + j < n ? row[i + j] : -__builtin_inff();
      F v = load_plain(rest);
      v = v == -__builtin_inff() ? F{} : exponential(v - most);
      sum += sum_of(v);
      for (int j = 0; i + j < n; j++) row[i + j] = v[j];
    }
    const float inverse = 1.0f / sum;
    for (int64_t j = 0; j < n; j++) row[j] *= inverse;
  }
}
