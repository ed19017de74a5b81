// Everything but convolutions in the lane layout. Included inside the namespace of one instruction set, after vector.h.
// Lane tensors may hold halves: all that computes here widens them to floats, a part of a vector at a time.

// A move for some channels at a time: its pattern then stays in registers, and what it reads in the first-level cache.
static void move_kernel(const MoveCall& call) {
  constexpr int64_t channels_at_a_time = 8;
  const V fill = spread_number(call.fill);
  for (int64_t first = 0; first < call.n_channels; first += channels_at_a_time) {
    const int64_t n = call.n_channels - first < channels_at_a_time ? call.n_channels - first : channels_at_a_time;
    for (int64_t i = 0; i < call.n_moves; i++) {
      const Move& move = call.moves[i];
      char* to = call.to + first * call.to_plane + move.to;
      if (move.from == from_none) {
        for (int64_t c = 0; c < n; c++) store(to + c * call.to_plane, fill);
        continue;
      }
      const int32_t* pattern = call.patterns + int64_t(move.pattern) * lanes;
      const char* from = call.from + first * call.from_plane;
      if (move.from == from_many) {
        for (int64_t c = 0; c < n; c++) {
          auto* target = reinterpret_cast<Number*>(to + c * call.to_plane);
          const auto* plane = reinterpret_cast<const Number*>(from + c * call.from_plane);
          for (int lane = 0; lane < lanes; lane++) target[lane] = pattern[lane] < 0 ? fill[0] : plane[pattern[lane]];
        }
        continue;
      }
      from += move.from;
      Places places;
      for (int lane = 0; lane < lanes; lane++) places[lane] = Place(pattern[lane]);
      const Places keep = places < 0;
      for (int64_t c = 0; c < n; c++) {
        __builtin_prefetch(from + (c + channels_at_a_time) * call.from_plane);  // it may lie in another core's cache
        const V old = move.first ? fill : load(to + c * call.to_plane);
        const V taken = permute(load(from + c * call.from_plane), places);
        store(to + c * call.to_plane, keep ? old : taken);
      }
    }
  }
}

// v[i][j] ↔ v[j][i], by exchanging ever larger squares.
SECATEUR_INLINE void transpose(F* v) {
#pragma GCC unroll 4
  for (int size = 1; size < floats; size *= 2) {
    I low, high;
    for (int j = 0; j < floats; j++) {
      low[j] = j & size ? floats + j - size : j;
      high[j] = j & size ? floats + j : j + size;
    }
#pragma GCC unroll 16
    for (int i = 0; i < floats; i++) {
      if (i & size) continue;
      const F a = v[i], b = v[i + size];
      v[i] = permute_two(a, b, low);
      v[i + size] = permute_two(a, b, high);
    }
  }
}

// Runs of contiguous floats, one for each number of a part of a vector, to or from parts `step` bytes apart. A run may
// be shorter than others, or missing (length 0): its numbers in the parts are then zeros.
struct Runs {
  float* start[floats];
  int64_t length[floats];
};

SECATEUR_INLINE F load_row(const float* p) { return *reinterpret_cast<const F*>(p); }
SECATEUR_INLINE void store_row(float* p, F v) { *reinterpret_cast<F*>(p) = v; }
#ifdef SECATEUR_HALF
SECATEUR_INLINE F load_row(const Number* p) { return load_part(p); }
SECATEUR_INLINE void store_row(Number* p, F v) { store_part(p, v); }
#endif

// Element: of the parts, a Number, or a float for plain arrays.
template <bool to_lane, typename Element>
static void convert_runs(const Runs& runs, char* parts, ptrdiff_t step) {
  int64_t longest = 0;
  for (int l = 0; l < floats; l++)
    if (runs.length[l] > longest) longest = runs.length[l];
  const auto part = [&](int64_t i) { return reinterpret_cast<Element*>(parts + i * step); };
  for (int64_t done = 0; done < longest; done += floats) {
    const int64_t n = longest - done;
    F square[floats];
#pragma GCC unroll 16
    for (int i = 0; i < floats; i++) {
      if (to_lane)
        square[i] = runs.length[i] > done ? load_first(runs.start[i] + done, runs.length[i] - done) : F{};
      else
        square[i] = i < n ? load_row(part(done + i)) : F{};
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < floats; i++) {
      if (to_lane) {
        if (i < n) store_row(part(done + i), square[i]);
      } else if (runs.length[i] > done) {
        store_first(runs.start[i] + done, square[i], runs.length[i] - done);
      }
    }
  }
}

// Images: runs are rows of pixels, or all rows of a block where they follow each other on both sides, or the channels
// of one pixel.
template <bool to_lane>
static void convert_images(const ConvertCall& call) {
  const int32_t blocks = call.grid_y * call.grid_x;
  const bool pixel = call.spread;
  const bool joined = !pixel && call.width == call.block_width && call.lane.row == call.width * vector_bytes;
  const int64_t rows = pixel || joined ? 1 : call.block_height, channels = pixel ? 1 : call.n_channels;
  const ptrdiff_t step = pixel ? call.lane.plane : vector_bytes;
  int64_t height[lanes], length[lanes], offset[lanes];  // of each block
  for (int l = 0; l < lanes; l++) {
    const int32_t image = l / blocks, block = l % blocks;
    const int64_t row = call.spread ? 0 : int64_t(block / call.grid_x) * call.block_height;
    const int64_t column = call.spread ? 0 : int64_t(block % call.grid_x) * call.block_width;
    height[l] = call.height - row < call.block_height ? call.height - row : call.block_height;
    length[l] = call.width - column < call.block_width ? call.width - column : call.block_width;
    if (image >= call.n_images || (call.spread && !to_lane && block > 0)) height[l] = 0;
    if (pixel) length[l] = call.n_channels;
    if (joined) length[l] *= height[l] > 0 ? height[l] : 0;
    offset[l] = image * call.image_step + row * call.y_step + column;
  }
  Runs runs;
  for (int64_t c = 0; c < channels; c++) {
    for (int64_t y = 0; y < rows; y++) {
      char* vectors = call.lane.data + c * call.lane.plane + y * call.lane.row;
      for (int first = 0; first < lanes; first += floats) {
        for (int i = 0; i < floats; i++) {
          const int l = first + i;
          runs.length[i] = y < height[l] ? length[l] : 0;
          runs.start[i] = call.plain;
          if (runs.length[i] > 0) runs.start[i] += offset[l] + c * call.channel_step + y * call.y_step;
        }
        convert_runs<to_lane, Number>(runs, vectors + first * sizeof(Number), step);
      }
    }
  }
}

// Tokens: runs are their features.
template <bool to_lane>
static void convert_tokens(const ConvertCall& call) {
  Runs runs;
  for (int64_t x = 0; x < call.block_width; x++) {
    for (int first = 0; first < lanes; first += floats) {
      for (int i = 0; i < floats; i++) {
        const int64_t token = int64_t(first + i) * call.block_width + x;
        runs.length[i] = token < call.width ? call.n_channels : 0;
        if (token < call.width) runs.start[i] = call.plain + token * call.x_step;
      }
      char* parts = call.lane.data + x * vector_bytes + first * sizeof(Number);
      convert_runs<to_lane, Number>(runs, parts, call.lane.plane);
    }
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
        for (ptrdiff_t p = 0; p < vector_bytes; p += part_bytes) {
          const F l = load_part(a + x * call.left_step + p), r = load_part(b + x * call.right_step + p);
          const F v = operation == Binary::add   ? l + r
                      : operation == Binary::sub ? l - r
                      : operation == Binary::mul ? l * r
                                                 : l / r;
          store_part(out + x * vector_bytes + p, activated(v, call.activation));
        }
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
    const F scale = spread(call.scale ? call.scale[c] : 1.0f), shift = spread(call.shift ? call.shift[c] : 0.0f);
    for (int64_t y = 0; y < call.height; y++) {
      const char* in = call.input.data + c * call.input.plane + y * call.input.row;
      char* out = call.output.data + c * call.output.plane + y * call.output.row;
      for (ptrdiff_t p = 0; p < call.width * vector_bytes; p += part_bytes) {
        F v = load_part(in + p);
        if (call.scale) v = v * scale + shift;
        v = activated(v, call.activation);
        store_part(out + p, at_most(at_least(v, spread(call.low)), spread(call.high)));
      }
    }
  }
}

template <bool mean>
static void pool_kernel(const PoolCall& call) {
  for (int64_t c = 0; c < call.n_channels; c++) {
    for (int64_t y = 0; y < call.height; y++) {
      for (ptrdiff_t at = 0; at < call.width * vector_bytes; at += part_bytes) {
        const ptrdiff_t x = at / vector_bytes, part = at % vector_bytes;
        const char* in = call.input.data + c * call.input.plane + y * call.stride_y * call.input.row +
                         x * call.stride_x * vector_bytes + part;
        F result = mean ? F{} : load_part(in);
        for (int32_t ky = 0; ky < call.window_y; ky++) {
          F line = {};  // rows are summed by themselves, so that rounding errors do not add up
          for (int32_t kx = 0; kx < call.window_x; kx++) {
            const F v = load_part(in + ky * call.input.row + kx * vector_bytes);
            if (mean)
              line += v;
            else
              result = larger(result, v);
          }
          if (mean) result += line;
        }
        if (mean) result *= call.scale;
        store_part(call.output.data + c * call.output.plane + y * call.output.row + at, result);
      }
    }
  }
}

static void mean_kernel(const MeanCall& call) {
  constexpr int parts = lanes / floats;
  for (int64_t c = 0; c < call.n_channels; c++) {
    alignas(64) float sums[lanes] = {};
    const float* valid = call.valid;
    for (int part = 0; part < parts; part++) {
      F sum = {};
      for (int64_t y = 0; y < call.height; y++) {
        const char* in = call.input.data + c * call.input.plane + y * call.input.row + part * part_bytes;
        F line = {};
        for (int64_t x = 0; x < call.width; x++) {
          const F v = load_part(in + x * vector_bytes);
          line += load_plain(valid + (y * call.width + x) * lanes + part * floats) != 0.0f ? v : F{};
        }
        sum += line;
      }
      store_plain(sums + part * floats, sum);
    }
    for (int first = 0; first < lanes; first += call.lanes_per_image) {
      float total = 0;
      for (int i = 0; i < call.lanes_per_image; i++) total += sums[first + i];
      for (int i = 0; i < call.lanes_per_image; i++) sums[first + i] = total * call.scale;
    }
    char* out = call.output.data + c * call.output.plane;
    for (int part = 0; part < parts; part++) store_part(out + part * part_bytes, load_plain(sums + part * floats));
  }
}

static void layer_norm_kernel(const NormCall& call) {
  for (ptrdiff_t at = 0; at < call.width * vector_bytes; at += part_bytes) {
    const char* in = call.input.data + at;
    F sum = {};
    for (int64_t c = 0; c < call.n_channels; c++) sum += load_part(in + c * call.input.plane);
    const F mean = sum / float(call.n_channels);
    F squares = {};
    for (int64_t c = 0; c < call.n_channels; c++) {
      const F d = load_part(in + c * call.input.plane) - mean;
      squares += d * d;
    }
    F inverse = squares / float(call.n_channels) + call.epsilon;
    for (int i = 0; i < floats; i++) inverse[i] = 1.0f / __builtin_sqrtf(inverse[i]);
    for (int64_t c = 0; c < call.n_channels; c++) {
      F v = (load_part(in + c * call.input.plane) - mean) * inverse;
      if (call.scale) v *= call.scale[c];
      if (call.shift) v += call.shift[c];
      store_part(call.output.data + c * call.output.plane + at, v);
    }
  }
}
