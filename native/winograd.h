// A 3×3 convolution by Winograd's F(2×2, 3×3): the input in tiles of 4×4, each turned into 16 numbers, of which each is
// multiplied with a weight of its own, and the 16 sums turned into 2×2 outputs. Less than half as many products as a
// dense convolution has, but zeros among the weights do not stay zeros.
#pragma once

#include <vector>

#include "conv.h"

namespace secateur {

class WinogradPlan : public Convolution {
 public:
  // Whether a convolution has windows of 3×3, one group, and neither stride nor dilation, and numbers are floats.
  static bool takes(const KernelTable& table, const ConvShape& shape);

  WinogradPlan(const KernelTable& table, const ConvShape& shape, const Weight& weight, const Weight* bias,
               Activation activation, const LaneLayout& output, const Sharing& sharing);

  int64_t n_tasks() const override { return n_parts_ * n_spans_; }
  int64_t scratch_bytes() const override { return inputs_bytes_ + places * sums_place_; }
  int64_t weight_bytes() const override { return int64_t(weights_.size() * sizeof(WeightBits)); }
  int64_t channels_at_a_time() const override { return channels_; }
  void run(int64_t task, const Call& call) const override;
  std::string describe() const override;

 private:
  static constexpr int64_t places = 16;

  // Output channels whose sums are kept at a time, and where their weights begin.
  struct Chunk {
    Share outputs;
    int64_t first_weight;
  };

  // Tiles that are computed together, and what multiplies them: panel_ output channels at a time, and the last ones.
  struct Region {
    Share tiles;
    const DenseKernel *panel, *single;
  };

  void choose();
  void share(const Sharing& sharing);
  void pack(const SparseRows& rows);
  void transform_input(const Share& tiles, const Call& call) const;
  void multiply(const Chunk& chunk, const Region& region, const Call& call) const;
  void finish(const Chunk& chunk, const Share& tiles, const Call& call) const;

  const KernelTable& table_;
  int64_t channels_, outputs_;
  int64_t height_, width_;  // of the output's block
  int64_t top_, left_;      // padding
  Activation activation_;
  int64_t vector_bytes_;
  int64_t tiles_across_, n_tiles_;
  std::vector<Region> regions_;
  int64_t most_tiles_ = 1;  // in a region
  int32_t panel_ = 1;       // output channels of a kernel
  int64_t n_parts_ = 1, n_spans_ = 1;
  int64_t block_channels_ = 1;  // input channels that are multiplied at a time
  int64_t input_place_ = 0;     // bytes from one of the 16 places to the next, of the inputs in the scratch
  int64_t sums_place_ = 0;      // likewise of the sums
  int64_t inputs_bytes_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<int64_t> first_chunks_;  // of each part, and the end
  std::vector<WeightBits> weights_;    // by chunk, place, block of inputs, panel, input channel, output channel
  std::vector<int32_t> offsets_;       // of input channels in a block
  std::vector<float> bias_, no_bias_;
};

}  // namespace secateur
