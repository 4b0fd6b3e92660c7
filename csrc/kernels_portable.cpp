// The kernels for portable.

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
