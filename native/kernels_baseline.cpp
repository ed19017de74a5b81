// Kernels for what the platform always has: this file alone is compiled with those flags.
#include "kernels.h"

#define SECATEUR_LANES 4
#define SECATEUR_SUMS 14
#define SECATEUR_ISA_NAME "baseline"

namespace secateur::baseline {
#include "vector.h"
#include "kernels_conv.h"
#include "kernels_winograd.h"
#include "kernels_lane.h"
#include "kernels_plain.h"
#include "kernels_table.h"
}  // namespace secateur::baseline
