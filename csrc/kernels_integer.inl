// Integer weights times 8-bit activations. The products of 32 columns (16 in some K formats) are summed exactly as
// integers, multiplied by their scales, and added in float32 in ascending order of columns. One token and many tokens
// use the same functions `add_block` and `accumulate`, so their results have the same bits.
//
// With weights w = scale * (q - zero) + min, where q is the stored integer, and inputs x = d * a, where a has 8 bits:
//   sum of w x = d * (scale * (sum of q a - zero * sum of a) + min * sum of a)
// `dot` computes the inner parenthesis, `add_block` the outer one, and `accumulate` multiplies by d.

// Whether the sums of eight tokens fit into registers: AVX-512 has 32, AVX2 and SSE2 have 16.
#if defined(__AVX512F__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

// Whether weights are unpacked to memory for any number of tokens, which leaves only one kernel per format to compile.
// SSE2 on Zen 3, compared with unpacking in registers: one token, Q4_0 1.39 times and Q4_K 1.29 times as fast; two
// tokens, Q4_0 1.39 times. Arm without dot products was not measured.
#if defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
constexpr bool kOnlyUnpacked = false;
#else
constexpr bool kOnlyUnpacked = true;
#endif

// Scales and minimums of a block, for columns 0 .. 15 and 16 .. 31. `offset`: see kFloatBits.
struct BlockScales {
    f32x16 scale[2], min[2], offset;
};

#if !defined(__AVX2__) && !defined(__aarch64__)
// Replaces each byte, which is less than 16, by an entry of `table`. Not inlined, because every format with a table
// would have eight copies.
static __attribute__((noinline)) u32x16 look_up(const u32x16& index, const uint8_t* table) {
    uint8_t bytes[64];
    store_u32(bytes, index);
    for (uint8_t& byte : bytes) byte = table[byte & 15];
    return load_u32(bytes);
}
#endif

// Reads the panels of formats with the same planes and scales. kTable: stored values are indices of the format's
// levels, which are read plus 128. kMaxStored: the largest stored value (or level plus 128); kZero: its zero point;
// kHalfScales: scales belong to 16 columns instead of 32; kHasMin: the format has minimums.
template <Planes kPlanes, Scales kScaleKind, int kZeroPoint, bool kTable = false>
struct IntegerFormat {
    static constexpr int kMaxStored = kTable || kPlanes == Planes::kEight ? 255
                                      : kPlanes == Planes::kFour          ? 15
                                      : kPlanes == Planes::kFive          ? 31
                                                                          : 63;
    static constexpr int kZero = kTable ? 128 : kZeroPoint;
    static constexpr bool kHalfScales = kScaleKind == Scales::kSignedHalves || kScaleKind == Scales::kNibbles;
    static constexpr bool kHalfPrecision = kScaleKind == Scales::kHalf;
    static constexpr bool kHasMin =
        kScaleKind == Scales::kHalfAndMin || kScaleKind == Scales::kSixBit || kScaleKind == Scales::kNibbles;
    // Whether it is faster to unpack panels in registers for every tile of tokens than to unpack them once to memory.
    static constexpr bool kInRegisters =
        kManyRegisters && !kHalfScales && (kPlanes == Planes::kFour || kPlanes == Planes::kEight);
    static constexpr int kPlaneBytes = plane_bytes(kPlanes);
    static constexpr int kScaleBlocks = scale_blocks(kScaleKind);
    static_assert(kScaleBlocks == 1 || kScaleBlocks == 2, "the unrolled loops have two blocks at most");

    static constexpr bool reads(const FormatTraits& traits) {
        return traits.planes == kPlanes && traits.scales == kScaleKind &&
               (kTable ? traits.levels != nullptr : traits.levels == nullptr && traits.zero == kZeroPoint);
    }

    static inline PUNA_INLINED BlockOffsets offsets(int64_t b) { return block_offsets(kPlanes, kScaleKind, b); }
    // Returns the place of the second of two blocks that share an activation scale. Its distance from the first is
    // constant.
    static inline PUNA_INLINED BlockOffsets next_offsets(const BlockOffsets& at) {
        constexpr BlockOffsets first = block_offsets(kPlanes, kScaleKind, 0),
                               next = block_offsets(kPlanes, kScaleKind, 1);
        return {at.head, at.scales + (next.scales - first.scales), at.planes + (next.planes - first.planes)};
    }

    // The table of levels of a matrix, as `quad` reads it; unused without kTable.
#if defined(__AVX2__)
    using Table = u32x16;
    static inline PUNA_INLINED Table table(const Panels& w) {
        if constexpr (kTable) return load_u32(w.traits->levels->biased);
        return {};
    }
#else
    using Table = const uint8_t*;
    static inline PUNA_INLINED Table table(const Panels& w) { return kTable ? w.traits->levels->biased : nullptr; }
#endif

    // Stored values of columns 4 s .. 4 s + 3 of a block, for 16 rows, as bytes. `s` is a constant after unrolling.
    static inline PUNA_INLINED u32x16 quad(const uint8_t* block, int s, const Table& table) {
        if (kPlanes == Planes::kEight) return load_u32(block + s * 64);
        const u32x16 low = shift_right(load_u32(block + (s & 3) * 64), s < 4 ? 0 : 4) & 0x0f0f0f0fu;
        if (kTable) return levels(low, table);
        if (kPlanes == Planes::kFour) return low;
        if (kPlanes == Planes::kFive) return low | (shift_right(load_u32(block + 256), s - 4) & 0x10101010u);
        return low | (shift_right(load_u32(block + 256 + (s >> 2) * 64), 2 * (s & 3) - 4) & 0x30303030u);
    }

    // Returns the same as `quad`, but reads the plane again for the upper nibbles. Otherwise the compiler keeps the
    // planes of a block in registers, which are all needed in a large tile.
    static inline PUNA_INLINED u32x16 quad_again(const uint8_t* block, int s, const Table& table) {
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
        if ((kTable || kPlanes == Planes::kFour) && s >= 4) {
            u32x16 high;
            asm("vpsrld $4, %1, %0" : "=v"(high.reg[0]) : "m"(*reinterpret_cast<const u32_mem*>(block + (s & 3) * 64)));
            high = high & 0x0f0f0f0fu;
            return kTable ? levels(high, table) : high;
        }
#elif defined(__AVX2__) && !defined(__AVX512F__)
        if ((kTable || kPlanes == Planes::kFour) && s >= 4) {
            u32x16 both;
            PUNA_EACH_REG asm("vmovdqu %1, %0" : "=x"(both.reg[i_]) : "m"(
                *reinterpret_cast<const u32_mem*>(block + (s & 3) * 64 + i_ * kWidth * 4)));
            const u32x16 high = shift_right(both, 4) & 0x0f0f0f0fu;
            return kTable ? levels(high, table) : high;
        }
#endif
        return quad(block, s, table);
    }

    // Scales of a block. Only index 0 is set unless kHalfScales, and `min` only if kHasMin.
    static inline PUNA_INLINED BlockScales scales(const uint8_t* panel, const BlockOffsets& at) {
        BlockScales out;
        const auto half = [](const uint8_t* from) { return f16_to_f32(reinterpret_cast<const uint16_t*>(from)); };
        const uint8_t* const bytes = panel + at.scales;
        if (kScaleKind == Scales::kHalf) {
            out.scale[0] = half(bytes);
        } else if (kScaleKind == Scales::kHalfAndMin) {
            out.scale[0] = half(bytes);
            out.min[0] = half(bytes + 32);
        } else if (kScaleKind == Scales::kExponent) {
            // Two factors, because 2^(e - 128) is not always a normal number.
            const i32x16 e = widen_u8(bytes);
            u32x16 first, second;
            PUNA_EACH_REG {
                const i32_reg half_of_e = e.reg[i_] >> 1;
                first.reg[i_] = (u32_reg)((half_of_e + 63) << 23);
                second.reg[i_] = (u32_reg)((e.reg[i_] - half_of_e + 63) << 23);
            }
            out.scale[0] = as_f32(first) * as_f32(second);
        } else if (kScaleKind == Scales::kSigned || kScaleKind == Scales::kSignedHalves) {
            const f32x16 d = load(reinterpret_cast<const float*>(panel + at.head));
            for (int h = 0; h < 1 + kHalfScales; ++h) out.scale[h] = d * to_f32(widen_i8(bytes + h * 16));
        } else {
            const f32x16 d = half(panel + at.head), minus = half(panel + at.head + 32) * broadcast(-1.0f);
            if (kScaleKind == Scales::kSixBit) {
                out.scale[0] = d * to_f32(widen_u8(bytes));
                out.min[0] = minus * to_f32(widen_u8(bytes + 16));
                return out;
            }
            for (int h = 0; h < 2; ++h) {
                const i32x16 both = widen_u8(bytes + h * 16);
                i32x16 low, high;
                PUNA_EACH_REG {
                    low.reg[i_] = both.reg[i_] & 15;
                    high.reg[i_] = both.reg[i_] >> 4;
                }
                out.scale[h] = d * to_f32(low);
                out.min[h] = minus * to_f32(high);
            }
        }
        return out;
    }

    // Looks up the levels of 4-bit indices. Each level is stored plus 128.
    static inline PUNA_INLINED u32x16 levels(const u32x16& index, const Table& table) {
#if defined(__AVX512F__)
        return u32x16{{(u32_reg)_mm512_shuffle_epi8((__m512i)table.reg[0], (__m512i)index.reg[0])}};
#elif defined(__AVX2__)
        u32x16 out;
        PUNA_EACH_REG out.reg[i_] = (u32_reg)_mm256_shuffle_epi8((__m256i)table.reg[i_], (__m256i)index.reg[i_]);
        return out;
#elif defined(__aarch64__)
        u32x16 out;
        PUNA_EACH_REG out.reg[i_] = (u32_reg)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index.reg[i_]);
        return out;
#else
        return look_up(index, table);
#endif
    }
};

// vpmaddubsw (AVX2) adds two products in 16 bits, and the kernel adds at least two such sums before it widens them.
// Weights of more than six bits could overflow these sums, so they are multiplied as two digits of four bits.
#if defined(__AVX2__) && !defined(PUNA_DOT_BYTES)
template <typename F>
constexpr int kDigits = F::kMaxStored > 63 ? 2 : 1;
#else
template <typename F>
constexpr int kDigits = 1;
#endif

// Returns digit `d` of each byte (0 is the lower one). Formats with one digit return the byte.
template <typename F>
PUNA_INLINE u32x16 digit(const u32x16& bytes, int d) {
    return kDigits<F> == 1 ? bytes : shift_right(bytes, 4 * d) & 0x0f0f0f0fu;
}

// Returns -(sum of the activations) of a block; if kHalfScales, of the 16 columns that start with column 4 kFrom.
template <typename F, int kFrom>
PUNA_INLINE int32_t neg_sum(const ActivationBlock& block) {
    return F::kHalfScales ? block.neg_half_sum[kFrom / 4] : block.neg_sum;
}

// Returns -zero * (sum of the activations), which subtracts the zero point from every weight.
template <typename F, int kFrom>
PUNA_INLINE int32_t zero_points(const ActivationBlock& block) {
    return F::kZero ? F::kZero * neg_sum<F, kFrom>(block) : 0;
}

// Initialises the integer sums.
template <typename F, int kFrom, int kTokens, int kGroup>
PUNA_INLINE void init_sums(const ActivationBlock* a, int64_t stride, i32x16 (&sum)[kTokens][kGroup]) {
    for (int t = 0; t < kTokens; ++t) {
        const i32x16 start = broadcast_i32(zero_points<F, kFrom>(a[t * stride]));
        for (int g = 0; g < kGroup; ++g) sum[t][g] = start;
    }
}

// Whether `dot` adds kMagicBits to its sums. The bits of the result are those of the float kMagic + sum. Then
// fma(kMagic + sum, scale, -kMagic * scale) = sum * scale in one instruction instead of two, rounded once as well:
// kMagic * scale is exact if the scale is a half-precision number. One token does not gain, because -kMagic * scale is
// computed for each block. With the zero point 8 (Q4_0), the bits kMagicBits - 8 * (sum of the activations) are stored
// with the activations: two instructions less than computing them.
#if defined(__AVX2__) && !defined(PUNA_DOT_BYTES)
template <typename F, int kTokens>
constexpr bool kFloatBits = F::kHalfPrecision && F::kZero != 0 && kTokens > 1;
#else
template <typename F, int kTokens>
constexpr bool kFloatBits = false;
#endif
constexpr int kMany = 2;  // for kFloatBits: any number of tokens above one

// Calls done(t) for each token t.
template <int kTokens, typename Done>
PUNA_INLINE void each_token(const Done& done) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) done(t);
}

#if defined(PUNA_DOT_BYTES)

// sum[t][g] = exact sum of (q - zero) * a over columns 4 kFrom .. 4 kTo - 1 of a block. quad(g, s, d) reads the
// weights. Calls done(t) when the sums of token t are complete.
template <typename F, int kFrom, int kTo, int kTokens, int kGroup, typename Quad, typename Done>
PUNA_INLINE void dot(const Quad& quad, const ActivationBlock* a, int64_t stride, i32x16 (&sum)[kTokens][kGroup],
                     const Done& done) {
    constexpr int kChains = kTokens * kGroup < 4 ? 2 : 1;  // enough independent sums to hide the latency of dot_bytes
    // Signed bytes cannot hold weights above 127; these have the zero point 128, and q - 128 is q with another top bit.
    constexpr bool kFlip = kSignedBytes && F::kMaxStored > 127;
    static_assert(!kFlip || F::kZero == 128, "q - zero fits into a signed byte");
    i32x16 partial[kTokens][kGroup][kChains];
    for (int t = 0; t < kTokens; ++t) {
        i32x16 start = broadcast_i32(0);
        if (F::kZero && !kFlip) {  // zero is a power of two: multiply by a shift
            start = broadcast_i32(neg_sum<F, kFrom>(a[t * stride]));
            PUNA_EACH_REG start.reg[i_] = start.reg[i_] << __builtin_ctz(F::kZero);
        }
        for (int g = 0; g < kGroup; ++g)
            for (int c = 0; c < kChains; ++c) partial[t][g][c] = c ? broadcast_i32(0) : start;
    }
#pragma GCC unroll 8
    for (int s = kFrom; s < kTo; ++s) {
        u32x16 w[kGroup];
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) {
            w[g] = quad(g, s, 0);
            if (kFlip) PUNA_EACH_REG w[g].reg[i_] = w[g].reg[i_] ^ 0x80808080u;
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
            const i32_reg x = i32_reg{} + load_i32(a[t * stride].quants + 4 * s);
#pragma GCC unroll 4
            for (int g = 0; g < kGroup; ++g) PUNA_EACH_REG {
                    i32_reg& to = partial[t][g][s % kChains].reg[i_];
                    to = dot_bytes(to, w[g].reg[i_], x);
                }
        }
    }
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroup; ++g) {
            sum[t][g] = partial[t][g][0];
            if (kChains == 2) sum[t][g] = sum[t][g] + partial[t][g][kChains - 1];
        }
    each_token<kTokens>(done);
}

#elif defined(__AVX2__)

// `dot` on AVX2. A pair of products is at most 2 * 128 * (largest weight or digit). kSpan pairs are added in 16 bits
// before they are widened to 32: 2 for six bits, and a whole block for four bits: 8 * 2 * 15 * 128 = 30720 < 32768.
template <typename F, int kFrom, int kTo, int kTokens, int kGroup, typename Quad, typename Done>
PUNA_INLINE void dot(const Quad& quad, const ActivationBlock* a, int64_t stride, i32x16 (&sum)[kTokens][kGroup],
                     const Done& done) {
    constexpr int kMaxPairs =
        32767 / (2 * 128 * (kDigits<F> == 2 ? 15 : F::kMaxStored));  // pairs that fit into 16 bits
    constexpr int kSpan = kMaxPairs >= 8 ? 8 : kMaxPairs >= 4 ? 4 : 2;
    constexpr int kRun = kSpan > kTo - kFrom ? kTo - kFrom : kSpan;
    static_assert(kMaxPairs >= 2, "the weights have six bits at maximum");
#pragma GCC unroll 8
    for (int s = kFrom; s < kTo; s += kRun) {
        i32x16 narrow[kDigits<F>][kTokens][kGroup];
#pragma GCC unroll 8
        for (int i = 0; i < kRun; ++i) {
            u32x16 w[kDigits<F>][kGroup];
#pragma GCC unroll 4
            for (int g = 0; g < kGroup; ++g)
                for (int d = 0; d < kDigits<F>; ++d) w[d][g] = quad(g, s + i, d);
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) {
                const i32_reg x = i32_reg{} + load_i32(a[t * stride].quants + 4 * (s + i));
#pragma GCC unroll 4
                for (int g = 0; g < kGroup; ++g)
                    for (int d = 0; d < kDigits<F>; ++d) PUNA_EACH_REG {
                            const i32_reg product = maddubs_i16(w[d][g].reg[i_], x);
                            i32_reg& to = narrow[d][t][g].reg[i_];
                            to = i == 0 ? product : add_i16(to, product);
                        }
            }
        }
        // Widen: madd_i16 adds neighbouring 16-bit sums, and weights the higher digit by 16.
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
            const int32_t magic = kFloatBits<F, kTokens> ? kMagicBits : 0;
            const i32x16 start =
                broadcast_i32(kFloatBits<F, kTokens> && F::kZero == 8 ? a[t * stride].start
                                                                      : zero_points<F, kFrom>(a[t * stride]) + magic);
#pragma GCC unroll 4
            for (int g = 0; g < kGroup; ++g)
                for (int d = 0; d < kDigits<F>; ++d) PUNA_EACH_REG {
                        const i32_reg to = s == kFrom && d == 0 ? start.reg[i_] : sum[t][g].reg[i_];
                        sum[t][g].reg[i_] = to + madd_i16(narrow[d][t][g].reg[i_], d ? 16 : 1);
                    }
            if (s + kRun == kTo) done(t);
        }
    }
}

#elif defined(__SSE2__)

// `dot` on SSE2, with pmaddwd: it multiplies 16-bit numbers and adds pairs of products. Weights are split into even and
// odd bytes, and the activations are reordered to 0, 2, 1, 3 to match.
template <typename F, int kFrom, int kTo, int kTokens, int kGroup, typename Quad, typename Done>
PUNA_INLINE void dot(const Quad& quad, const ActivationBlock* a, int64_t stride, i32x16 (&sum)[kTokens][kGroup],
                     const Done& done) {
    init_sums<F, kFrom>(a, stride, sum);
#pragma GCC unroll 8
    for (int s = kFrom; s < kTo; ++s) {
        u32x16 even[kGroup], odd[kGroup];
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) {
            const u32x16 w = quad(g, s, 0);
            even[g] = w & 0x00ff00ffu;
            odd[g] = shift_right(w, 8) & 0x00ff00ffu;
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
            const __m128i bytes = _mm_cvtsi32_si128(load_i32(a[t * stride].quants + 4 * s));
            const __m128i four = _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
            const __m128i order = _mm_shufflelo_epi16(four, _MM_SHUFFLE(3, 1, 2, 0));
            const __m128i first = _mm_shuffle_epi32(order, 0), second = _mm_shuffle_epi32(order, 0x55);
#pragma GCC unroll 4
            for (int g = 0; g < kGroup; ++g) PUNA_EACH_REG {
                    const __m128i sums = _mm_madd_epi16((__m128i)even[g].reg[i_], first);
                    sum[t][g].reg[i_] =
                        sum[t][g].reg[i_] + (i32_reg)sums + (i32_reg)_mm_madd_epi16((__m128i)odd[g].reg[i_], second);
                }
        }
    }
    each_token<kTokens>(done);
}

#else

// `dot` in plain C++, one column at a time.
template <typename F, int kFrom, int kTo, int kTokens, int kGroup, typename Quad, typename Done>
PUNA_INLINE void dot(const Quad& quad, const ActivationBlock* a, int64_t stride, i32x16 (&sum)[kTokens][kGroup],
                     const Done& done) {
    init_sums<F, kFrom>(a, stride, sum);
#pragma GCC unroll 8
    for (int s = kFrom; s < kTo; ++s)
        for (int g = 0; g < kGroup; ++g) {
            const u32x16 w = quad(g, s, 0);
            for (int i = 0; i < 4; ++i) {
                const u32x16 column = shift_right(w, 8 * i) & 0xffu;
                for (int t = 0; t < kTokens; ++t) {
                    const int32_t x = a[t * stride].quants[4 * s + i];
                    PUNA_EACH_REG sum[t][g].reg[i_] = sum[t][g].reg[i_] + (i32_reg)column.reg[i_] * x;
                }
            }
        }
    each_token<kTokens>(done);
}

#endif

// Adds scale * sum + min * (sum of activations) of one block to partial[t][g]; with kFirst, replaces partial[t][g].
// scales(g) and quad(g, s, digit) read the block of panel g.
template <typename F, bool kFirst, int kTokens, int kGroup, typename Read, typename Quad>
PUNA_INLINE void add_block(const Read& scales, const Quad& quad, const ActivationBlock* a, int64_t stride,
                           f32x16 (&partial)[kTokens][kGroup]) {
    static_assert(!kFloatBits<F, kTokens> || F::kScaleBlocks == 1, "every block is the first of its scale");
    i32x16 sum[kTokens][kGroup];
    BlockScales by[kGroup];
    const auto read = [&]() PUNA_INLINED {
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) by[g] = scales(g);
    };
    const auto add = [&](auto half, int t) PUNA_INLINED {
        constexpr int h = decltype(half)::kValue;
        if (!F::kHalfScales && t == 0) read();
        const ActivationBlock& x = a[t * stride];
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) {
            f32x16& to = partial[t][g];
            if (kFloatBits<F, kTokens>) {
                to = fma(as_f32(sum[t][g]), by[g].scale[h], by[g].offset);
            } else {
                const f32x16 product = to_f32(sum[t][g]);
                to = kFirst && h == 0 ? product * by[g].scale[h] : fma(product, by[g].scale[h], to);
            }
            if (F::kHasMin) to = fma(by[g].min[h], broadcast(F::kHalfScales ? x.half_sum[h] : x.sum), to);
        }
    };
    const auto add_first = [&](int t) PUNA_INLINED { add(Constant<0>(), t); };
    if (!F::kHalfScales) {
        dot<F, 0, 8>(quad, a, stride, sum, add_first);
    } else {
        read();
        dot<F, 0, 4>(quad, a, stride, sum, add_first);
        dot<F, 4, 8>(quad, a, stride, sum, [&](int t) PUNA_INLINED { add(Constant<1>(), t); });
    }
}

// acc[t][g] += partial[t][g] * activation scale, once all blocks that share this scale are in `partial`.
template <int kTokens, int kGroup>
PUNA_INLINE void accumulate(const f32x16 (&partial)[kTokens][kGroup], const ActivationBlock* a, int64_t stride,
                            f32x16 (&acc)[kTokens][kGroup]) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
        const f32x16 d = broadcast(a[t * stride].scale);
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) acc[t][g] = fma(partial[t][g], d, acc[t][g]);
    }
}

// Whether the two blocks that share a scale are unrolled. With AVX2 this saves registers and instructions; elsewhere it
// would only double the compile time.
#if defined(__AVX2__) && defined(__OPTIMIZE__)
constexpr bool kUnrolled = true;
#else
constexpr bool kUnrolled = false;
#endif

template <int kTokens, int kGroup>
PUNA_INLINE void set_zero(f32x16 (&partial)[kTokens][kGroup]) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) partial[t][g] = broadcast(0.0f);
}

// Distances of prefetches in bytes. A single stream is prefetched kPrefetchFar ahead (AVX-512: into L2, and again
// kPrefetchNear ahead into L1). With the four streams of a strip a near prefetch suffices: it triggers the hardware
// prefetcher. Zen 4, AVX-512: 4 KB and 16 KB instead of 8 KB make no difference; without the second prefetch Q4_K is 15
// % slower with four tokens; both prefetches for strips cost 4 to 25 %. Other values of kPrefetchNear were not
// measured.
constexpr int kPrefetchFar = 8192, kPrefetchNear = 1024;
#if defined(__AVX512F__)
constexpr int kPrefetchStrip = 1024;  // Zen 5: 512 is 5 to 10 % slower; Zen 4: 256 to 1024 are equally fast
#else
constexpr int kPrefetchStrip = 256;  // Zen 3, AVX2: 512 or more is 10 to 20 % slower
#endif

// Prefetches memory kDistance bytes ahead of a block: as many lines as the block's planes, and one more for scales.
template <typename F, int kDistance, int kCache>
PUNA_INLINE void prefetch(const uint8_t* block) {
#pragma GCC unroll 16
    for (int line = 0; line <= F::kPlaneBytes; line += kLine) __builtin_prefetch(block + kDistance + line, 0, kCache);
}

// Processes blocks that share an activation scale, for one token and kPanels panels that are `panel_stride` panels from
// each other. Each block is processed in all panels before the next block, so that the panels are read as parallel
// streams.
template <typename F, int kPanels>
PUNA_INLINE void strip_blocks(const Panels& w, const typename F::Table& table, int64_t panel, int64_t panel_stride,
                              int64_t first, const ActivationBlock* a, f32x16 (&acc)[kPanels][1][1]) {
    f32x16 partial[kPanels][1][1];
    const auto block = [&](auto is_first, const BlockOffsets& at, int64_t b) PUNA_INLINED {
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) {
            const uint8_t* const from = w.data + (panel + p * panel_stride) * w.stride;
            const uint8_t* const planes = from + at.planes;
            if (kPanels > 1) {
                prefetch<F, kPrefetchStrip, kStreamLevel>(planes);
            } else {
                prefetch<F, kPrefetchFar, kStreamLevel>(planes);
                if (kStreamLevel != kL1) prefetch<F, kPrefetchNear, kL1>(planes);
            }
            add_block<F, decltype(is_first)::kValue>(
                [&](int) PUNA_INLINED { return F::scales(from, at); },
                [&](int, int s, int d) PUNA_INLINED { return digit<F>(F::quad(planes, s, table), d); }, a + b, 0,
                partial[p]);
        }
    };
    if constexpr (kUnrolled || F::kScaleBlocks == 1) {
        const BlockOffsets at = F::offsets(first);
        block(Constant<1>(), at, first);
        if constexpr (F::kScaleBlocks == 2) block(Constant<0>(), F::next_offsets(at), first + 1);
    } else {
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) set_zero(partial[p]);
        for (int64_t b = first; b < first + F::kScaleBlocks; ++b) block(Constant<0>(), F::offsets(b), b);
    }
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
        accumulate(partial[p], a + first, 0, acc[p]);
#if defined(__AVX2__) && !defined(__AVX512F__)
        // AVX2 has 16 registers, and none is free for `acc`. This statement moves `acc` to memory; otherwise GCC keeps
        // it in registers and spills others in every block.
        if (kPanels == kStrip && F::kHasMin) PUNA_EACH_REG asm("" : "+m"(acc[p][0][0].reg[i_]));
#endif
    }
}

// Multiplies kPanels panels that are `panel_stride` panels from each other by one token. Each byte is read once.
template <typename F, int kPanels>
static void strip_matmul(const MatmulJob& job, int64_t panel, int64_t panel_stride) {
    const Panels& w = job.w;
    f32x16 acc[kPanels][1][1];
    const typename F::Table table = F::table(w);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) acc[p][0][0] = broadcast(0.0f);  // unrolled: `acc` stays in registers
    for (int64_t b = 0; b < w.cols / kBlock; b += F::kScaleBlocks)
        strip_blocks<F>(w, table, panel, panel_stride, b, job.x.blocks, acc);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) store_rows(acc[p][0][0], job, panel + p * panel_stride, 0);
}

// Processes blocks that share an activation scale, for kTokens tokens and kGroup neighbouring panels, the first of
// which starts at `from`.
template <typename F, int kTokens, int kGroup>
PUNA_INLINE void register_blocks(const uint8_t* from, int64_t panel_bytes, const typename F::Table& table,
                                 int64_t first, const ActivationBlock* a, int64_t stride,
                                 f32x16 (&acc)[kTokens][kGroup]) {
    f32x16 partial[kTokens][kGroup];
    const auto block = [&](auto is_first, const BlockOffsets& at, int64_t b) PUNA_INLINED {
        add_block<F, decltype(is_first)::kValue>(
            [&](int g) PUNA_INLINED {
                BlockScales out = F::scales(from + g * panel_bytes, at);
                if (kFloatBits<F, kTokens>) out.offset = out.scale[0] * broadcast(-kMagic);
                return out;
            },
            [&](int g, int s, int d)
                PUNA_INLINED { return digit<F>(F::quad_again(from + g * panel_bytes + at.planes, s, table), d); },
            a + b, stride, partial);
    };
    if constexpr (kUnrolled || F::kScaleBlocks == 1) {
        const BlockOffsets at = F::offsets(first);
        block(Constant<1>(), at, first);
        if constexpr (F::kScaleBlocks == 2) block(Constant<0>(), F::next_offsets(at), first + 1);
    } else {
        set_zero(partial);
        for (int64_t b = first; b < first + F::kScaleBlocks; ++b) block(Constant<0>(), F::offsets(b), b);
    }
    accumulate(partial, a + first, stride, acc);
}

// Multiplies kGroup neighbouring panels by kTokens tokens. Weights are unpacked in registers, and each activation is
// loaded once for all panels. `ahead`: memory that is read later; `lines` cache lines of it are prefetched per block.
template <typename F, int kTokens, int kGroup>
static void register_matmul(const MatmulJob& job, int64_t panel, int64_t token, const uint8_t* ahead, int lines) {
    const Panels& w = job.w;
    const int64_t stride = block_stride(w.cols);
    const ActivationBlock* const a = job.x.blocks + token * stride;
    f32x16 acc[kTokens][kGroup];
    const typename F::Table table = F::table(w);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) acc[t][g] = broadcast(0.0f);  // unrolled: `acc` stays in registers
    for (int64_t b = 0; b < w.cols / kBlock; b += F::kScaleBlocks) {
        for (int i = 0; i < lines * F::kScaleBlocks; ++i, ahead += kLine) __builtin_prefetch(ahead, 0, kStreamLevel);
        register_blocks<F>(w.data + panel * w.stride, w.stride, table, b, a, stride, acc);
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) store_rows(acc[t][g], job, panel + g, token + t);
}

// kTileTokens x kTileGroup: tokens and panels of a tile of `unpacked_matmul`. kRegisterTokens x kRegisterGroup: the
// same of `register_matmul`. kChunkBlocks: blocks of a panel that are unpacked at once; they stay in L1.
#if defined(__AVX512F__)
// Zen 5: see benchmarks/NOTES.md. Zen 4: other sizes of chunks are below the noise.
constexpr int kTileTokens = 4, kTileGroup = 2, kRegisterTokens = 4, kRegisterGroup = 3, kChunkBlocks = 16;
#elif defined(__AVX2__)
// Zen 3. Tiles of 3, 5 or 6 tokens: the same or slower. 16 blocks instead of 24: 2 to 4 % slower with rows of 576.
constexpr int kTileTokens = 4, kTileGroup = 1, kRegisterTokens = 4, kRegisterGroup = 1, kChunkBlocks = 24;
#else  // not measured
constexpr int kTileTokens = 2, kTileGroup = 1, kRegisterTokens = 1, kRegisterGroup = 1, kChunkBlocks = 16;
#endif
// Tokens of a tile of `register_matmul`. AVX2: the sums of four tokens fit into the registers only if all products of a
// block can be added in 16 bits; Zen 3, Q4_0: 4 instead of 2 is a fifth faster with 4 and with 8 tokens.
template <typename F>
constexpr int kRegisterTile =
    kManyRegisters || (F::kMaxStored <= 15 && !F::kHalfScales) || kRegisterTokens < 4 ? kRegisterTokens : 2;
// With more tokens, unpacking a panel to memory pays off. Neighbours were not recorded.
template <typename F>
constexpr int kMaxRegisterTokens = kManyRegisters ? 24 : 2 * kRegisterTile<F>;
// Tokens by which panels are multiplied before the next panels. Zen 5, 512 tokens: 32 instead of 64 is 3 % slower; 128
// is as fast, but activations of 5,632 columns would not fit into L2.
constexpr int kRegisterBlock = 64;

// Whether the tiles of `unpacked_matmul` prefetch the next chunk, each its share, into L2. Otherwise `unpack`
// prefetches, in bursts that memory cannot follow. Zen 3, Q4_0: 13 % faster with 16 tokens, 8 % with 64. Elsewhere not
// measured.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kTilesPrefetch = true;
static_assert(kTileGroup == 1, "a chunk is one piece of memory");
#else
constexpr bool kTilesPrefetch = false;
#endif

// Whether the first tile unpacks each block before it multiplies it. Unpacking alone waits for its stores; a tile can
// compute meanwhile.
constexpr bool kTilesUnpack = kTilesPrefetch;
static_assert(!kTilesUnpack || kTileGroup == 1, "the first tile unpacks one panel");

static_assert(kChunkBlocks % 2 == 0, "blocks that share a scale are added together");

// kChunkBlocks blocks of kGroup panels, unpacked to bytes (or digits), float scales and minimums. With kFloatBits,
// `min` holds BlockScales::offset.
template <typename F, int kGroup>
struct Unpacked {
    alignas(64) uint8_t quads[kChunkBlocks][8][kGroup][kDigits<F>][64];
    alignas(64) float scale[kChunkBlocks][kGroup][2][kLanes];
    alignas(64) float min[kChunkBlocks][kGroup][2][kLanes];
};

// Unpacks block `block` of a panel as block `b` of panel `g` of `to`.
template <typename F, int kGroup>
PUNA_INLINE void unpack_block(const uint8_t* panel, const typename F::Table& table, int64_t block, int64_t b, int g,
                              Unpacked<F, kGroup>& to) {
    static_assert(!(kFloatBits<F, kMany> && F::kHasMin), "`min` holds either");
    const BlockOffsets at = F::offsets(block);
    if (!kTilesPrefetch) prefetch<F, kPrefetchFar, kStreamLevel>(panel + at.planes);
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s)
        for (int d = 0; d < kDigits<F>; ++d)
            store_u32(to.quads[b][s][g][d], digit<F>(F::quad(panel + at.planes, s, table), d));
    const BlockScales scales = F::scales(panel, at);
    for (int h = 0; h < 1 + F::kHalfScales; ++h) {
        store(to.scale[b][g][h], scales.scale[h]);
        if (F::kHasMin) store(to.min[b][g][h], scales.min[h]);
    }
    if (kFloatBits<F, kMany>) store(to.min[b][g][0], scales.scale[0] * broadcast(-kMagic));
}

// Processes blocks that share an activation scale, from unpacked panels, for kTokens tokens.
template <typename F, int kTokens, int kGroup>
PUNA_INLINE void tile_blocks(const Unpacked<F, kGroup>& w, int64_t first, const ActivationBlock* a, int64_t stride,
                             f32x16 (&acc)[kTokens][kGroup]) {
    f32x16 partial[kTokens][kGroup];
    const auto block = [&](auto is_first, int64_t b) PUNA_INLINED {
        add_block<F, decltype(is_first)::kValue>(
            [&](int g) PUNA_INLINED {
                BlockScales out;
#pragma GCC unroll 2
                for (int h = 0; h < 1 + F::kHalfScales; ++h) {
                    out.scale[h] = load(w.scale[b][g][h]);
                    if (F::kHasMin) out.min[h] = load(w.min[b][g][h]);
                }
                if (kFloatBits<F, kTokens>) out.offset = load(w.min[b][g][0]);
                return out;
            },
            [&](int g, int s, int d) PUNA_INLINED { return load_u32(w.quads[b][s][g][d]); }, a + b, stride, partial);
    };
    if constexpr (kUnrolled || F::kScaleBlocks == 1) {
        block(Constant<1>(), first);
        if constexpr (F::kScaleBlocks == 2) block(Constant<0>(), first + 1);
    } else {
        set_zero(partial);
        for (int64_t b = first; b < first + F::kScaleBlocks; ++b) block(Constant<0>(), b);
    }
    accumulate(partial, a + first, stride, acc);
}

// Adds `blocks` unpacked blocks for kTokens tokens to sums[kTokens][kGroup][16], or to 0 if `begins`. `ahead`, `lines`:
// see register_matmul. Calls before(b) before it reads block b.
template <typename F, int kTokens, int kGroup, typename Before>
PUNA_INLINE void tile(const Unpacked<F, kGroup>& w, int64_t blocks, const ActivationBlock* a, int64_t stride,
                      float* sums, bool begins, const uint8_t* ahead, int lines, const Before& before) {
    f32x16 acc[kTokens][kGroup];
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroup; ++g) acc[t][g] = begins ? broadcast(0.0f) : load(sums + (t * kGroup + g) * kLanes);
    for (int64_t b = 0; b < blocks; b += F::kScaleBlocks) {
        if (kTilesPrefetch)
            for (int i = 0; i < lines * F::kScaleBlocks; ++i, ahead += kLine) __builtin_prefetch(ahead, 0, kL2);
        before(b);
        tile_blocks<F>(w, b, a, stride, acc);
    }
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroup; ++g) store(sums + (t * kGroup + g) * kLanes, acc[t][g]);
}

// Multiplies kGroup panels by the tokens [begin, end): each chunk of the panels is unpacked once for all these tokens.
// `sums` holds the tokens' sums between chunks.
template <typename F, int kGroup>
static void unpacked_matmul(const MatmulJob& job, int64_t panel, int64_t begin, int64_t end) {
    const Panels& w = job.w;
    constexpr int kTile = kTileTokens / kDigits<F>;
    Unpacked<F, kGroup> unpacked;
    alignas(64) float sums[kTokenBlock * kGroup * kLanes];
    const int64_t total = w.cols / kBlock, stride = block_stride(w.cols);
    const uint8_t* const from = w.data + panel * w.stride;
    const typename F::Table table = F::table(w);
    for (int64_t first = 0; first < total; first += kChunkBlocks) {
        const int64_t blocks = total - first < kChunkBlocks ? total - first : kChunkBlocks;
        const int64_t bytes = blocks * (w.stride / total), turns = (end - begin + kTile - 1) / kTile * blocks;
        const int lines = static_cast<int>((bytes / kLine + turns - 1) / turns);  // that a tile prefetches per block
        const uint8_t* ahead = from + F::offsets(first).planes + bytes;
        int64_t t = begin;
        const auto run = [&](auto tokens, const auto& before) PUNA_INLINED {
            constexpr int kTokens = decltype(tokens)::kValue;
            float* const to = sums + (t - begin) * kGroup * kLanes;
            tile<F, kTokens, kGroup>(unpacked, blocks, job.x.blocks + t * stride + first, stride, to, first == 0, ahead,
                                     lines, before);
            if (first + blocks == total)
                for (int i = 0; i < kTokens * kGroup; ++i)
                    store_rows(load(to + i * kLanes), job, panel + i % kGroup, t + i / kGroup);
            t += kTokens;
            ahead += lines * blocks * kLine;
        };
        const auto unpack = [&](int g, int64_t b)
                                PUNA_INLINED { unpack_block(from + g * w.stride, table, first + b, b, g, unpacked); };
        const auto unpack_first = [&](int64_t b) PUNA_INLINED {
            for (int i = 0; i < F::kScaleBlocks; ++i) unpack(0, b + i);
        };
        const auto none = [](int64_t) PUNA_INLINED {};
        if constexpr (kTilesUnpack)
            if (end - begin >= kTile) run(Constant<kTile>(), unpack_first);
        if (t == begin)  // panel by panel
            for (int g = 0; g < kGroup; ++g)
                for (int64_t b = 0; b < blocks; ++b) unpack(g, b);
        while (t + kTile <= end) run(Constant<kTile>(), none);
        if (kTileTokens > 2)
            while (t + 2 <= end) run(Constant<2>(), none);
        while (t < end) run(Constant<1>(), none);
    }
}

// Multiplies kGroup neighbouring panels by the tokens [begin, end), in tiles of kRegisterTile or fewer. Every tile
// prefetches its share of the panels that follow, so that memory is read evenly.
template <typename F, int kGroup>
static void register_tiles(const MatmulJob& job, int64_t panel, int64_t begin, int64_t end) {
    constexpr int kTile = kRegisterTile<F>;
    const int64_t tiles = (end - begin + kTile - 1) / kTile;
    const int64_t blocks = job.w.cols / kBlock, bytes = kGroup * job.w.stride;
    const int lines = static_cast<int>((bytes / kLine + tiles * blocks - 1) / (tiles * blocks));
    const uint8_t* ahead = job.w.data + panel * job.w.stride + bytes;
    int64_t t = begin;
    const auto pass = [&](auto count) {
        constexpr int kTokens = decltype(count)::kValue;
        for (; t + kTokens <= end; t += kTokens, ahead += lines * blocks * kLine)
            register_matmul<F, kTokens, kGroup>(job, panel, t, ahead, lines);
    };
    if constexpr (kTile >= 4) pass(Constant<4>());
    if constexpr (kTile >= 2) pass(Constant<2>());
    pass(Constant<1>());
}

// Multiplies with weights that are unpacked in registers.
template <typename F>
static void in_registers(const MatmulJob& job) {
    for (int64_t begin = 0; begin < job.tokens; begin += kRegisterBlock) {
        const int64_t end = job.tokens - begin < kRegisterBlock ? job.tokens : begin + kRegisterBlock;
        int64_t panel = job.first;
        const auto pass = [&](auto panels, int64_t keep) {
            constexpr int kGroup = decltype(panels)::kValue;
            for (; panel + kGroup + keep <= job.last; panel += kGroup)
                register_tiles<F, kGroup>(job, panel, begin, end);
        };
        // The sums of three panels fit into the registers unless blocks share a scale.
        if constexpr (kRegisterGroup >= 3 && F::kScaleBlocks == 1)
            pass(Constant<3>(), (job.last - job.first) % 3 == 1 ? 1 : 0);  // the last four panels are two pairs
        if constexpr (kRegisterGroup >= 2) pass(Constant<2>(), 0);
        pass(Constant<1>(), 0);
    }
}

// See Kernels::matmul. One token: panels are read in strips, because memory bandwidth is the limit. A few tokens, or
// any number with kInRegisters: weights are unpacked in registers. Otherwise, and always with kOnlyUnpacked, weights
// are unpacked to memory.
template <typename F>
static void integer_matmul(const MatmulJob& job) {
    if (job.tokens == 1) {
        for_each_strip(job, [&](auto panels, int64_t panel, int64_t panel_stride) {
            constexpr int kPanels = decltype(panels)::kValue;
            if constexpr (kOnlyUnpacked)
                for (int p = 0; p < kPanels; ++p) unpacked_matmul<F, 1>(job, panel + p * panel_stride, 0, 1);
            else
                strip_matmul<F, kPanels>(job, panel, panel_stride);
        });
        return;
    }
    if constexpr (!kOnlyUnpacked)
        if (F::kInRegisters || job.tokens <= kMaxRegisterTokens<F>) {
            in_registers<F>(job);
            return;
        }
    for (int64_t begin = 0; begin < job.tokens; begin += kTokenBlock) {
        const int64_t end = job.tokens - begin < kTokenBlock ? job.tokens : begin + kTokenBlock;
        int64_t panel = job.first;
        for (; panel + kTileGroup <= job.last; panel += kTileGroup)
            unpacked_matmul<F, kTileGroup>(job, panel, begin, end);
        if (kTileGroup > 1)
            for (; panel < job.last; ++panel) unpacked_matmul<F, 1>(job, panel, begin, end);
    }
}

// Returns the kernel of the first of the `Formats` that reads the panels of a format.
template <typename... Formats>
static auto integer_kernel(const FormatTraits& traits) {
    void (*chosen)(const MatmulJob&) = nullptr;
    static_cast<void>(((Formats::reads(traits) && (chosen = integer_matmul<Formats>, true)) || ...));
    return chosen;
}

static auto integer_matmul_of(const FormatTraits& traits) {
    return integer_kernel<IntegerFormat<Planes::kEight, Scales::kHalf, 128>,             // Q8_0
                          IntegerFormat<Planes::kFour, Scales::kHalf, 8>,                // Q4_0, TQ1_0, TQ2_0
                          IntegerFormat<Planes::kFour, Scales::kHalfAndMin, 0>,          // Q4_1
                          IntegerFormat<Planes::kFive, Scales::kHalf, 16>,               // Q5_0
                          IntegerFormat<Planes::kFive, Scales::kHalfAndMin, 0>,          // Q5_1
                          IntegerFormat<Planes::kFour, Scales::kNibbles, 0>,             // Q2_K
                          IntegerFormat<Planes::kFour, Scales::kSignedHalves, 4>,        // Q3_K
                          IntegerFormat<Planes::kFour, Scales::kSixBit, 0>,              // Q4_K
                          IntegerFormat<Planes::kFive, Scales::kSixBit, 0>,              // Q5_K
                          IntegerFormat<Planes::kSix, Scales::kSignedHalves, 32>,        // Q6_K
                          IntegerFormat<Planes::kFour, Scales::kHalf, 0, true>,          // IQ4_NL
                          IntegerFormat<Planes::kFour, Scales::kSigned, 0, true>,        // IQ4_XS, IQ3_*, IQ2_XXS,
                                                                                         // IQ1_S
                          IntegerFormat<Planes::kFour, Scales::kSignedHalves, 0, true>,  // IQ2_S, IQ2_XS, IQ1_M
                          IntegerFormat<Planes::kFour, Scales::kExponent, 0, true>       // MXFP4
                          >(traits);
}
