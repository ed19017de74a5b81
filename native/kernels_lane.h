// Everything but convolutions in the lane layout, and the little that runs on plain arrays. Included inside the
// namespace of one instruction set, after vector.h.

static void move_kernel(const MoveCall& call) {
  const V fill = spread(call.fill);
  for (int64_t c = 0; c < call.n_channels; c++) {
    char* to = call.to + c * call.to_plane;
    const char* from = call.from + c * call.from_plane;
    for (int64_t i = 0; i < call.n_moves; i++) {
      const Move& move = call.moves[i];
      if (move.from == from_none) {
        store(to + move.to, fill);
        continue;
      }
      if (move.from == from_many) {
        const int32_t* places = call.patterns + int64_t(move.pattern) * lanes;
        float* target = reinterpret_cast<float*>(to + move.to);
        for (int lane = 0; lane < lanes; lane++)
          target[lane] = places[lane] < 0 ? call.fill : reinterpret_cast<const float*>(from)[places[lane]];
        continue;
      }
      I places;
      __builtin_memcpy(&places, call.patterns + int64_t(move.pattern) * lanes, sizeof places);
      const V old = move.first ? fill : load(to + move.to);
      const V taken = permute(load(from + move.from), places);
      store(to + move.to, places < 0 ? old : taken);
    }
  }
}

// v[i][j] ↔ v[j][i], by exchanging ever larger squares.
SECATEUR_INLINE void transpose(V* v) {
#pragma GCC unroll 4
  for (int size = 1; size < lanes; size *= 2) {
    I low, high;
    for (int j = 0; j < lanes; j++) {
      low[j] = j & size ? lanes + j - size : j;
      high[j] = j & size ? lanes + j : j + size;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++) {
      if (i & size) continue;
      const V a = v[i], b = v[i + size];
      v[i] = permute_two(a, b, low);
      v[i + size] = permute_two(a, b, high);
    }
  }
}

// Runs of contiguous floats, one for each lane, to or from vectors `step` bytes apart. A run may be shorter than
// others, or missing (length 0).
struct LaneRuns {
  float* start[lanes];
  int64_t length[lanes];
};

template <bool to_lane>
static void convert_runs(const LaneRuns& runs, char* vectors, ptrdiff_t step) {
  int64_t shortest = INT64_MAX;
  for (int l = 0; l < lanes; l++)
    if (runs.length[l] > 0 && runs.length[l] < shortest) shortest = runs.length[l];
  if (shortest == INT64_MAX) return;
  int64_t done = 0;
  for (; done + lanes <= shortest; done += lanes) {
    V square[lanes];
    char* at = vectors + done * step;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++) {
      if (to_lane)
        square[i] = runs.length[i] > 0 ? load_plain(runs.start[i] + done) : V{};
      else
        square[i] = load(at + i * step);
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++) {
      if (to_lane)
        store(at + i * step, square[i]);
      else if (runs.length[i] > 0)
        store_plain(runs.start[i] + done, square[i]);
    }
  }
  for (int l = 0; l < lanes; l++) {
    for (int64_t i = done; i < runs.length[l]; i++) {
      float* number = reinterpret_cast<float*>(vectors + i * step) + l;
      if (to_lane)
        *number = runs.start[l][i];
      else
        runs.start[l][i] = *number;
    }
  }
}

// Images: runs are rows of pixels.
template <bool to_lane>
static void convert_images(const ConvertCall& call) {
  int64_t first_row[lanes], length[lanes], offset[lanes];
  const int32_t blocks = call.grid_y * call.grid_x;
  for (int l = 0; l < lanes; l++) {
    const int32_t image = l / blocks, block = l % blocks;
    first_row[l] = call.spread ? 0 : int64_t(block / call.grid_x) * call.block_height;
    const int64_t column = call.spread ? 0 : int64_t(block % call.grid_x) * call.block_width;
    length[l] = call.width - column < call.block_width ? call.width - column : call.block_width;
    if (image >= call.n_images || (call.spread && !to_lane && block > 0)) length[l] = 0;
    offset[l] = image * call.image_step + first_row[l] * call.y_step + column;
  }
  LaneRuns runs;
  for (int64_t c = 0; c < call.n_channels; c++) {
    for (int64_t y = 0; y < call.block_height; y++) {
      for (int l = 0; l < lanes; l++) {
        runs.length[l] = first_row[l] + y < call.height ? length[l] : 0;
        runs.start[l] = call.plain;
        if (runs.length[l] > 0) runs.start[l] += offset[l] + c * call.channel_step + y * call.y_step;
      }
      convert_runs<to_lane>(runs, call.lane.data + c * call.lane.plane + y * call.lane.row, vector_bytes);
    }
  }
}

// Tokens: runs are their features.
template <bool to_lane>
static void convert_tokens(const ConvertCall& call) {
  LaneRuns runs;
  for (int64_t x = 0; x < call.block_width; x++) {
    for (int l = 0; l < lanes; l++) {
      const int64_t token = int64_t(l) * call.block_width + x;
      runs.length[l] = token < call.width ? call.n_channels : 0;
      if (token < call.width) runs.start[l] = call.plain + token * call.x_step;
    }
    convert_runs<to_lane>(runs, call.lane.data + x * vector_bytes, call.lane.plane);
  }
}

template <bool to_lane>
static void convert(const ConvertCall& call) {
  if (call.tokens)
    convert_tokens<to_lane>(call);
  else
    convert_images<to_lane>(call);
}

template <Binary operation>
static void binary_as(const BinaryCall& call) {
  for (int64_t c = 0; c < call.n_channels; c++) {
    for (int64_t y = 0; y < call.height; y++) {
      const char* a = call.left.data + c * call.left.plane + y * call.left.row;
      const char* b = call.right.data + c * call.right.plane + y * call.right.row;
      char* out = call.output.data + c * call.output.plane + y * call.output.row;
      for (int64_t x = 0; x < call.width; x++) {
        const V l = load(a + x * call.left_step), r = load(b + x * call.right_step);
        const V v = operation == Binary::add   ? l + r
                    : operation == Binary::sub ? l - r
                    : operation == Binary::mul ? l * r
                                               : l / r;
        store(out + x * vector_bytes, activated(v, call.activation));
      }
    }
  }
}

static void binary_kernel(const BinaryCall& call) {
  switch (call.operation) {
    case Binary::add: return binary_as<Binary::add>(call);
    case Binary::sub: return binary_as<Binary::sub>(call);
    case Binary::mul: return binary_as<Binary::mul>(call);
    case Binary::div: return binary_as<Binary::div>(call);
  }
}

static void map_kernel(const MapCall& call) {
  for (int64_t c = 0; c < call.n_channels; c++) {
    const V scale = spread(call.scale ? call.scale[c] : 1.0f), shift = spread(call.shift ? call.shift[c] : 0.0f);
    for (int64_t y = 0; y < call.height; y++) {
      const char* in = call.input.data + c * call.input.plane + y * call.input.row;
      char* out = call.output.data + c * call.output.plane + y * call.output.row;
      for (int64_t x = 0; x < call.width; x++) {
        V v = load(in + x * vector_bytes);
        if (call.scale) v = v * scale + shift;
        v = activated(v, call.activation);
        store(out + x * vector_bytes, at_most(at_least(v, spread(call.low)), spread(call.high)));
      }
    }
  }
}

template <bool mean>
static void pool_kernel(const PoolCall& call) {
  for (int64_t c = 0; c < call.n_channels; c++) {
    for (int64_t y = 0; y < call.height; y++) {
      for (int64_t x = 0; x < call.width; x++) {
        const char* in = call.input.data + c * call.input.plane + y * call.stride_y * call.input.row +
                         x * call.stride_x * vector_bytes;
        V result = mean ? V{} : load(in);
        for (int32_t ky = 0; ky < call.window_y; ky++)
          for (int32_t kx = 0; kx < call.window_x; kx++) {
            const V v = load(in + ky * call.input.row + kx * vector_bytes);
            if (mean)
              result += v;
            else
              result = v > result ? v : (v != v ? v : result);
          }
        if (mean) result *= call.scale;
        store(call.output.data + c * call.output.plane + y * call.output.row + x * vector_bytes, result);
      }
    }
  }
}

static void mean_kernel(const MeanCall& call) {
  for (int64_t c = 0; c < call.n_channels; c++) {
    V sum = {};
    const float* valid = call.valid;
    for (int64_t y = 0; y < call.height; y++) {
      const char* in = call.input.data + c * call.input.plane + y * call.input.row;
      for (int64_t x = 0; x < call.width; x++, valid += lanes) {
        const V v = load(in + x * vector_bytes);
        sum += load_plain(valid) != 0.0f ? v : V{};
      }
    }
    V mean;
    for (int first = 0; first < lanes; first += call.lanes_per_image) {
      float total = 0;
      for (int i = 0; i < call.lanes_per_image; i++) total += sum[first + i];
      for (int i = 0; i < call.lanes_per_image; i++) mean[first + i] = total * call.scale;
    }
    store(call.output.data + c * call.output.plane, mean);
  }
}

static void layer_norm_kernel(const NormCall& call) {
  for (int64_t x = 0; x < call.width; x++) {
    const char* in = call.input.data + x * vector_bytes;
    V sum = {};
    for (int64_t c = 0; c < call.n_channels; c++) sum += load(in + c * call.input.plane);
    const V mean = sum / float(call.n_channels);
    V squares = {};
    for (int64_t c = 0; c < call.n_channels; c++) {
      const V d = load(in + c * call.input.plane) - mean;
      squares += d * d;
    }
    V inverse = squares / float(call.n_channels) + call.epsilon;
    for (int i = 0; i < lanes; i++) inverse[i] = 1.0f / __builtin_sqrtf(inverse[i]);
    for (int64_t c = 0; c < call.n_channels; c++) {
      V v = (load(in + c * call.input.plane) - mean) * inverse;
      if (call.scale) v *= call.scale[c];
      if (call.shift) v += call.shift[c];
      store(call.output.data + c * call.output.plane + x * vector_bytes, v);
    }
  }
}

static void activate_kernel(float* numbers, int64_t n, Activation activation) {
  if (activation == Activation::none) return;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_plain(numbers + i, activated(load_plain(numbers + i), activation));
  if (i < n) {
    float rest[lanes] = {};
    for (int64_t j = i; j < n; j++) rest[j - i] = numbers[j];
    store_plain(rest, activated(load_plain(rest), activation));
    for (int64_t j = i; j < n; j++) numbers[j] = rest[j - i];
  }
}

// R rows of a × C vectors of columns of b.
template <int R, int C>
SECATEUR_INLINE void matmul_tile(const float* const* a, const float* b, int64_t b_row, int64_t k, V* sums) {
  for (int64_t i = 0; i < k; i++, b += b_row) {
    V right[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) right[c] = load_plain(b + c * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const V left = spread(a[r][i]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r * C + c] += left * right[c];
    }
  }
}

// Columns j … of c, at most C · lanes of them, from b with rows of b_row floats; sums are added to `carry` of c.
template <int C>
static void matmul_columns(const MatmulCall& call, const float* b, int64_t b_row, int64_t first_k, int64_t k,
                           int64_t j, int64_t columns, bool last) {
  constexpr int rows = 4;
  for (int64_t i = 0; i < call.m; i += rows) {
    const float* a[rows];
    const int64_t n = call.m - i < rows ? call.m - i : rows;
    for (int r = 0; r < rows; r++) a[r] = call.a + (i + (r < n ? r : n - 1)) * call.a_row + first_k;
    V sums[rows * C] = {};
    matmul_tile<rows, C>(a, b, b_row, k, sums);
    for (int64_t r = 0; r < n; r++) {
      float* out = call.c + (i + r) * call.c_row + j;
      const float* numbers = reinterpret_cast<const float*>(sums + r * C);
      for (int64_t x = 0; x < columns; x++) {
        const float sum = first_k ? out[x] + numbers[x] : numbers[x];
        out[x] = last ? sum * call.scale : sum;
      }
    }
  }
}

// b is copied, transposed if need be, a panel of columns at a time, so that it is read in vectors without a rest.
static void matmul_kernel(const MatmulCall& call) {
  constexpr int vectors = 4, width = vectors * lanes, deep = 256;
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
          LaneRuns runs;
          for (int l = 0; l < lanes; l++) {
            const int64_t column = j + v * lanes + l;
            runs.length[l] = column < call.n ? k : 0;
            if (column < call.n) runs.start[l] = const_cast<float*>(call.b) + column * call.b_row + first;
          }
          convert_runs<true>(runs, reinterpret_cast<char*>(panel + v * lanes), width * 4);
        }
      }
      if (columns > 2 * lanes)
        matmul_columns<4>(call, panel, width, first, k, j, columns, last);
      else if (columns > lanes)
        matmul_columns<2>(call, panel, width, first, k, j, columns, last);
      else
        matmul_columns<1>(call, panel, width, first, k, j, columns, last);
    }
  }
}

static void softmax_kernel(float* numbers, int64_t n_rows, int64_t n) {
  for (int64_t r = 0; r < n_rows; r++) {
    float* row = numbers + r * n;
    float most = row[0];
    for (int64_t i = 1; i < n; i++) most = row[i] > most || row[i] != row[i] ? row[i] : most;
    V sums = {};
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      V v = load_plain(row + i);
      v = v == -__builtin_inff() ? V{} : exponential(v - most);
      store_plain(row + i, v);
      sums += v;
    }
    float sum = sum_lanes(sums);
    if (i < n) {
      float rest[lanes];
      for (int j = 0; j < lanes; j++) rest[j] = i + j < n ? row[i + j] : -__builtin_inff();
      V v = load_plain(rest);
      v = v == -__builtin_inff() ? V{} : exponential(v - most);
      sum += sum_lanes(v);
      for (int j = 0; i + j < n; j++) row[i + j] = v[j];
    }
    const float inverse = 1.0f / sum;
    for (int64_t j = 0; j < n; j++) row[j] *= inverse;
  }
}
