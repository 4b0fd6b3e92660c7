// The AVX-512 BF16 build of the kernels, or its emulation for tests.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(PUNA_EMULATE)
#include "tests/emulate.h"
#endif

namespace puna {
namespace avx512_bf16 {
#define PUNA_INTEGER_MATMUL kAvx512.matmul
#include "kernels_table.inl"
}  // namespace avx512_bf16

extern const Kernels kAvx512Bf16 = avx512_bf16::table("avx512_bf16");

}  // namespace puna
