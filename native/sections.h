// A program cut into parts that run one after the other, each for the whole batch: values get smaller on the way
// through a network, and later parts can take more images at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace secateur {

struct Section {
  Program program;   // without weights: its operations point to those of the whole
  size_t first_op;   // in the whole program
  int64_t chunk;     // images at a time
};

// `lanes` images at a time at most, and so few that no operation reads and writes more than `working_set` bytes. Images must
// not meet. A cut is made only where a single value passes, and where it lets at least four times as many images
// through: that value is turned into a plain array and back.
std::vector<Section> sections_of(const Program& program, int64_t lanes, int64_t batch, int64_t working_set);

// The program as one section.
Section whole(const Program& program, int64_t chunk);

}  // namespace secateur
