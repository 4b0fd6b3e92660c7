// The kernels for avx512.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace puna {
namespace avx512 {
#include "kernels_table.inl"
}  // namespace avx512

extern const Kernels kAvx512 = avx512::table("avx512");

}  // namespace puna
