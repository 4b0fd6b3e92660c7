// Work whose speed is the processor's own limit: the multiply-accumulates that the kernels are made of, from registers,
// in enough independent sums to hide their latency.

#if defined(__x86_64__)
#define PUNA_OPAQUE(value) asm volatile("" : "+x"(value))
#else
#define PUNA_OPAQUE(value) asm volatile("" : "+w"(value))
#endif

// Products of bytes; returns how many.
static int64_t integer_work(int64_t rounds, float* sink) {
    constexpr int kSums = 12;
    I16 sum[kSums];
    for (int i = 0; i < kSums; ++i) sum[i] = all_equal(i);
    U16 w{};
    I16 x = all_equal(0x01010101);
    PUNA_EACH w.part[i_] = WordReg{} + 0x03030303u;
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i) {
#if defined(__AVX512VNNI__)
            sum[i].part[0] =
                (IntReg)_mm512_dpbusd_epi32((__m512i)sum[i].part[0], (__m512i)w.part[0], (__m512i)x.part[0]);
#elif defined(__AVX2__)
            // As the kernels of 4-bit weights do: the widening of every eighth sum is left out, being small.
            PUNA_OPAQUE(x.part[0]);
            const IntReg product = pairs_8(w.part[0], x.part[0]);
            sum[i].part[0] = add_16(sum[i].part[0], product);
#elif defined(__SSE2__)
            PUNA_OPAQUE(x.part[0]);
            sum[i].part[0] = sum[i].part[0] + pairs_16((IntReg)w.part[0], x.part[0]);
#else
            PUNA_OPAQUE(x.part[0]);
            sum[i].part[0] = sum[i].part[0] + (IntReg)w.part[0] * x.part[0];
#endif
        }
    }
    I16 total = sum[0];
    for (int i = 1; i < kSums; ++i) total = total + sum[i];
    *sink = sum_of(to_floats(total));
#if defined(__AVX2__)
    constexpr int kEach = kWidth * 4;
#elif defined(__SSE2__)
    constexpr int kEach = kWidth * 2;
#else
    constexpr int kEach = kWidth;
#endif
    return rounds * kSums * kEach;
}

// Products of floats, or of bf16 where the processor has them; returns how many.
static int64_t float_work(int64_t rounds, float* sink) {
    constexpr int kSums = 12;
    Reg sum[kSums];
    for (int i = 0; i < kSums; ++i) sum[i] = Reg{} + static_cast<float>(i);
    Reg w = Reg{} + 0.5f, x = Reg{} + 0.25f;
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i) {
#if defined(__AVX512BF16__)
            sum[i] = (Reg)_mm512_dpbf16_ps((__m512)sum[i], (__m512bh)w, (__m512bh)x);
#else
            sum[i] = fused(w, x, sum[i]);
#endif
            PUNA_OPAQUE(sum[i]);
        }
    }
    Reg total = sum[0];
    for (int i = 1; i < kSums; ++i) total = total + sum[i];
    *sink = total[0];
    return rounds * kSums * kWidth * (kWantsBf16 ? 2 : 1);
}

// Reads `bytes`, a multiple of 256, once.
static void read_work(const uint8_t* from, int64_t bytes, float* sink) {
    U16 sum[4] = {};
    for (int64_t at = 0; at < bytes; at += 256) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            __builtin_prefetch(from + at + i * 64 + 2048);
            const U16 word = load_words(from + at + i * 64);
            PUNA_EACH sum[i].part[i_] = sum[i].part[i_] + word.part[i_];
        }
    }
    *sink = sum_of(as_floats((sum[0] | sum[1]) | (sum[2] | sum[3])));
}
