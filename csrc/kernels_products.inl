// Products of bytes as the instruction set offers them, for the kernels of integer weights and the measured peak.

// Four consecutive bytes as one word, to be broadcast to all lanes.
PUNA_INLINE int32_t load_i32(const int8_t* from) {
    int32_t value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

// Adds the four products of each lane's bytes to the lane: VNNI (unsigned weights) or Arm's sdot (signed weights).
#if defined(__AVX512VNNI__)
#define PUNA_DOT_BYTES
PUNA_INLINE i32_reg dot_bytes(i32_reg sum, u32_reg w, i32_reg x) {
    return (i32_reg)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}
#elif defined(__AVXVNNI__)
#define PUNA_DOT_BYTES
PUNA_INLINE i32_reg dot_bytes(i32_reg sum, u32_reg w, i32_reg x) {
    return (i32_reg)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define PUNA_DOT_BYTES
PUNA_INLINE i32_reg dot_bytes(i32_reg sum, u32_reg w, i32_reg x) {
    return (i32_reg)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}
#endif
#if defined(__ARM_FEATURE_DOTPROD)
constexpr bool kSignedBytes = true;
#else
constexpr bool kSignedBytes = false;
#endif

#if defined(__AVX2__) && !defined(PUNA_DOT_BYTES)
PUNA_INLINE i32_reg maddubs_i16(u32_reg a, i32_reg b) { return (i32_reg)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
PUNA_INLINE i32_reg madd_i16(i32_reg a, int factor) {
    return (i32_reg)_mm256_madd_epi16((__m256i)a, _mm256_set1_epi16(static_cast<int16_t>(factor)));
}
// The empty asm keeps the addition in place: otherwise GCC delays all additions of a block and runs out of registers.
PUNA_INLINE i32_reg add_i16(i32_reg a, i32_reg b) {
    __m256i sum = _mm256_add_epi16((__m256i)a, (__m256i)b);
    asm("" : "+x"(sum));
    return (i32_reg)sum;
}
#endif
