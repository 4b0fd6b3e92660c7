// The portable build of the kernels, for the baseline of the target: SSE2 on x86-64, NEON on 64-bit Arm.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace puna {
namespace portable {
#include "kernels_table.inl"
}  // namespace portable

extern const Kernels kPortable = portable::table("portable");

}  // namespace puna
