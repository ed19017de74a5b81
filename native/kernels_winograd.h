// The two transforms of Winograd's F(2×2, 3×3) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016);
// the products between them are those of dense_kernel. Included inside the namespace of one instruction set, after
// kernels_conv.h.

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

// Aᵀ · m · A, with Aᵀ = [1 1 1 0; 0 1 −1 −1]; then as for every sum.
static void winograd_output_kernel(const WinogradOutputCall& call) {
  const Finish& finish = call.finish;
  float low, high;
  const bool clamp = is_clamp(finish.activation, &low, &high);
  const V lowest = spread_number(low), highest = spread_number(high);
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
    char* const out = finish.output.data + c * finish.output.plane;
    const char* const residual = finish.residual.data ? finish.residual.data + c * finish.residual.plane : nullptr;
    for (int y = 0; y < call.rows; y++) {
      V v[2] = {half[y][0] + half[y][1] + half[y][2] + bias, half[y][1] - half[y][2] - half[y][3] + bias};
      for (int x = 0; x < call.columns; x++) {
        if (residual) v[x] += load(residual + y * finish.residual.row + x * vector_bytes);
        if (clamp) v[x] = at_most(at_least(v[x], lowest), highest);
        store(out + y * finish.output.row + x * vector_bytes, v[x]);
      }
    }
    if (!clamp) activate_tile(out, finish.output.row, call.rows, call.columns, finish.activation);
  }
}
