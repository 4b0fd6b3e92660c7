/* The C ABI of puna's native library: the only header that both C++ and Python know.
 *
 * Rules: plain C types; no exception leaves a function; nothing here keeps a pointer it was given after it returns,
 * unless it says so. A change that breaks callers raises PUNA_ABI_VERSION, which `puna.native` checks when it loads
 * the library.
 */
#ifndef PUNA_H
#define PUNA_H

#include <stdint.h>

#if defined(_WIN32)
#define PUNA_API __declspec(dllexport)
#else
#define PUNA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define PUNA_ABI_VERSION 1

/* Bits of puna_cpu_features(). A bit is set when the processor has the instructions and the system saves their
 * registers. */
#define PUNA_CPU_AVX2 (1u << 0)
#define PUNA_CPU_FMA (1u << 1)
#define PUNA_CPU_F16C (1u << 2)
#define PUNA_CPU_AVX512 (1u << 3) /* F, BW, DQ and VL together */
#define PUNA_CPU_AVX512_VNNI (1u << 4)
#define PUNA_CPU_AVX512_BF16 (1u << 5)
#define PUNA_CPU_NEON (1u << 6)
#define PUNA_CPU_DOTPROD (1u << 7)

/* The PUNA_ABI_VERSION the library was built with. */
PUNA_API uint32_t puna_abi_version(void);

/* What this processor can run, as PUNA_CPU_* bits. */
PUNA_API uint32_t puna_cpu_features(void);

/* Logical processors this process may run on: its affinity mask, within its control group's quota; 1 or more. */
PUNA_API int32_t puna_logical_cores(void);

/* Physical cores behind those processors; 1 or more. Two busy threads on one core share its vector units, so this is
 * the default number of threads. */
PUNA_API int32_t puna_physical_cores(void);

#ifdef __cplusplus
}
#endif

#endif
