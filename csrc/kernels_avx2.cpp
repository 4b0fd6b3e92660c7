// The kernels compiled for processors with AVX2, FMA and F16C.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace puna {
namespace avx2 {
#include "kernels_table.inl"
}  // namespace avx2

extern const Kernels kAvx2 = avx2::table("avx2");

}  // namespace puna
