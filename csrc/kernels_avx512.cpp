// The kernels for avx512.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace puna {
namespace avx512 {
#include "kernels.inl"
}  // namespace avx512

extern const Kernels kAvx512 = {"avx512",         avx512::matmul, avx512::rms_norm,
                                avx512::silu_mul, avx512::rotate, avx512::attend};

}  // namespace puna
