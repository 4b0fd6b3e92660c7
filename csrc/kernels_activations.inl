// Rounds activations to 8 bits.

// Converts 32 integers n, given as floats kMagic + n, to bytes (128 becomes 127), and computes the sums of the
// first 16 and of the last 16: subtracting kMagicBits from the bits leaves n.
#if defined(__AVX2__) && !defined(PUNA_EMULATE)
PUNA_INLINE void round_to_i8(const f32x16 (&rounded)[2], int8_t* to, int32_t (&sum)[2]) {
#if defined(__AVX512F__)
    for (int h = 0; h < 2; ++h) {
        const __m512i number = _mm512_sub_epi32((__m512i)rounded[h].reg[0], _mm512_set1_epi32(kMagicBits));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + h, _mm512_cvtsepi32_epi8(number));
    }
#else
    const __m256i zero = _mm256_set1_epi32(kMagicBits);
    const auto number = [&](int h, int i) { return _mm256_sub_epi32((__m256i)rounded[h].reg[i], zero); };
    const __m256i first = _mm256_packs_epi32(number(0, 0), number(0, 1));
    const __m256i second = _mm256_packs_epi32(number(1, 0), number(1, 1));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // _mm256_packs_* works on each half of a register
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order));
#endif
    for (int h = 0; h < 2; ++h) {  // _mm_sad_epu8 sums unsigned bytes, so each byte is increased by 128
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(to) + h);
        const __m128i sums = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8(-128)), _mm_setzero_si128());
        sum[h] = _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
    }
}
#else
PUNA_INLINE void round_to_i8(const f32x16 (&rounded)[2], int8_t* to, int32_t (&sum)[2]) {
    for (int h = 0; h < 2; ++h) {
        int32_t numbers[kLanes];
        PUNA_EACH_REG* reinterpret_cast<i32_mem*>(numbers + i_ * kWidth) = (i32_reg)rounded[h].reg[i_] - kMagicBits;
        sum[h] = 0;
        for (int i = 0; i < kLanes; ++i) {
            to[h * kLanes + i] = static_cast<int8_t>(numbers[i] > 127 ? 127 : numbers[i]);
            sum[h] += to[h * kLanes + i];
        }
    }
}
#endif

// The largest of sixteen non-negative floats given as bits; NaN counts as larger than any number.
PUNA_INLINE float reduce_max_bits(const u32x16& bits) {
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
    const uint32_t maximum = _mm512_reduce_max_epu32((__m512i)bits.reg[0]);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i eight = _mm256_max_epu32((__m256i)bits.reg[0], (__m256i)bits.reg[1]);
    const __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    const uint32_t maximum = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 0xb1))));
#else
    uint32_t lane[kLanes], maximum = 0;
    store_u32(lane, bits);
    for (const uint32_t one : lane) maximum = one > maximum ? one : maximum;
#endif
    float largest;
    __builtin_memcpy(&largest, &maximum, sizeof largest);
    return largest;
}

// Whether one of the values equals x.
PUNA_INLINE bool any_equal(const f32x16& values, float x) {
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
    return _mm512_cmp_ps_mask((__m512)values.reg[0], _mm512_set1_ps(x), _CMP_EQ_OQ) != 0;
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const __m256 same = _mm256_set1_ps(x);
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps((__m256)values.reg[0], same, _CMP_EQ_OQ),
                                           _mm256_cmp_ps((__m256)values.reg[1], same, _CMP_EQ_OQ))) != 0;
#else
    float lane[kLanes];
    store(lane, values);
    bool any = false;
    for (const float one : lane) any |= one == x;
    return any;
#endif
}

// Quantises kBlocks blocks that share a scale. The largest magnitude becomes 127, or with kFullRange -128: the scale
// then has the opposite sign of the value, and steps are 0.8 % smaller. If one of the values is NaN, the scale is NaN,
// and so is every product.
template <int kBlocks, bool kFullRange>
PUNA_INLINE void quantize_blocks(const float* x, ActivationBlock* blocks) {
    const f32x16 magic = broadcast(kMagic);
    f32x16 value[2 * kBlocks];
    u32x16 magnitude;
    PUNA_EACH_REG magnitude.reg[i_] = u32_reg{};
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kBlocks; ++i) {
        value[i] = load(x + i * kLanes);
        PUNA_EACH_REG {
            const u32_reg bits = (u32_reg)value[i].reg[i_] & 0x7fffffffu, maximum = magnitude.reg[i_];
            magnitude.reg[i_] = bits > maximum ? bits : maximum;
        }
    }
    const float largest = reduce_max_bits(magnitude);
    float steps = 127.0f;
    if (kFullRange) {
        bool negative = false;
#pragma GCC unroll 4
        for (int i = 0; i < 2 * kBlocks; ++i) negative |= any_equal(value[i], -largest);
        constexpr float kSteps[] = {-128.0f, 128.0f};
        steps = kSteps[negative];  // not a branch, because half of its predictions would be wrong
    }
    const float scale = largest / steps, inverse = largest > 0.0f ? steps / largest : 0.0f;
    const f32x16 times = broadcast(inverse);
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
        ActivationBlock& to = blocks[b];
        int32_t sum[2];
        round_to_i8({fma(value[2 * b], times, magic), fma(value[2 * b + 1], times, magic)}, to.quants, sum);
        to.scale = scale;
        to.neg_sum = -(sum[0] + sum[1]);
        to.sum = static_cast<float>(sum[0] + sum[1]);
        for (int h = 0; h < 2; ++h) {
            to.half_sum[h] = static_cast<float>(sum[h]);
            to.neg_half_sum[h] = -sum[h];
        }
        to.start = kMagicBits - 8 * (sum[0] + sum[1]);
    }
}

#if defined(__AVX512F__) && !defined(PUNA_EMULATE)

// Reduces each of sixteen vectors to one number, which becomes the lane of the vector's index. `combine` must be
// commutative and associative.
template <typename Combine>
PUNA_INLINE __m512i reduce_each(const __m512i (&x)[16], const Combine& combine) {
    __m512i eight[8], four[4], two[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
        eight[i] = combine(_mm512_shuffle_i32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_i32x4(x[i], x[i + 8], 0xee));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        four[i] = combine(_mm512_shuffle_i32x4(eight[i], eight[i + 4], 0x88),
                          _mm512_shuffle_i32x4(eight[i], eight[i + 4], 0xdd));
    for (int i = 0; i < 2; ++i)
        two[i] = combine(_mm512_unpacklo_epi64(four[i], four[i + 2]), _mm512_unpackhi_epi64(four[i], four[i + 2]));
    const __m512 first = _mm512_castsi512_ps(two[0]), second = _mm512_castsi512_ps(two[1]);
    const __m512i one = combine(_mm512_castps_si512(_mm512_shuffle_ps(first, second, 0x88)),
                                _mm512_castps_si512(_mm512_shuffle_ps(first, second, 0xdd)));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), one);
}

// Rounds a block with a known scale, and computes its sums, as `quantize_blocks` does.
PUNA_INLINE void quantize_block(const float* x, float scale, float inverse, ActivationBlock& to) {
    const __m512 times = _mm512_set1_ps(inverse), magic = _mm512_set1_ps(kMagic);
    const auto round = [&](int h) PUNA_INLINED {
        const __m512 rounded = _mm512_fmadd_ps(_mm512_loadu_ps(x + h * kLanes), times, magic);
        return _mm512_cvtsepi32_epi8(_mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(kMagicBits)));
    };
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(round(0)), round(1), 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.quants), bytes);
    // The sum of 16 bytes, each increased by 128, in all even lanes of a half; odd lanes are 0.
    const __m256i quarters = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    const __m256i halves = _mm256_add_epi32(quarters, _mm256_shuffle_epi32(quarters, 0x4e));
    // Lanes in the order of the members after `scale`: sum, half_sum, neg_sum, neg_half_sum.
    const __m256i first = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(1, 0, 0, 4, 0, 0, 4, 1));
    const __m256i second = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(1, 4, 1, 1, 4, 1, 1, 1));
    const __m256i offset = _mm256_setr_epi32(0, 4096, 2048, 2048, 4096, 2048, 2048, 0);
    const __m256i sums = _mm256_sub_epi32(_mm256_add_epi32(first, second), offset);
    __m256i members = _mm256_castps_si256(_mm256_cvtepi32_ps(sums));
    members = _mm256_mask_sub_epi32(members, 0xf0, _mm256_setzero_si256(), sums);
    members = _mm256_castps_si256(_mm256_mask_mov_ps(_mm256_castsi256_ps(members), 1, _mm256_set1_ps(scale)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&to.scale), members);
}

// Does the same as sixteen calls of quantize_blocks<kBlocks, true>, except `start`, which only AVX2 reads. Computes the
// sixteen scales at once.
template <int kBlocks>
PUNA_INLINE void quantize_sixteen(const float* x, ActivationBlock* blocks) {
    __m512i magnitudes[16], minimums[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        __m512i magnitude = _mm512_setzero_si512();
        __m512 minimum = _mm512_set1_ps(__builtin_inff());
#pragma GCC unroll 4
        for (int j = 0; j < 2 * kBlocks; ++j) {
            const __m512 value = _mm512_loadu_ps(x + (i * 2 * kBlocks + j) * kLanes);
            const __m512i bits = _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff));
            magnitude = _mm512_max_epu32(magnitude, bits);
            minimum = _mm512_min_ps(minimum, value);
        }
        magnitudes[i] = magnitude;
        minimums[i] = _mm512_castps_si512(minimum);
    }
    const __m512 largest = _mm512_castsi512_ps(
        reduce_each(magnitudes, [](__m512i a, __m512i b) PUNA_INLINED { return _mm512_max_epu32(a, b); }));
    const __m512 lowest = _mm512_castsi512_ps(reduce_each(minimums, [](__m512i a, __m512i b) PUNA_INLINED {
        return _mm512_castps_si512(_mm512_min_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
    }));
    const __mmask16 negative = _mm512_cmp_ps_mask(lowest, _mm512_sub_ps(_mm512_setzero_ps(), largest), _CMP_EQ_OQ);
    const __m512 steps = _mm512_mask_mov_ps(_mm512_set1_ps(-128.0f), negative, _mm512_set1_ps(128.0f));
    const __mmask16 positive = _mm512_cmp_ps_mask(largest, _mm512_setzero_ps(), _CMP_GT_OQ);
    alignas(64) float scale[16], inverse[16];
    _mm512_store_ps(scale, _mm512_div_ps(largest, steps));
    _mm512_store_ps(inverse, _mm512_maskz_div_ps(positive, steps, largest));
#pragma GCC unroll 2
    for (int i = 0; i < 16; ++i)
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b)
            quantize_block(x + (i * kBlocks + b) * kBlock, scale[i], inverse[i], blocks[i * kBlocks + b]);
}

#endif

static void quantize(const float* x, int64_t cols, int scale_blocks, ActivationBlock* blocks) {
    const int64_t count = cols / kBlock;
    int64_t b = 0;
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
    if (scale_blocks == 2)
        for (; b + 32 <= count; b += 32) quantize_sixteen<2>(x + b * kBlock, blocks + b);
    else
        for (; b + 16 <= count; b += 16) quantize_sixteen<1>(x + b * kBlock, blocks + b);
#endif
    if (scale_blocks == 2)
        for (; b + 2 <= count; b += 2) quantize_blocks<2, true>(x + b * kBlock, blocks + b);
    for (; b < count; ++b) quantize_blocks<1, true>(x + b * kBlock, blocks + b);
}
