// A program cut into parts that run one after the other, each for the whole batch: values get smaller on the way
// through a network, and later parts can take more images at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace secateur {

struct Section {
  Program program;  // without weights: its operations point to those of the whole
  size_t first_op;  // in the whole program
  int64_t chunk;    // images at a time
};

// The cuts, and the number of images at a time in each part, that cost least by a rough count: of multiply-adds, also
// where lanes are left empty or threads share images; of lines that come from beyond the nearest `working_set` bytes;
// and of numbers to convert, since the value at a cut is turned into a plain array and back. Images must not meet. A
// cut needs a single value there.
std::vector<Section> sections_of(const Program& program, const KernelTable& table, int64_t batch, int threads,
                                 int64_t working_set);

// The program as one section.
Section whole(const Program& program, int64_t chunk);

}  // namespace secateur
