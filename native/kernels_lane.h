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

template <bool to_lane>
static void convert(const ConvertCall& call) {
  for (int64_t c = 0; c < call.n_channels; c++) {
    for (int32_t image = 0; image < call.n_images; image++) {
      for (int32_t by = 0; by < call.grid_y; by++) {
        for (int32_t bx = 0; bx < call.grid_x; bx++) {
          if (!to_lane && call.spread && (by || bx)) continue;
          const int64_t lane = (int64_t(image) * call.grid_y + by) * call.grid_x + bx;
          const int64_t y0 = call.spread ? 0 : int64_t(by) * call.block_height;
          const int64_t x0 = call.spread ? 0 : int64_t(bx) * call.block_width;
          const int64_t rows = call.height - y0 < call.block_height ? call.height - y0 : call.block_height;
          const int64_t columns = call.width - x0 < call.block_width ? call.width - x0 : call.block_width;
          for (int64_t y = 0; y < rows; y++) {
            float* plain = call.plain + image * call.image_step + c * call.channel_step + (y0 + y) * call.y_step +
                           x0 * call.x_step;
            float* inner = reinterpret_cast<float*>(call.lane.data + c * call.lane.plane + y * call.lane.row) + lane;
            for (int64_t x = 0; x < columns; x++) {
              if (to_lane)
                inner[x * lanes] = plain[x * call.x_step];
              else
                plain[x * call.x_step] = inner[x * lanes];
            }
          }
        }
      }
    }
  }
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

// Rows of b in memory: lanes run over n. b transposed: a dot product per number, lanes run over k.
static void matmul_kernel(const MatmulCall& call) {
  if (call.b_transposed) {
    for (int64_t i = 0; i < call.m; i++) {
      const float* a = call.a + i * call.a_row;
      int64_t j = 0;
      for (; j < call.n; j += 4) {
        const float* b[4];
        for (int q = 0; q < 4; q++) b[q] = call.b + (j + q < call.n ? j + q : call.n - 1) * call.b_row;
        V sums[4] = {};
        int64_t k = 0;
        for (; k + lanes <= call.k; k += lanes) {
          const V left = load_plain(a + k);
#pragma GCC unroll 4
          for (int q = 0; q < 4; q++) sums[q] += left * load_plain(b[q] + k);
        }
        for (int q = 0; q < 4 && j + q < call.n; q++) {
          float sum = sum_lanes(sums[q]);
          for (int64_t r = k; r < call.k; r++) sum += a[r] * b[q][r];
          call.c[i * call.c_row + j + q] = sum * call.scale;
        }
      }
    }
    return;
  }
  for (int64_t i = 0; i < call.m; i += 4) {
    const int64_t rows = call.m - i < 4 ? call.m - i : 4;
    const float* a[4];
    for (int q = 0; q < 4; q++) a[q] = call.a + (i + (q < rows ? q : rows - 1)) * call.a_row;
    int64_t j = 0;
    for (; j + lanes <= call.n; j += lanes) {
      V sums[4] = {};
      for (int64_t k = 0; k < call.k; k++) {
        const V right = load_plain(call.b + k * call.b_row + j);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) sums[q] += right * a[q][k];
      }
      for (int q = 0; q < rows; q++) store_plain(call.c + (i + q) * call.c_row + j, sums[q] * call.scale);
    }
    for (; j < call.n; j++) {
      for (int q = 0; q < rows; q++) {
        float sum = 0;
        for (int64_t k = 0; k < call.k; k++) sum += a[q][k] * call.b[k * call.b_row + j];
        call.c[(i + q) * call.c_row + j] = sum * call.scale;
      }
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
