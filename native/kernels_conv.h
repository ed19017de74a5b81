// Convolutions in the lane layout. Included inside the namespace of one instruction set, after vector.h.

// By itself, so that the code of the activations is not repeated in every kernel.
static __attribute__((noinline)) void activate_tile(char* out, ptrdiff_t row, int height, int width,
                                                    Activation activation) {
  for (int y = 0; y < height; y++)
    for (char *p = out + y * row, *end = p + width * vector_bytes; p != end; p += part_bytes)
      store_part(p, activated(load_part(p), activation));
}

// A tile's accumulators → output: the residual is added and a clamp applied in registers, other activations by a
// second pass over the vectors just stored.
template <int TH, int TW>
SECATEUR_INLINE void finish_tile(const V* sums, const Finish& finish, ptrdiff_t channel) {
  float low, high;
  const bool clamp = is_clamp(finish.activation, &low, &high);
  char* out = finish.output.data + channel * finish.output.plane;
  const char* residual = finish.residual.data;
  if (residual) residual += channel * finish.residual.plane;
#pragma GCC unroll 8
  for (int y = 0; y < TH; y++) {
#pragma GCC unroll 16
    for (int x = 0; x < TW; x++) {
      V v = sums[y * TW + x];
      if (residual) v += load(residual + y * finish.residual.row + x * vector_bytes);
      if (clamp) v = at_most(at_least(v, spread_number(low)), spread_number(high));
      store(out + y * finish.output.row + x * vector_bytes, v);
    }
  }
  if (!clamp) activate_tile(out, finish.output.row, TH, TW, finish.activation);
}

// The sums of one output channel: kept as partial sums, or finished.
template <int TH, int TW>
SECATEUR_INLINE void finish_row(V* sums, const RowsCall& call, ptrdiff_t row) {
  constexpr int pixels = TH * TW;
  char* partial = call.partial + row * pixels * vector_bytes;
  if (!call.first) {
#pragma GCC unroll 32
    for (int p = 0; p < pixels; p++) sums[p] += load(partial + p * vector_bytes);
  }
  if (call.last) {
    finish_tile<TH, TW>(sums, call.finish, row);
  } else {
#pragma GCC unroll 32
    for (int p = 0; p < pixels; p++) store(partial + p * vector_bytes, sums[p]);
  }
}

// The next few lines of what will be read soon, into the second-level cache.
class Fetcher {
 public:
  __attribute__((always_inline)) inline explicit Fetcher(const Ahead& ahead)
      : ahead_(ahead), row_(ahead.data), channel_(ahead.data) {}

  __attribute__((always_inline)) inline void fetch() {
    if (!ahead_.data) return;
    for (int32_t n = ahead_.per_run; n > 0 && channels_ < ahead_.n_channels; n--) {
      __builtin_prefetch(row_ + line_ * 64, 0, 2);
      if (++line_ < ahead_.lines) continue;
      line_ = 0;
      row_ += ahead_.row;
      if (++y_ < ahead_.height) continue;
      y_ = 0;
      channels_++;
      row_ = channel_ += ahead_.plane;
    }
  }

 private:
  const Ahead& ahead_;
  const char *row_, *channel_;
  int32_t line_ = 0, y_ = 0, channels_ = 0;
};

// Output lines that another core wrote last must be handed over before a store can finish: ask for them two rows early.
constexpr int64_t soon = 2;
template <int TH, int TW>
SECATEUR_INLINE void own_tile(const LaneView& output, ptrdiff_t channel) {
  const char* out = output.data + channel * output.plane;
#pragma GCC unroll 8
  for (int y = 0; y < TH; y++) {
#pragma GCC unroll 16
    for (int x = 0; x < TW; x++) __builtin_prefetch(out + y * output.row + x * vector_bytes, 1, 3);
  }
}

// For each non-zero: one broadcast, and one multiply-add with a memory operand per pixel of the tile.
//
// Two details cost or save a quarter of the time (docs/runtime.md). Offsets are read some steps ahead, across the ends
// of rows: processors start loads in order of age, so an address that is itself just being loaded holds up all loads
// behind it. And sums start from zero, the partial sums of earlier blocks being added at the end, so that nothing waits
// for those to come from the second-level cache.
template <int TH, int TW, int SX>
static void rows_kernel(const RowsCall& call) {
  constexpr int pixels = TH * TW;
  constexpr int far = 3;
  const Step* step = call.steps;
  ptrdiff_t ahead[far];
#pragma GCC unroll 8
  for (int i = 0; i < far; i++) ahead[i] = step[i].offset;
  const ptrdiff_t step_x = SX ? SX * vector_bytes : call.input_step;
  const char* input[TH];  // one register for each tile row
#pragma GCC unroll 8
  for (int y = 0; y < TH; y++) {
    input[y] = call.input + y * call.input_row;
    SECATEUR_OPAQUE(input[y]);
  }
  Fetcher fetcher(call.ahead);
  for (int64_t i = 0; i < call.n_runs; i++) {
    const ptrdiff_t row = call.runs[i].row;
    const V start = call.first ? spread_number(call.bias[row]) : V{};
    V sums[pixels];
#pragma GCC unroll 32
    for (int p = 0; p < pixels; p++) sums[p] = start;
    fetcher.fetch();
    if (call.last && i + soon < call.n_runs) own_tile<TH, TW>(call.finish.output, call.runs[i + soon].row);
    for (const Step* end = step + call.runs[i].count; step != end; ++step) {
      const ptrdiff_t offset = ahead[0];
#pragma GCC unroll 8
      for (int a = 0; a + 1 < far; a++) ahead[a] = ahead[a + 1];
      ahead[far - 1] = step[far].offset;
      SECATEUR_OPAQUE(ahead[far - 1]);  // else it would be loaded where it is used
      const V weight = spread_weight(step->weight);
#pragma GCC unroll 8
      for (int y = 0; y < TH; y++) {
#pragma GCC unroll 16
        for (int x = 0; x < TW; x++) sums[y * TW + x] += weight * load(input[y] + offset + x * step_x);
      }
    }
    finish_row<TH, TW>(sums, call, row);
  }
}

// Tiles of one to three pixels: too few sums to hide the latency of a multiply-add, so several steps at a time, each
// with sums of its own. So little is computed for each step that they come from the third-level cache: ask in time.
constexpr int prefetch_steps = 128;
template <int TH, int TW, int SX>
static void small_rows_kernel(const RowsCall& call) {
  constexpr int pixels = TH * TW, chains = pixels == 1 ? 4 : 2;
  const Step* step = call.steps;
  const ptrdiff_t step_x = SX ? SX * vector_bytes : call.input_step;
  Fetcher fetcher(call.ahead);
  for (int64_t i = 0; i < call.n_runs; i++) {
    const ptrdiff_t row = call.runs[i].row;
    fetcher.fetch();
    V sums[chains * pixels] = {};
    const Step* end = step + call.runs[i].count;
    if (call.first) {
      const V bias = spread_number(call.bias[row]);
      for (int p = 0; p < pixels; p++) sums[p] = bias;
    }
    const auto add = [&](const Step& from, V* to) __attribute__((always_inline)) {
      const V weight = spread_weight(from.weight);
      const char* input = call.input + from.offset;
#pragma GCC unroll 8
      for (int y = 0; y < TH; y++) {
#pragma GCC unroll 8
        for (int x = 0; x < TW; x++) to[y * TW + x] += weight * load(input + y * call.input_row + x * step_x);
      }
    };
    for (; end - step >= chains; step += chains) {
      __builtin_prefetch(step + prefetch_steps);
#pragma GCC unroll 4
      for (int c = 0; c < chains; c++) add(step[c], sums + c * pixels);
    }
    for (; step != end; ++step) add(*step, sums);
#pragma GCC unroll 16
    for (int p = pixels; p < chains * pixels; p++) sums[p % pixels] += sums[p];
    finish_row<TH, TW>(sums, call, row);
  }
}

constexpr int prefetch_weights = 1024;

// Halves lose what is added to a sum that has grown: after so many steps, sums are kept in floats and begin anew. Rows
// are cut short by blocks of channels; widening their partial sums costs more than it gains (docs/runtime.md).
constexpr int64_t half_steps = 256;

template <int n>
SECATEUR_INLINE void keep_sums(V* sums, char* kept) {
#pragma GCC unroll 32
  for (int i = 0; i < n; i++) {
    store_wide(kept + i * wide_bytes, sum_of(kept + i * wide_bytes, sums[i]));
    sums[i] = V{};
  }
}

// For each weight position: TH · TW input vectors, each used for M output channels.
template <int M, int TH, int TW, int SX>
static void dense_kernel(const DenseCall& call) {
  constexpr int pixels = TH * TW;
  const ptrdiff_t step_x = SX ? SX * vector_bytes : call.input_step;
  V sums[M * pixels];
  alignas(64) char kept[is_half ? M * pixels * wide_bytes : 1];
  if (is_half && call.n_steps >= half_steps) __builtin_memset(kept, 0, sizeof kept);
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    const V start = call.first ? spread_number(call.bias[m]) : V{};
#pragma GCC unroll 32
    for (int p = 0; p < pixels; p++) sums[m * pixels + p] = start;
  }
  Fetcher(call.ahead).fetch();
  const WeightBits* weights = call.weights;
  for (int64_t k = 0; k < call.n_steps; k++, weights += M) {
    // With few pixels the weights are read once or twice, and come from memory: ask for them in time.
    if (pixels <= 4) __builtin_prefetch(weights + prefetch_weights);
    const char* input = call.input + call.offsets[k];
#pragma GCC unroll 8
    for (int y = 0; y < TH; y++) {
#pragma GCC unroll 16
      for (int x = 0; x < TW; x++) {
        V v = load(input + y * call.input_row + x * step_x);
        SECATEUR_IN_REGISTER(v);  // else each multiply-add would read it again
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) sums[m * pixels + y * TW + x] += v * spread_weight(weights[m]);
      }
    }
    if (is_half && k % half_steps == half_steps - 1) keep_sums<M * pixels>(sums, kept);
  }
  if (is_half && call.n_steps >= half_steps) {
#pragma GCC unroll 32
    for (int i = 0; i < M * pixels; i++) sums[i] = narrowed(sum_of(kept + i * wide_bytes, sums[i]));
  }
  if (!call.first) {
#pragma GCC unroll 32
    for (int i = 0; i < M * pixels; i++) sums[i] += load(call.partial + i * vector_bytes);
  }
  if (!call.last) {
#pragma GCC unroll 32
    for (int i = 0; i < M * pixels; i++) store(call.partial + i * vector_bytes, sums[i]);
    return;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) finish_tile<TH, TW>(sums + m * pixels, call.finish, m);
}

// Sixteen rows side by side: no sum across lanes, no short rows.
static void gather_kernel(const GatherCall& call) {
  const float* weights = call.weights;
  const int32_t* columns = call.columns;
  for (int64_t s = 0; s < call.n_slices; s++) {
    F even = {}, odd = {};
    int64_t k = 0;
    for (; k + 2 <= call.n_steps[s]; k += 2, weights += 2 * floats, columns += 2 * floats) {
      F a, b;
      for (int i = 0; i < floats; i++) a[i] = call.input[columns[i]];
      for (int i = 0; i < floats; i++) b[i] = call.input[columns[floats + i]];
      even += a * load_plain(weights);
      odd += b * load_plain(weights + floats);
    }
    if (k < call.n_steps[s]) {
      F a;
      for (int i = 0; i < floats; i++) a[i] = call.input[columns[i]];
      even += a * load_plain(weights);
      weights += floats;
      columns += floats;
    }
    even += odd;
    const int32_t* rows = call.rows + s * floats;
    F extra = {};
    for (int i = 0; i < floats; i++)
      if (rows[i] >= 0) extra[i] = call.bias[rows[i]] + (call.residual ? call.residual[rows[i]] : 0.0f);
    const F result = activated(even + extra, call.activation);
    for (int i = 0; i < floats; i++)
      if (rows[i] >= 0) call.output[rows[i]] = result[i];
  }
}
