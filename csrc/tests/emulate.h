// Emulates in plain C++ the AVX-512 instructions that the kernels use, so that the AVX-512 kernels can be tested on
// processors without AVX-512. kernels_avx512*.cpp include this file after <immintrin.h> if PUNA_EMULATE is defined. The
// semantics follow Intel's intrinsics guide.
#ifndef PUNA_EMULATE_H
#define PUNA_EMULATE_H

#include <cmath>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512VNNI__ 1
#if defined(PUNA_EMULATE_BF16)
#define __AVX512BF16__ 1
#endif

namespace puna_emulated {

typedef short bf16_lanes __attribute__((vector_size(64)));

template <typename To, typename From>
inline To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
    for (int i = 0; i < 16; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
}

inline __m512i set1_epi32(int value) {
    int lane[16];
    for (int& one : lane) one = value;
    __m512i out;
    std::memcpy(&out, lane, sizeof out);
    return out;
}

// Multiplies unsigned bytes of a by signed bytes of b and adds four products to each 32-bit lane.
inline __m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    int lane[16];
    unsigned char x[64];
    signed char y[64];
    std::memcpy(lane, &sum, 64);
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int i = 0; i < 64; ++i) lane[i / 4] += x[i] * y[i];
    std::memcpy(&sum, lane, 64);
    return sum;
}

inline __m512i shuffle_epi8(__m512i table, __m512i index) {
    unsigned char from[64], at[64], to[64];
    std::memcpy(from, &table, 64);
    std::memcpy(at, &index, 64);
    for (int i = 0; i < 64; ++i) to[i] = at[i] & 0x80 ? 0 : from[i / 16 * 16 + (at[i] & 15)];
    __m512i out;
    std::memcpy(&out, to, 64);
    return out;
}

inline __m512 cvtph_ps(__m256i halves) {
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    __m512 out;
    std::memcpy(&out, &low, 32);
    std::memcpy(reinterpret_cast<char*>(&out) + 32, &high, 32);
    return out;
}

inline __m256i cvtps_ph(__m512 value) {
    __m256 half[2];
    std::memcpy(half, &value, 64);
    return _mm256_set_m128i(_mm256_cvtps_ph(half[1], 0), _mm256_cvtps_ph(half[0], 0));
}

// Adds two products to each lane. Like the instruction, it adds the product of the odd elements first, rounds after
// each addition, and treats subnormal inputs as 0.
inline __m512 dpbf16_ps(__m512 sum, bf16_lanes a, bf16_lanes b) {
    const auto number = [](short bits) {
        const unsigned wide = static_cast<unsigned>(static_cast<unsigned short>(bits)) << 16;
        return wide & 0x7f800000u ? as<float>(wide) : 0.0f;
    };
    for (int i = 0; i < 16; ++i) {
        sum[i] = std::fma(number(a[2 * i + 1]), number(b[2 * i + 1]), sum[i]);
        sum[i] = std::fma(number(a[2 * i]), number(b[2 * i]), sum[i]);
    }
    return sum;
}

inline __m512i loadu_si512(const void* from) {
    __m512i out;
    std::memcpy(&out, from, 64);
    return out;
}

inline __m512 setzero_ps() { return __m512{}; }

}  // namespace puna_emulated

#define _mm512_fmadd_ps puna_emulated::fmadd_ps
#define _mm512_set1_epi32 puna_emulated::set1_epi32
#define _mm512_dpbusd_epi32 puna_emulated::dpbusd_epi32
#define _mm512_shuffle_epi8 puna_emulated::shuffle_epi8
#define _mm512_cvtph_ps puna_emulated::cvtph_ps
#undef _mm512_cvtps_ph  // a macro in GCC's header when compiling without optimisation
#define _mm512_cvtps_ph(value, rounding) puna_emulated::cvtps_ph(value)
#define _mm512_dpbf16_ps puna_emulated::dpbf16_ps
#define _mm512_loadu_si512 puna_emulated::loadu_si512
#define _mm512_setzero_ps puna_emulated::setzero_ps
#define __m512bh puna_emulated::bf16_lanes

#endif
