// The kernels for avx512.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(PUNA_EMULATE)
#include "tests/emulate.h"
#endif

namespace puna {
namespace avx512 {
#include "kernels_table.inl"
}  // namespace avx512

extern const Kernels kAvx512 = avx512::table("avx512");

}  // namespace puna
