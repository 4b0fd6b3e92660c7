// See emulate.h.

#include "../kernels_avx512.cpp"
