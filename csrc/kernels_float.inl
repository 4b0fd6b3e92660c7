// Multiplies float weights by activations. Each output is one sum, with one multiply-add per column in ascending order.
// On processors with bf16 instructions, bf16 weights use one dot product per pair of columns instead.

// c[t][g] += sum over k, ascending, of a[t][k] * b[k][g], for kTokens rows of a and kGroup vectors of b. Vector g of
// row k of b starts at b + k * b_line + g * b_group.
template <int kTokens, int kGroup>
PUNA_INLINE void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_line, int64_t b_group,
                          int64_t count, f32x16 (&c)[kTokens][kGroup]) {
    for (int64_t k = 0; k < count; ++k) {
        f32x16 line[kGroup];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) line[g] = load(b + k * b_line + g * b_group);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
            const f32x16 value = broadcast(a[t * a_stride + k]);
#pragma GCC unroll 8
            for (int g = 0; g < kGroup; ++g) c[t][g] = fma(line[g], value, c[t][g]);
        }
    }
}

// Tokens and panels of a tile: the largest whose sums and weights fit into the registers. Smaller tiles were not
// measured.
#if defined(__AVX512F__)
constexpr int kFloatTokens = 12, kFloatGroup = 2;
#elif defined(__AVX2__)
constexpr int kFloatTokens = 6, kFloatGroup = 1;
#else
constexpr int kFloatTokens = 3, kFloatGroup = 1;
#endif
// Columns of a panel that are widened at once: 8 KB of floats per panel, which stay in L1. Zen 4: other sizes are
// within the noise.
constexpr int kChunkColumns = 128;
// Prefetch distances in bytes. Zen 4: without the prefetch of bf16, 512 tokens reach 192 instead of 216 Gflop/s per
// thread. Zen 5, bf16, two threads: one token reads 70 GB/s with 1024, 60 to 70 with 512, 46 to 66 with 4096; eight
// tokens read 73 GB/s with 4096, 62 to 67 with 1024 and 2048. Those of f16 and f32 were not measured.
constexpr int kPrefetchFloats = 1024, kPrefetchBf16 = 1024, kPrefetchBf16Tokens = 4096;

// The following types read a float format: read() converts kColumns columns of a panel's 16 rows, stored in kBytes
// bytes.
struct F32Format {
    static constexpr int kColumns = 1, kBytes = 64;
    static inline PUNA_INLINED void read(const uint8_t* from, f32x16* out) {
        out[0] = load(reinterpret_cast<const float*>(from));
    }
};
struct F16Format {
    static constexpr int kColumns = 1, kBytes = 32;
    static inline PUNA_INLINED void read(const uint8_t* from, f32x16* out) {
        out[0] = f16_to_f32(reinterpret_cast<const uint16_t*>(from));
    }
};
struct Bf16Format {
    static constexpr int kColumns = 2, kBytes = 64;
    static inline PUNA_INLINED void read(const uint8_t* from, f32x16* out) {
        const u32x16 both = load_u32(from);
        out[0] = as_f32(shift_right(both, -16));
        out[1] = as_f32(both & 0xffff0000u);
    }
};

// Multiplies token `token` by kGroup panels that are `panel_stride` panels from each other. With several panels,
// independent sums hide the latency of fused multiply-adds.
template <typename F, int kGroup>
static void float_token(const MatmulJob& job, int64_t panel, int64_t panel_stride, int64_t token) {
    const Panels& w = job.w;
    const float* const x = job.x.values + token * w.cols;
    const int64_t step = panel_stride * w.stride;
    f32x16 sum[kGroup];
    for (int g = 0; g < kGroup; ++g) sum[g] = broadcast(0.0f);
    const uint8_t* const from = w.data + panel * w.stride;
    int64_t k = 0;
    for (; k + F::kColumns <= w.cols; k += F::kColumns) {
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
            f32x16 weight[2];
            const uint8_t* at = from + g * step + k / F::kColumns * F::kBytes;
            __builtin_prefetch(at + kPrefetchFloats, 0, kStreamLevel);
            F::read(at, weight);
#pragma GCC unroll 2
            for (int c = 0; c < F::kColumns; ++c) sum[g] = fma(weight[c], broadcast(x[k + c]), sum[g]);
        }
    }
    if (k < w.cols)  // columns are stored in pairs, and the last one has no partner
        for (int g = 0; g < kGroup; ++g) {
            f32x16 weight[2];
            F::read(from + g * step + k / F::kColumns * F::kBytes, weight);
            sum[g] = fma(weight[0], broadcast(x[k]), sum[g]);
        }
    for (int g = 0; g < kGroup; ++g) store_rows(sum[g], job, panel + g * panel_stride, token);
}

// Multiplies kGroup panels by the tokens [begin, end). Each chunk of the panels is widened to float once for all these
// tokens; `sums` holds the tokens' sums between chunks.
template <typename F, int kGroup>
static void float_tokens(const MatmulJob& job, int64_t panel, int64_t begin, int64_t end) {
    const Panels& w = job.w;
    alignas(64) float chunk[kGroup][kChunkColumns * kLanes];
    alignas(64) float sums[kTokenBlock * kGroup * kLanes];
    for (int64_t i = 0; i < (end - begin) * kGroup; ++i) store(sums + i * kLanes, broadcast(0.0f));
    for (int64_t first = 0; first < w.cols; first += kChunkColumns) {
        const int64_t count = w.cols - first < kChunkColumns ? w.cols - first : kChunkColumns;
        for (int g = 0; g < kGroup; ++g) {
            const uint8_t* from = w.data + (panel + g) * w.stride + first / F::kColumns * F::kBytes;
            for (int64_t k = 0; k < count; k += F::kColumns) {
                f32x16 weight[2];
                F::read(from + k / F::kColumns * F::kBytes, weight);
                for (int c = 0; c < F::kColumns; ++c) store(chunk[g] + (k + c) * kLanes, weight[c]);
            }
        }
        int64_t t = begin;
        const auto pass = [&](auto tokens) {
            constexpr int kTokens = decltype(tokens)::kValue;
            for (; t + kTokens <= end; t += kTokens) {
                f32x16 acc[kTokens][kGroup];
                float* at = sums + (t - begin) * kGroup * kLanes;
                for (int i = 0; i < kTokens; ++i)
                    for (int g = 0; g < kGroup; ++g) acc[i][g] = load(at + (i * kGroup + g) * kLanes);
                multiply<kTokens, kGroup>(job.x.values + t * w.cols + first, w.cols, chunk[0], kLanes,
                                          kChunkColumns * kLanes, count, acc);
                for (int i = 0; i < kTokens; ++i)
                    for (int g = 0; g < kGroup; ++g) store(at + (i * kGroup + g) * kLanes, acc[i][g]);
            }
        };
        pass(Constant<kFloatTokens>());
        pass(Constant<kFloatTokens / 3>());
        pass(Constant<1>());
    }
    for (int64_t t = begin; t < end; ++t)
        for (int g = 0; g < kGroup; ++g)
            store_rows(load(sums + ((t - begin) * kGroup + g) * kLanes), job, panel + g, t);
}

// See Kernels::matmul.
template <typename F>
static void float_matmul(const MatmulJob& job) {
    if (job.tokens == 1) {
        for_each_strip(job, [&](auto panels, int64_t panel, int64_t panel_stride) {
            float_token<F, decltype(panels)::kValue>(job, panel, panel_stride, 0);
        });
        return;
    }
    if (job.tokens ==
        2) {  // reading each panel twice, the second time from cache, is faster than widening it to memory
        const auto both = [&](auto panels, int64_t panel) {
            for (int64_t t = 0; t < job.tokens; ++t) float_token<F, decltype(panels)::kValue>(job, panel, 1, t);
        };
        int64_t panel = job.first;
        for (; panel + kStrip <= job.last; panel += kStrip) both(Constant<kStrip>(), panel);
        for (; panel < job.last; ++panel) both(Constant<1>(), panel);
        return;
    }
    for (int64_t begin = 0; begin < job.tokens; begin += kTokenBlock) {
        const int64_t end = job.tokens - begin < kTokenBlock ? job.tokens : begin + kTokenBlock;
        int64_t panel = job.first;
        for (; panel + kFloatGroup <= job.last; panel += kFloatGroup)
            float_tokens<F, kFloatGroup>(job, panel, begin, end);
        if (kFloatGroup > 1)
            for (; panel < job.last; ++panel) float_tokens<F, 1>(job, panel, begin, end);
    }
}

#if defined(__AVX512BF16__)

// Multiplies kTokens tokens, starting with `token`, by kGroup panels that are `panel_stride` panels from each other,
// with one bf16 dot product per pair of columns.
template <int kTokens, int kGroup>
static void bf16_tile(const MatmulJob& job, int64_t panel, int64_t panel_stride, int64_t token) {
    const Panels& w = job.w;
    const int64_t step = panel_stride * w.stride, x_stride = bf16_stride(w.cols);
    const uint16_t* const x = job.x.bf16 + token * x_stride;
    __m512 acc[kTokens][kGroup];
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroup; ++g) acc[t][g] = _mm512_setzero_ps();
    const uint8_t* const from = w.data + panel * w.stride;
    for (int64_t pair = 0; pair < (w.cols + 1) / 2; ++pair) {
        __m512bh weight[kGroup];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
            constexpr int kDistance = kTokens > 4 ? kPrefetchBf16Tokens : kPrefetchBf16;
            __builtin_prefetch(from + g * step + pair * 64 + kDistance, 0, kStreamLevel);
            weight[g] = (__m512bh)_mm512_loadu_si512(from + g * step + pair * 64);
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
            const __m512bh value =
                (__m512bh)_mm512_set1_epi32(load_i32(reinterpret_cast<const int8_t*>(x + t * x_stride + 2 * pair)));
#pragma GCC unroll 8
            for (int g = 0; g < kGroup; ++g) acc[t][g] = _mm512_dpbf16_ps(acc[t][g], weight[g], value);
        }
    }
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroup; ++g)
            store_rows(f32x16{{(f32_reg)acc[t][g]}}, job, panel + g * panel_stride, token + t);
}

// Multiplies kGroup panels, `panel_stride` panels from each other, by the tokens [begin, end).
template <int kGroup>
static void bf16_panels(const MatmulJob& job, int64_t panel, int64_t panel_stride, int64_t begin, int64_t end) {
    int64_t t = begin;
    const auto pass = [&](auto tokens) {
        constexpr int kTokens = decltype(tokens)::kValue;
        for (; t + kTokens <= end; t += kTokens) bf16_tile<kTokens, kGroup>(job, panel, panel_stride, t);
    };
    if constexpr (kGroup <= 2) {
        pass(Constant<12>());
        pass(Constant<8>());
    }
    pass(Constant<4>());
    pass(Constant<2>());
    pass(Constant<1>());
}

// Multiplies the panels [panel, last) by the tokens [begin, end), kGroup panels at a time.
template <int kGroup>
static void bf16_streams(const MatmulJob& job, int64_t panel, int64_t last, int64_t begin, int64_t end) {
    const int64_t stride = (last - panel) / kGroup, next = panel + stride;
    for (; panel < next; ++panel) bf16_panels<kGroup>(job, panel, stride, begin, end);
    for (panel += (kGroup - 1) * stride; panel < last; ++panel) bf16_panels<1>(job, panel, 1, begin, end);
}

// See Kernels::matmul.
static void bf16_matmul(const MatmulJob& job) {
    if (job.tokens == 1) {
        for_each_strip(job, [&](auto panels, int64_t panel, int64_t panel_stride) {
            bf16_tile<1, decltype(panels)::kValue>(job, panel, panel_stride, 0);
        });
        return;
    }
    // With few tokens, memory bandwidth is the limit, and several streams use it better than one: four panels at a
    // time, or two if the sums of four do not fit into the registers. Zen 5: eight tokens read 73 instead of 65 GB/s.
    if (job.tokens <= 4) return bf16_streams<4>(job, job.first, job.last, 0, job.tokens);
    for (int64_t begin = 0; begin < job.tokens; begin += kTokenBlock) {
        const int64_t end = job.tokens - begin < kTokenBlock ? job.tokens : begin + kTokenBlock;
        bf16_streams<2>(job, job.first, job.last, begin, end);
    }
}

#endif

// See Kernels::to_bf16.
static void round_to_bf16(const float* x, int64_t cols, uint16_t* out) {
    int64_t k = 0;
    for (; k + kLanes <= cols; k += kLanes) store_bf16(out + k, load(x + k));
    if (k == cols) return;
    uint16_t rest[kLanes];
    store_bf16(rest, load_partial(x + k, cols - k));
    for (int i = 0; k < cols + cols % 2; ++k, ++i) out[k] = rest[i];
}
