// One convolution (or a Linear over many rows, which is a 1×1 convolution) made ready for given layouts: its tiles,
// and its weights in the order in which a kernel reads them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "program.h"
#include "share.h"

namespace secateur {

// A weight by output channel: which (input channel, ky, kx) of it are stored.
struct SparseRows {
  struct Entry {
    int32_t channel, ky, kx;  // the channel counts from the first of all groups
    float weight;
  };
  std::vector<int64_t> starts;  // per output channel, and the end
  std::vector<Entry> entries;   // by channel, then ky, then kx
};
SparseRows sparse_rows(const Weight& weight, int64_t groups);

struct ConvShape {
  int64_t channels, outputs, groups;
  Window window;
};

ConvShape shape_of(const Op& op);  // of a conv

// Input pixels from the first to the last that the windows of `pixels` outputs read, in one direction.
inline int64_t extent(int64_t pixels, int64_t stride, int64_t window, int64_t dilation) {
  return (pixels - 1) * stride + (window - 1) * dilation + 1;
}

// How many threads share a convolution; whether each takes some of the output channels, whatever the tiles are; and
// whether each then has a copy of the input that is filled while it runs, some channels at a time. Or one thread takes
// `parts` of the output channels, equally many each, one after the other.
struct Sharing {
  int threads;
  bool by_channels, copies;
  int64_t parts = 1;
};

// The kernel of one convolution that takes so many output channels and such a tile; nullptr if there is none.
const DenseKernel* dense_kernel(const KernelTable& table, int32_t channels, int32_t height, int32_t width,
                                int64_t stride);

// Into how many parts of the output channels and spans of the tiles a convolution is shared out.
struct Split {
  int64_t parts, spans;
};
Split split_of(const Sharing& sharing, bool by_outputs, int64_t tiles, int64_t outputs);

// How a session sees a convolution.
class Convolution {
 public:
  // Layouts as given, the input's with at least its margins.
  struct Call {
    LaneView input, output;
    LaneView residual;                                // data == nullptr: none
    char* scratch;                                    // of this thread; if sliced, of all
    std::function<void(const Share& channels)> fill;  // the copy, from its begin on
  };

  virtual ~Convolution() = default;
  virtual int64_t n_tasks() const = 0;
  virtual int64_t scratch_bytes() const = 0;
  virtual int64_t weight_bytes() const = 0;
  virtual void run(int64_t task, const Call& call) const = 0;

  // How many input channels a copy has room for.
  virtual int64_t channels_at_a_time() const = 0;

  // Whether each task sums up a slice of the input channels for all outputs and writes no output: that is what
  // add_slices is for, when all are done. The scratch is then common to all tasks.
  virtual bool sliced() const { return false; }
  virtual void add_slices(const Share&, const Call&) const {}

  virtual std::string describe() const = 0;  // tile and blocks, for benchmarks
};

class ConvPlan : public Convolution {
 public:
  // `dense`: use all weights.
  ConvPlan(const KernelTable& table, const ConvShape& shape, const Weight& weight, const Weight* bias,
           Activation activation, bool dense, const LaneLayout& input, const LaneLayout& output,
           const Sharing& sharing);

  int64_t n_tasks() const override { return n_slices_ * n_parts_ * int64_t(spans_.size() - 1); }
  int64_t scratch_bytes() const override { return slice_bytes_ * n_slices_; }
  int64_t weight_bytes() const override;
  int64_t channels_at_a_time() const override;
  void run(int64_t task, const Call& call) const override;
  bool sliced() const override { return n_slices_ > 1; }
  void add_slices(const Share& outputs, const Call& call) const override;
  std::string describe() const override;

 private:
  struct Tile {
    int64_t y, x, height, width;
    int64_t sums;  // where its sums begin in the scratch of a slice
    const RowsKernel* rows;
    const DenseKernel* dense;       // panel_channels_ at a time
    const DenseKernel* dense_rest;  // one channel
  };
  struct Block {  // of input channels, for one part of the output channels
    int64_t first_run, n_runs, first_step;
    Share channels;
  };
  struct Panel {  // of output channels, dense
    int32_t channel, n_channels;
  };

  struct Task {  // which slice of the inputs, part of the outputs and span of tiles
    int64_t slice, part, span;
  };

  Share channels_read(const ConvShape& shape, const Share& outputs, int64_t block) const;
  void choose(const KernelTable& table, const ConvShape& shape, const LaneLayout& output, double per_channel);
  double cost_of_tile(const ConvShape& shape, int64_t height, int64_t width, double per_channel, double block) const;
  double input_bytes(int64_t height, int64_t width) const;
  void cover(const KernelTable& table, const LaneLayout& output, int32_t height, int32_t width);
  void share(const Sharing& sharing, const ConvShape& shape, bool halves);
  void pack_rows(const SparseRows& rows, const ConvShape& shape, const LaneLayout& input, bool even);
  void pack_dense(const Weight& weight, const ConvShape& shape, const LaneLayout& input);
  LaneView tile_of(const LaneView& view, const Tile& tile) const;
  const char* first_input(const Tile& tile, const LaneView& input) const;
  Ahead ahead_of(const Tile& tile, const LaneView& input, const char* next_tile, int64_t next_block,
                 int64_t n_runs) const;
  void run_rows(const Task& task, const Tile& tile, RowsCall& call, const char* next_tile, const Call& all) const;
  void run_dense(const Task& task, const Tile& tile, DenseCall& call, const char* next_tile, const Call& all) const;

  bool dense_;
  bool far_;          // the input may lie in another core's cache, or the third level
  bool fed_ = false;  // a copy of the input holds one block of channels at a time
  int64_t channels_, outputs_;
  Activation activation_;
  Window window_;
  int64_t lane_bytes_;
  WeightBits (*weight_bits_)(float);
  void (*add_)(const BinaryCall&);
  int64_t block_channels_ = 0;  // input channels at a time
  int32_t panel_channels_ = 1;  // dense: output channels at a time
  int64_t n_parts_ = 1;         // of the output channels
  int64_t n_slices_ = 1;        // of the input channels
  int64_t n_blocks_ = 1;
  int64_t slice_bytes_ = 0;            // of scratch
  std::vector<float> bias_, no_bias_;  // the latter for all slices but the first
  std::vector<Tile> tiles_;
  std::vector<int64_t> spans_;  // tasks take tiles spans_[i] … spans_[i+1]
  std::vector<RowRun> runs_;
  std::vector<Step> steps_;
  std::vector<Block> blocks_;  // part · n_blocks_ + block
  std::vector<Panel> panels_;
  std::vector<int64_t> first_panels_;  // of each part, and the end; before them are all weights of earlier parts
  std::vector<WeightBits> weights_;
  std::vector<int32_t> offsets_;
};

}  // namespace secateur
