// Kernels for AVX-512F, BW, DQ, VL: this file alone is compiled with those flags.
#include <immintrin.h>

#include "kernels.h"

#define SECATEUR_LANES 16
#define SECATEUR_SUMS 28
#define SECATEUR_ISA_NAME "avx512"

namespace secateur::avx512 {
#include "vector.h"
#include "kernels_conv.h"
#include "kernels_winograd.h"
#include "kernels_lane.h"
#include "kernels_plain.h"
#include "kernels_table.h"
}  // namespace secateur::avx512
