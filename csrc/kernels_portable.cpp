// The kernels for portable.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace puna {
namespace portable {
#include "kernels.inl"
}  // namespace portable

extern const Kernels kPortable = {"portable",         portable::matmul, portable::rms_norm,
                                  portable::silu_mul, portable::rotate, portable::attend};

}  // namespace puna
