// Kernels for NEON, 64-bit Arm: this file alone is compiled with those flags.
#include "kernels.h"

#define SECATEUR_LANES 4
#define SECATEUR_SUMS 28
#define SECATEUR_ISA_NAME "neon"

namespace secateur::neon {
#include "vector.h"
#include "kernels_conv.h"
#include "kernels_winograd.h"
#include "kernels_lane.h"
#include "kernels_plain.h"
#include "kernels_table.h"
}  // namespace secateur::neon
