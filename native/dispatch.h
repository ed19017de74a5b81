// Which instruction sets are compiled in, which of them this machine runs, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace secateur {

// Those this machine can run, the best first; never empty.
std::vector<const KernelTable*> usable_tables();

// The best, or the one that the environment variable SECATEUR_ISA names; throws PlanError if that cannot be had. Only
// with `half` may it be one that computes in fp16.
const KernelTable& chosen_table(bool half);

}  // namespace secateur
