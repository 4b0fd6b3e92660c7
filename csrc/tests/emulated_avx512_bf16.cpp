// See emulate.h.

#include "../kernels_avx512_bf16.cpp"
