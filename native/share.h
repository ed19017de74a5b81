// How a stage is shared out among tasks.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace secateur {

struct Share {
  int64_t begin, end;
};

inline Share share_of(int64_t n, int64_t task, int64_t n_tasks) {
  return {n * task / n_tasks, n * (task + 1) / n_tasks};
}

// A stage on lanes: each task takes a group, or some channels of the only one.
struct LaneTask {
  int64_t group;
  Share channels;
};

struct LaneTasks {
  int64_t groups, channels, per_group;

  int64_t count() const { return groups * per_group; }
  LaneTask operator[](int64_t task) const {
    return {task / per_group, share_of(channels, task % per_group, per_group)};
  }
};

inline LaneView at_channel(LaneView view, int64_t channel) {
  view.data += channel * view.plane;
  return view;
}

}  // namespace secateur
