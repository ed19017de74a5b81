// The two transforms of Winograd's F(2×2, 3×3) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
// 2016); the products between them are those of dense_kernel. Included inside the namespace of one instruction set,
// after kernels_conv.h.

// Bᵀ · d · B, with Bᵀ = [1 0 −1 0; 0 1 1 0; 0 −1 1 0; 0 1 0 −1].
static void winograd_input_kernel(const WinogradInputCall& call) {
  ptrdiff_t rows[4], columns[4];  // what is not there is read from beside it
  for (int i = 0; i < 4; i++) {
    rows[i] = (i < call.rows ? i : call.rows - 1) * call.row;
    columns[i] = (i < call.columns ? i : call.columns - 1) * vector_bytes;
  }
  const char* input = call.input;
  char* to = call.places;
  for (int64_t c = 0; c < call.n_channels; c++, input += call.plane, to += call.channel) {
    V half[4][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; x++) {
      const V d0 = load(input + rows[0] + columns[x]), d1 = load(input + rows[1] + columns[x]);
      const V d2 = load(input + rows[2] + columns[x]), d3 = load(input + rows[3] + columns[x]);
      half[0][x] = d0 - d2;
      half[1][x] = d1 + d2;
      half[2][x] = d2 - d1;
      half[3][x] = d1 - d3;
    }
#pragma GCC unroll 4
    for (int y = 0; y < 4; y++) {
      char* const row = to + 4 * y * call.place;
      store(row, half[y][0] - half[y][2]);
      store(row + call.place, half[y][1] + half[y][2]);
      store(row + 2 * call.place, half[y][2] - half[y][1]);
      store(row + 3 * call.place, half[y][1] - half[y][3]);
    }
  }
}

// Aᵀ · m · A, with Aᵀ = [1 1 1 0; 0 1 −1 −1], of which the first rows and columns are kept.
template <int rows, int columns>
static void winograd_output(const WinogradOutputCall& call) {
  const char* from = call.places;
  for (int64_t c = 0; c < call.n_channels; c++, from += call.channel) {
    V half[2][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; x++) {
      const char* const m = from + x * call.place;
      const V m1 = load(m + 4 * call.place), m2 = load(m + 8 * call.place);
      half[0][x] = load(m) + m1 + m2;
      half[1][x] = m1 - m2 - load(m + 12 * call.place);
    }
    const V bias = spread_number(call.bias[c]);
    V sums[rows * columns];
#pragma GCC unroll 2
    for (int y = 0; y < rows; y++) {
      sums[y * columns] = half[y][0] + half[y][1] + half[y][2] + bias;
      if constexpr (columns == 2) sums[y * columns + 1] = half[y][1] - half[y][2] - half[y][3] + bias;
    }
    finish_tile<rows, columns>(sums, call.finish, c);
  }
}

static void winograd_output_kernel(const WinogradOutputCall& call) {
  if (call.rows == 2)
    call.columns == 2 ? winograd_output<2, 2>(call) : winograd_output<2, 1>(call);
  else
    call.columns == 2 ? winograd_output<1, 2>(call) : winograd_output<1, 1>(call);
}
