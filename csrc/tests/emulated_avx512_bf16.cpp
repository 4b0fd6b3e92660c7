// The kernels on emulated AVX-512: see emulate.h.

#include "../kernels_avx512_bf16.cpp"
