// Kernels for AVX-512 with FP16: lane tensors hold halves, and convolutions compute in them. This file alone is
// compiled with those flags, if the compiler knows them.
#include <immintrin.h>

#include "kernels.h"

#define SECATEUR_LANES 16
#define SECATEUR_HALF
#define SECATEUR_SUMS 28
#define SECATEUR_ISA_NAME "avx512fp16"

namespace secateur::avx512fp16 {
#include "vector.h"
#include "kernels_conv.h"
#include "kernels_winograd.h"
#include "kernels_lane.h"
#include "kernels_plain.h"
#include "kernels_table.h"
}  // namespace secateur::avx512fp16
