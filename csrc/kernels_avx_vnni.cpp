// The kernels compiled for processors with AVX2 and AVX-VNNI (vpdpbusd on 256-bit registers) but without AVX-512. Their
// speed was not measured on such a processor.

#include <immintrin.h>

#include "kernels.h"

namespace puna {
namespace avx_vnni {
#include "kernels_table.inl"
}  // namespace avx_vnni

extern const Kernels kAvxVnni = avx_vnni::table("avx_vnni");

}  // namespace puna
