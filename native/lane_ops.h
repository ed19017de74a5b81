// Stages that work on vectors of lanes: convolutions and what stands between them.
#pragma once

#include "borders.h"
#include "mover.h"
#include "session.h"
#include "share.h"

namespace secateur {

class LaneBuilder {
 public:
  explicit LaneBuilder(Session& session);

  // Adds the stages of `op`; false if it is better, or only, done on plain arrays.
  bool build(const Op& op);

  // The stage that writes the plain buffer of a value from its lanes.
  void unpack(int value);

 private:
  // Where a convolution or pool reads from. If there is a filler, the tasks that read it run it before.
  struct Source {
    int buffer;  // −1: a copy for each task, which add_conv makes
    LaneLayout layout;
    std::shared_ptr<const Filler> filler;
  };

  // Where a convolution writes to. Sums: of slices of the input, −1 if it has none.
  struct Target {
    int buffer;
    LaneLayout layout;
    int residual;
    LaneLayout residual_layout;
    int sums;

    Convolution::Call call(Context& context, int64_t group, int thread) const;
  };

  bool conv(const Op& op);
  bool linear(const Op& op);
  bool pool(const Op& op);
  bool mean(const Op& op);
  bool elementwise(const Op& op);
  bool binary(const Op& op);
  bool layer_norm(const Op& op);

  LaneLayout layout_of(int value) const;  // as images
  void plan_margins();
  bool window_of(const Op& op, Window& window, float& fill) const;
  int lane(int value, const LaneLayout& layout);  // the buffer, packed if need be
  int64_t parts_to_feed(const Op& op, bool dense) const;
  void add_fed(const Op& op, const ConvShape& shape, const LaneLayout& output);
  Target target_of(const Op& op, const Source& input, const LaneLayout& layout);
  void add_conv(const Op& op, const ConvShape& shape, Source input, const LaneLayout& layout);
  Source window_source(const Op& op, const Window& window, float fill, bool copies);
  void finish(int value, int buffer, const LaneLayout& layout);  // the value is now to be had there
  std::shared_ptr<const Borders> give_borders(int buffer, const LaneLayout& layout);
  void add_moves(const std::shared_ptr<const Mover>& mover);
  void add_up(const LaneLayout& layout, int buffer, int64_t n);
  int64_t shares(int64_t channels, int64_t bytes) const;
  LaneTasks tasks_for(const LaneLayout& layout) const;
  bool by_channels(const LaneLayout& output) const;
  bool has_lanes(int value) const;

  Session& session_;
};

}  // namespace secateur
