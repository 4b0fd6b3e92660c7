// Whether a program is linked with the emulated AVX-512 kernels: kernels.cpp is compiled once for both programs.

#if defined(PUNA_EMULATE)
extern const bool kEmulated = true;
#else
extern const bool kEmulated = false;
#endif
