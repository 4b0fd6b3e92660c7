// The AVX-512 build of the kernels (AVX-512 F, BW, DQ, VL, VNNI), or its emulation for tests.

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
