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

inline LaneView at_channel(LaneView view, int64_t channel) {
  view.data += channel * view.plane;
  return view;
}

}  // namespace secateur
