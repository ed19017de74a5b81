#include "dispatch.h"

#include <cstdlib>

#include "error.h"

namespace secateur {

namespace baseline {
extern const KernelTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#if defined(SECATEUR_AVX512FP16)
namespace avx512fp16 {
extern const KernelTable table;
}
#endif
#elif defined(__aarch64__)
namespace neon {
extern const KernelTable table;
}
#endif

std::vector<const KernelTable*> usable_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  // These builtins also ask whether the system saves the wide registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
#if defined(SECATEUR_AVX512FP16)
    if (__builtin_cpu_supports("avx512fp16")) tables.push_back(&avx512fp16::table);
#endif
    tables.push_back(&avx512::table);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&avx2::table);
#elif defined(__aarch64__)
  tables.push_back(&neon::table);
#endif
  tables.push_back(&baseline::table);
  return tables;
}

const KernelTable& chosen_table(bool half) {
  const char* wanted = std::getenv("SECATEUR_ISA");
  std::string names;
  for (const KernelTable* table : usable_tables()) {
    if (table->number_bytes == 2 && !half) continue;
    if (!wanted || !*wanted || std::string(wanted) == table->isa) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw PlanError(std::string("SECATEUR_ISA is '") + wanted + "', this machine has " + names +
                  " for a plan of this precision");
}

}  // namespace secateur
