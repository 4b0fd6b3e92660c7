// Workloads that run at the processor's arithmetic peak. They execute the kernels' multiply-accumulate instructions on
// registers, with enough independent sums to hide the latency. The sums are separate variables, not an array, because
// the compiler keeps arrays in memory here, which lowers the peak.

#define PUNA_SUMS(each) \
    each(0) each(1) each(2) each(3) each(4) each(5) each(6) each(7) each(8) each(9) each(10) each(11)
constexpr int kSums = 12;

// An empty statement that the compiler must assume changes `value`. Without it the compiler could drop work, or compute
// a product once for several sums.
#if defined(PUNA_EMULATE)
#define PUNA_OPAQUE(value) asm volatile("" : "+m"(value))
#elif defined(__x86_64__)
#define PUNA_OPAQUE(value) asm volatile("" : "+x"(value))
#else
#define PUNA_OPAQUE(value) asm volatile("" : "+w"(value))
#endif

// Multiply-accumulates of bytes per register in one step of integer_work.
#if defined(__AVX2__) || defined(PUNA_DOT_BYTES)
constexpr int kProducts = kWidth * 4;
#elif defined(__SSE2__)
constexpr int kProducts = kWidth * 2;
#else
constexpr int kProducts = kWidth;
#endif

// On AVX2 these are the instructions of the kernels for 4-bit weights, without the widening of 16-bit sums (the kernels
// widen once per eight steps, which costs little).
PUNA_INLINE i32_reg multiply_bytes(i32_reg sum, u32_reg w, i32_reg x) {
#if defined(PUNA_DOT_BYTES)
    return dot_bytes(sum, w, x);
#elif defined(__AVX2__)
    return add_i16(sum, maddubs_i16(w, x));
#elif defined(__SSE2__)
    return sum + (i32_reg)_mm_madd_epi16((__m128i)w, (__m128i)x);
#else
    return sum + (i32_reg)w * x;
#endif
}

PUNA_INLINE f32_reg multiply_floats(f32_reg sum, f32_reg w, f32_reg x) {
#if defined(__AVX512BF16__)
    return (f32_reg)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
    return fma(w, x, sum);
#endif
}

// Multiplies bytes; returns the number of products.
static int64_t integer_work(int64_t rounds, float* sink) {
    const u32_reg w = u32_reg{} + 0x03030303u;
    i32_reg x = i32_reg{} + 0x01010101;
#define PUNA_BEGIN(i) i32_reg sum##i = i32_reg{} + i;
#define PUNA_STEP(i)                       \
    PUNA_OPAQUE(x);                        \
    sum##i = multiply_bytes(sum##i, w, x); \
    PUNA_OPAQUE(sum##i);
#define PUNA_ADD(i) total = total + sum##i;
    PUNA_SUMS(PUNA_BEGIN)
    for (int64_t r = 0; r < rounds; ++r) {
        PUNA_SUMS(PUNA_STEP)
    }
    i32_reg total = i32_reg{};
    PUNA_SUMS(PUNA_ADD)
    *sink = static_cast<float>(total[0]);
#undef PUNA_BEGIN
#undef PUNA_STEP
    return rounds * kSums * kProducts;
}

// Multiplies floats, or bf16 values if the processor supports them; returns the number of products.
static int64_t float_work(int64_t rounds, float* sink) {
    f32_reg w = f32_reg{} + 0.5f, x = f32_reg{} + 0.25f;
#define PUNA_BEGIN(i) f32_reg sum##i = f32_reg{} + static_cast<float>(i);
#define PUNA_STEP(i)                        \
    PUNA_OPAQUE(x);                         \
    sum##i = multiply_floats(sum##i, w, x); \
    PUNA_OPAQUE(sum##i);
    PUNA_SUMS(PUNA_BEGIN)
    for (int64_t r = 0; r < rounds; ++r) {
        PUNA_SUMS(PUNA_STEP)
    }
    f32_reg total = f32_reg{};
    PUNA_SUMS(PUNA_ADD)
    *sink = total[0];
#undef PUNA_BEGIN
#undef PUNA_STEP
#undef PUNA_ADD
    return rounds * kSums * kWidth * (kUsesBf16 ? 2 : 1);
}

// Reads `bytes` bytes (a multiple of 256) once, in four parallel streams, which reach a higher bandwidth than one
// stream.
static void read_work(const uint8_t* from, int64_t bytes, float* sink) {
    u32x16 sum[4] = {};
    const int64_t share = bytes / 4;
    for (int64_t at = 0; at < share; at += 64) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const uint8_t* const here = from + i * share + at;
            __builtin_prefetch(here + 1024);
            const u32x16 word = load_u32(here);
            PUNA_EACH_REG sum[i].reg[i_] = sum[i].reg[i_] + word.reg[i_];
        }
    }
    *sink = reduce_add(as_f32((sum[0] | sum[1]) | (sum[2] | sum[3])));
}
