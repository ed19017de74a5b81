// What one instruction set offers: plain data and function pointers, filled in once per instruction set
// (kernels_*.cpp) and chosen when the program starts (dispatch.cpp). Tests and benchmarks walk the same tables.
//
// Layout. A *lane tensor* holds, for each channel and each pixel of a block, one vector of `lanes` numbers: floats, or
// halves where an instruction set computes in them. Everything else is floats everywhere. The lanes are images, or
// blocks of images, or both: lane = (image · grid_y + block_y) · grid_x + block_x. So every read of a convolution, at
// any stride, dilation or shift, is one aligned vector. Distances are in bytes.
//
// This header is seen by code compiled for several instruction sets: it must hold no function and no template, or
// the linker might keep the copy that the machine cannot run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secateur {

enum class Activation : int32_t {
  none,
  relu,
  relu6,
  silu,
  gelu,
  gelu_tanh,
  hardswish,
  hardsigmoid,
  sigmoid,
  tanh,
  exp,
  log,
  log1p,
  sqrt,
  erf,
  sin,
  cos,
  floor,
  round
};

enum class Binary : int32_t { add, sub, mul, div };

// One channel after another, rows of pixels, vectors of lanes; `data` points at pixel (0, 0) of channel 0.
struct LaneView {
  char* data;
  ptrdiff_t plane;
  ptrdiff_t row;
};

// What happens to a finished sum: + residual (if any), then the activation, then the store.
struct Finish {
  LaneView output;    // at the tile's first pixel
  LaneView residual;  // data == nullptr: none
  Activation activation;
};

// ---- Sparse convolution, one output channel at a time ----------------------------------------------------------

// A weight as a kernel reads it, from KernelTable::weight_bits: a float, or the same half twice, because 32 bits are
// spread over a vector for free where 16 are not.
using WeightBits = uint32_t;

// One non-zero: its weight, and where its input vector lies from the tile's first.
struct Step {
  WeightBits weight;
  int32_t offset;
};

// The next `count` steps belong to output channel `row`.
struct RowRun {
  int32_t row;
  int32_t count;
};

// Part of a lane tensor that will be read soon, a rectangle of each of some channels: kernels ask for it piece by piece
// while they compute, since other cores and the third-level cache take long to answer.
struct Ahead {
  const char* data;      // nullptr: nothing to ask for
  ptrdiff_t plane, row;  // bytes
  int32_t n_channels, height;
  int32_t lines;    // cache lines in each row of the rectangle
  int32_t per_run;  // cache lines to ask for with each run
};

// One tile of output pixels × one block of input channels × some output channels.
struct RowsCall {
  const RowRun* runs;
  int64_t n_runs;
  const Step* steps;
  const char* input;     // the tile's first input vector, channel 0
  ptrdiff_t input_row;   // from a tile row's input to the next one's
  ptrdiff_t input_step;  // from a pixel's input to the next one's; used where the kernel has no fixed stride
  char* partial;         // sums between blocks of input channels: per output channel, tile pixels × one vector
  const float* bias;     // per output channel
  Finish finish;
  Ahead ahead;  // of the next call
  bool first;   // start from the bias, not from `partial`
  bool last;    // finish, do not keep in `partial`
};

struct RowsKernel {
  int32_t tile_height, tile_width;
  int32_t stride_x;  // 0: any, from RowsCall::input_step
  void (*run)(const RowsCall&);
};

// ---- Dense convolution, several output channels at a time -------------------------------------------------------

// One tile of output pixels × one block of input channels × one panel of output channels.
struct DenseCall {
  const WeightBits* weights;  // n_steps × channels, packed
  const int32_t* offsets;     // n_steps
  int64_t n_steps;
  const char* input;
  ptrdiff_t input_row, input_step;
  char* partial;      // sums between blocks: per output channel of the panel, tile pixels × one vector
  const float* bias;  // `channels` of them
  Finish finish;      // at the panel's first channel
  Ahead ahead;        // some of what the next block reads; all at once
  bool first, last;   // as in RowsCall; a kernel of halves takes all input channels at once
};

struct DenseKernel {
  int32_t channels;  // output channels at a time
  int32_t tile_height, tile_width, stride_x;
  void (*run)(const DenseCall&);
};

// ---- Winograd's F(2×2, 3×3): four outputs from sixteen products, not thirty-six ------------------------------------

// One tile of 4×4 input pixels of each channel → 16 vectors, one for each place of the tile, each to be multiplied with
// the weight of that place. At the far edges of a block there may be a row or column less, which no output needs then.
struct WinogradInputCall {
  const char* input;  // the tile's first input vector, channel 0
  ptrdiff_t plane, row;
  int64_t n_channels;
  int32_t rows, columns;  // 3 or 4
  char* places;
  ptrdiff_t place, channel;  // bytes from a place to the next, from a channel to the next
};

// The sums of the 16 places of each output channel → up to 2×2 output pixels.
struct WinogradOutputCall {
  const char* places;
  ptrdiff_t place, channel;
  int64_t n_channels;
  int32_t rows, columns;  // 1 or 2
  const float* bias;      // per output channel
  Finish finish;          // at the tile's first pixel, channel 0
};

// ---- Matrix × vector, sixteen outputs side by side ---------------------------------------------------------------

struct GatherCall {
  const float* weights;    // per slice, per step: `floats` weights; shorter rows are filled with zeros
  const int32_t* columns;  // the same shape: which input
  const int32_t* n_steps;  // per slice
  const int32_t* rows;     // per slice: `floats` output rows, −1 where there is none
  int64_t n_slices;
  const float* bias;  // per output row
  const float* input;
  const float* residual;  // nullptr: none
  float* output;
  Activation activation;
};

// ---- Moves between layouts ---------------------------------------------------------------------------------------

// The vector `to` takes from the vector `from` the lanes that `pattern` names; −1 keeps what an earlier move of the
// same `to` put there, or `fill` if this is the first. Where many vectors meet, `from` is `from_many`, and the pattern
// names for each lane the number of the plane, or −1 for `fill`.
constexpr int32_t from_none = -1, from_many = -2;
struct Move {
  int32_t to, from;  // bytes from the plane's first vector
  int32_t pattern;
  int32_t first;
};

struct MoveCall {
  char* to;
  ptrdiff_t to_plane;
  const char* from;
  ptrdiff_t from_plane;
  const Move* moves;
  int64_t n_moves;
  const int32_t* patterns;  // `lanes` each
  float fill;
  int64_t n_channels;
};

// A plain array to or from a lane tensor: images [image][channel][y][x], or tokens [x][channel]. Steps of the plain
// array are in floats.
struct ConvertCall {
  LaneView lane;
  float* plain;
  int64_t image_step, channel_step, y_step, x_step;
  int64_t n_channels, height, width;
  int32_t n_images, grid_y, grid_x, block_height, block_width;
  bool spread;  // height = width = 1: every block holds the pixel
  bool tokens;
};

struct BinaryCall {
  LaneView left, right, output;     // row == 0 where the operand is one pixel for all
  ptrdiff_t left_step, right_step;  // from pixel to pixel: one vector, or 0
  int64_t n_channels, height, width;
  Binary operation;
  Activation activation;
};

// activation(x · scale + shift), then clipped; scale and shift per channel, or null.
struct MapCall {
  LaneView input, output;
  int64_t n_channels, height, width;
  const float *scale, *shift;
  Activation activation;
  float low, high;
};

struct PoolCall {
  LaneView input, output;
  int64_t n_channels, height, width;  // of the output block
  int32_t window_y, window_x, stride_y, stride_x;
  float scale;  // of a mean; unused by max
};

// Mean over all pixels; `valid` has 1 or 0 for every lane of every pixel of the block, `patterns` the lanes to sum.
struct MeanCall {
  LaneView input, output;
  int64_t n_channels, height, width;
  const float* valid;
  int32_t lanes_per_image;
  float scale;
};

struct NormCall {
  LaneView input, output;
  int64_t n_channels, width;
  const float *scale, *shift;
  float epsilon;
};

// c[m][n] = scale · Σ_k a[m][k] · b[k][n]; b is transposed in memory if b_transposed.
struct MatmulCall {
  const float *a, *b;
  float* c;
  int64_t m, n, k;
  int64_t a_row, b_row, c_row;
  bool b_transposed;
  float scale;
};

struct KernelTable {
  const char* isa;
  int32_t lanes;
  int32_t number_bytes;                     // of a number in a lane tensor: 4, or 2 where convolutions compute in fp16
  int32_t floats;                           // in a vector
  WeightBits (*weight_bits)(float weight);  // rounded to nearest
  const RowsKernel* rows;
  int32_t n_rows;
  const DenseKernel* dense;
  int32_t n_dense;
  void (*winograd_input)(const WinogradInputCall&);  // nullptr where lane tensors hold halves, which it would cost dear
  void (*winograd_output)(const WinogradOutputCall&);
  void (*gather)(const GatherCall&);
  void (*move)(const MoveCall&);
  void (*pack)(const ConvertCall&);
  void (*unpack)(const ConvertCall&);
  void (*binary)(const BinaryCall&);
  void (*map)(const MapCall&);
  void (*max_pool)(const PoolCall&);
  void (*mean_pool)(const PoolCall&);
  void (*mean)(const MeanCall&);
  void (*layer_norm)(const NormCall&);
  void (*activate)(float* numbers, int64_t n, Activation);  // in place
  void (*matmul)(const MatmulCall&);
  void (*softmax)(float* numbers, int64_t n_rows, int64_t n);  // in place, over contiguous rows
};

}  // namespace secateur
