// Kernels for AVX2 and FMA: this file alone is compiled with those flags.
#include "kernels.h"

#define SECATEUR_LANES 8
#define SECATEUR_SUMS 14
#define SECATEUR_ISA_NAME "avx2"

namespace secateur::avx2 {
#include "vector.h"
#include "kernels_conv.h"
#include "kernels_winograd.h"
#include "kernels_lane.h"
#include "kernels_plain.h"
#include "kernels_table.h"
}  // namespace secateur::avx2
