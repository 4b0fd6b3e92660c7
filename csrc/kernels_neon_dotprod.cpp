// The kernels compiled for 64-bit Arm processors with sdot (FEAT_DotProd). Tested in emulation; their speed was not
// measured.

#include <arm_neon.h>

#include "kernels.h"

namespace puna {
namespace neon_dotprod {
#include "kernels_table.inl"
}  // namespace neon_dotprod

extern const Kernels kNeonDotprod = neon_dotprod::table("neon_dotprod");

}  // namespace puna
