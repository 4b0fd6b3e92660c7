// Decoders of block formats to bf16, for packed matrices of models in training. Each value is computed in float32 by
// the operations of `puna.formats.decoders` in their order, and rounded once. Uses vec.h, and from_bytes of the
// including file, which converts sixteen bytes.

PUNA_INLINE __m128i load_bytes(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
PUNA_INLINE __m128i low_nibbles(__m128i bytes) { return _mm_and_si128(bytes, _mm_set1_epi8(15)); }
PUNA_INLINE __m128i high_nibbles(__m128i bytes) { return low_nibbles(_mm_srli_epi16(bytes, 4)); }
PUNA_INLINE f32x16 half_at(const uint8_t* from) {
    uint16_t bits;
    __builtin_memcpy(&bits, from, 2);
    return broadcast(from_half(bits));
}

static void decode_q4_0(const uint8_t* block, uint16_t* out) {
    const f32x16 scale = half_at(block), zero = broadcast(8.0f);
    const __m128i bytes = load_bytes(block + 2);
    store_bf16(out, scale * (from_bytes(low_nibbles(bytes)) - zero));
    store_bf16(out + 16, scale * (from_bytes(high_nibbles(bytes)) - zero));
}

static void decode_q4_1(const uint8_t* block, uint16_t* out) {
    const f32x16 scale = half_at(block), minimum = half_at(block + 2);
    const __m128i bytes = load_bytes(block + 4);
    store_bf16(out, scale * from_bytes(low_nibbles(bytes)) + minimum);
    store_bf16(out + 16, scale * from_bytes(high_nibbles(bytes)) + minimum);
}

static void decode_q8_0(const uint8_t* block, uint16_t* out) {
    const f32x16 scale = half_at(block);
    for (int i = 0; i < 32; i += 16) {
        store_bf16(out + i, to_f32(widen_i8(block + 2 + i)) * scale);
    }
}

// The scales and minimums of six bits, for each 32 values, in twelve bytes.
static void six_bits(const uint8_t* packed, int b, float& scale, float& minimum) {
    if (b < 4) {
        scale = static_cast<float>(packed[b] & 63);
        minimum = static_cast<float>(packed[4 + b] & 63);
    } else {
        scale = static_cast<float>((packed[4 + b] & 15) | (packed[b - 4] >> 6 << 4));
        minimum = static_cast<float>((packed[4 + b] >> 4) | (packed[b] >> 6 << 4));
    }
}

// Q4_K, and Q5_K if `high` points to the planes of fifth bits.
static void decode_q4_or_q5_k(const uint8_t* block, const uint8_t* high, const uint8_t* low, uint16_t* out) {
    const f32x16 unit = half_at(block), minimum_unit = half_at(block + 2);
    for (int b = 0; b < 8; ++b) {
        float scale, minimum;
        six_bits(block + 4, b, scale, minimum);
        const f32x16 times = unit * broadcast(scale), minus = minimum_unit * broadcast(minimum);
        for (int i = 0; i < 32; i += 16) {
            const __m128i bytes = load_bytes(low + b / 2 * 32 + i);
            __m128i q = b % 2 ? high_nibbles(bytes) : low_nibbles(bytes);
            if (high) {
                const __m128i bit = _mm_set1_epi8(static_cast<char>(1 << b));
                const __m128i set = _mm_cmpeq_epi8(_mm_and_si128(load_bytes(high + i), bit), bit);
                q = _mm_or_si128(q, _mm_and_si128(set, _mm_set1_epi8(16)));
            }
            store_bf16(out + 32 * b + i, times * from_bytes(q) - minus);
        }
    }
}

static void decode_q4_k(const uint8_t* block, uint16_t* out) { decode_q4_or_q5_k(block, nullptr, block + 16, out); }
static void decode_q5_k(const uint8_t* block, uint16_t* out) { decode_q4_or_q5_k(block, block + 16, block + 48, out); }

static void decode_q6_k(const uint8_t* block, uint16_t* out) {
    const f32x16 unit = half_at(block + 208), zero = broadcast(32.0f);
    for (int part = 0; part < 16; ++part) {  // 16 values that share a scale
        const int n = part / 8, row = part / 2 % 4, i = 16 * (part % 2);
        const __m128i bytes = load_bytes(block + 64 * n + 32 * (row % 2) + i);
        const __m128i top = _mm_and_si128(
            _mm_srl_epi16(load_bytes(block + 128 + 32 * n + i), _mm_cvtsi32_si128(2 * row)), _mm_set1_epi8(3));
        const __m128i q = _mm_or_si128(row < 2 ? low_nibbles(bytes) : high_nibbles(bytes), _mm_slli_epi16(top, 4));
        const f32x16 times = unit * broadcast(static_cast<float>(static_cast<int8_t>(block[192 + part])));
        store_bf16(out + 16 * part, times * (from_bytes(q) - zero));
    }
}

static BlockDecoder decoder(int32_t format) {
    switch (format) {
        case kQ4_0:
            return {18, 32, decode_q4_0};
        case kQ4_1:
            return {20, 32, decode_q4_1};
        case kQ8_0:
            return {34, 32, decode_q8_0};
        case kQ4_K:
            return {144, 256, decode_q4_k};
        case kQ5_K:
            return {176, 256, decode_q5_k};
        case kQ6_K:
            return {210, 256, decode_q6_k};
        default:
            return {0, 0, nullptr};
    }
}
