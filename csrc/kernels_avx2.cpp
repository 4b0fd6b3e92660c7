// The kernels for avx2.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace puna {
namespace avx2 {
#include "kernels.inl"
}  // namespace avx2

extern const Kernels kAvx2 = {"avx2", avx2::matmul, avx2::rms_norm, avx2::silu_mul, avx2::rotate, avx2::attend};

}  // namespace puna
