// The table of one instruction set: which tiles of which kernel exist. SECATEUR_SUMS is the number of accumulators
// that stay in registers. Included inside the namespace of one instruction set, last.

// clang-format off: a row of the table, a line
#define SECATEUR_TILES(X) \
  X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(1, 6) X(1, 7) X(1, 8) \
  X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(2, 6) X(2, 7) X(2, 8) \
  X(3, 1) X(3, 2) X(3, 3) X(3, 4) X(3, 5) X(3, 6) X(3, 7) X(3, 8) \
  X(4, 1) X(4, 2) X(4, 3) X(4, 4) X(4, 5) X(4, 6) X(4, 7)
// clang-format on

template <int TH, int TW, int SX>
constexpr RowsKernel rows_entry() {
  if constexpr (TH * TW < 4)
    return {TH, TW, SX, small_rows_kernel<TH, TW, SX>};
  else if constexpr (TH * TW <= SECATEUR_SUMS)
    return {TH, TW, SX, rows_kernel<TH, TW, SX>};
  else
    return {TH, TW, SX, nullptr};
}

// 8, 4 or 1 output channels at a time: their sums, their weights and one input vector stay in registers.
template <int M, int TH, int TW, int SX>
constexpr DenseKernel dense_entry() {
  constexpr int pixels = TH * TW;
  if constexpr (pixels * M <= SECATEUR_SUMS - M - (M == 8 ? 0 : 2) && pixels * 4 <= SECATEUR_SUMS - 4)
    return {M, TH, TW, SX, dense_kernel<M, TH, TW, SX>};
  else
    return {M, TH, TW, SX, nullptr};
}

#define SECATEUR_ROWS(h, w) rows_entry<h, w, 0>(), rows_entry<h, w, 1>(), rows_entry<h, w, 2>(),
#define SECATEUR_DENSE(h, w)                                                                                  \
  dense_entry<8, h, w, 0>(), dense_entry<8, h, w, 1>(), dense_entry<8, h, w, 2>(), dense_entry<4, h, w, 0>(), \
      dense_entry<4, h, w, 1>(), dense_entry<4, h, w, 2>(), dense_entry<1, h, w, 0>(),

static constexpr RowsKernel rows_kernels[] = {SECATEUR_TILES(SECATEUR_ROWS)};
static constexpr DenseKernel dense_kernels[] = {SECATEUR_TILES(SECATEUR_DENSE)};

static WeightBits weight_bits(float weight) {
  const Number number = Number(weight);
  WeightBits bits = 0;
  __builtin_memcpy(&bits, &number, sizeof number);
  return sizeof number == 2 ? bits << 16 | bits : bits;
}

extern const KernelTable table;
const KernelTable table = {
    SECATEUR_ISA_NAME,
    lanes,
    sizeof(Number),
    floats,
    weight_bits,
    rows_kernels,
    sizeof rows_kernels / sizeof *rows_kernels,
    dense_kernels,
    sizeof dense_kernels / sizeof *dense_kernels,
    is_half ? nullptr : winograd_input_kernel,
    is_half ? nullptr : winograd_output_kernel,
    gather_kernel,
    move_kernel,
    convert<true>,
    convert<false>,
    binary_kernel,
    map_kernel,
    pool_kernel<false>,
    pool_kernel<true>,
    mean_kernel,
    layer_norm_kernel,
    activate_kernel,
    matmul_kernel,
    softmax_kernel,
};
