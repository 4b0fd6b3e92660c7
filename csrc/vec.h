// Vectors of sixteen numbers on every instruction set, held in one, two or four registers. Included by each
// kernels_*.cpp inside its own namespace, so that the linker cannot replace code for one instruction set with code for
// another.

constexpr int kLanes = 16;

// Locality hint for __builtin_prefetch of streams from memory: 3 = L1, 2 = L2. More cache lines can be in flight to L2
// than to L1. Zen 4 with AVX-512: distant streams are read at 26 GB/s into L1 and at 46 GB/s into L2. AVX2 uses L1; L2
// was not measured there.
constexpr int kL1 = 3, kL2 = 2;
#if defined(__AVX512F__)
constexpr int kStreamLevel = kL2;
#else
constexpr int kStreamLevel = kL1;
#endif

// Lanes of one register; the vector types below consist of kRegs registers.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kRegs = kLanes / kWidth;

typedef float f32_mem __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef float f32_reg __attribute__((vector_size(kWidth * 4)));
typedef int32_t i32_mem __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef int32_t i32_reg __attribute__((vector_size(kWidth * 4)));
typedef uint32_t u32_mem __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint32_t u32_reg __attribute__((vector_size(kWidth * 4)));
typedef uint8_t u8_mem __attribute__((vector_size(kWidth), aligned(1), may_alias));
typedef int8_t i8_mem __attribute__((vector_size(kWidth), aligned(1), may_alias));
typedef uint16_t u16_mem __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

// An integer as a type, to pass a template argument to a generic lambda.
template <int kInt>
struct Constant {
    static constexpr int kValue = kInt;
};

struct f32x16 {  // sixteen floats
    f32_reg reg[kRegs];
};
struct i32x16 {  // sixteen int32
    i32_reg reg[kRegs];
};
struct u32x16 {  // sixteen uint32, or sixteen words of four bytes
    u32_reg reg[kRegs];
};

// Kernels are fast only if all their parts are inlined. Without optimisation (sanitizers, emulated instructions)
// inlining would only multiply the work of the compiler.
#if defined(__OPTIMIZE__)
#define PUNA_INLINED __attribute__((always_inline))
#else
#define PUNA_INLINED
#endif
#define PUNA_INLINE static inline PUNA_INLINED
// Runs the following statement for each register i_ of a vector.
#define PUNA_EACH_REG _Pragma("GCC unroll 4") for (int i_ = 0; i_ < kRegs; ++i_)

PUNA_INLINE f32x16 load(const float* from) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = *reinterpret_cast<const f32_mem*>(from + i_ * kWidth);
    return out;
}

PUNA_INLINE void store(float* to, const f32x16& value) {
    PUNA_EACH_REG* reinterpret_cast<f32_mem*>(to + i_ * kWidth) = value.reg[i_];
}

// The compiler drops value - 0, which equals value even for -0. It could not drop f32_reg{} + value, because 0 + -0 is
// 0.
PUNA_INLINE f32x16 broadcast(float value) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = value - f32_reg{};
    return out;
}

// a * b + c, rounded once on AVX2, AVX-512 and Arm; every other build rounds twice.
PUNA_INLINE f32_reg fma(f32_reg a, f32_reg b, f32_reg c) {
#if defined(__AVX512F__)
    return (f32_reg)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (f32_reg)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (f32_reg)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

PUNA_INLINE f32x16 fma(const f32x16& a, const f32x16& b, const f32x16& c) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = fma(a.reg[i_], b.reg[i_], c.reg[i_]);
    return out;
}

PUNA_INLINE f32x16 operator+(const f32x16& a, const f32x16& b) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] + b.reg[i_];
    return out;
}

PUNA_INLINE f32x16 operator-(const f32x16& a, const f32x16& b) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] - b.reg[i_];
    return out;
}

PUNA_INLINE f32x16 operator*(const f32x16& a, const f32x16& b) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] * b.reg[i_];
    return out;
}

PUNA_INLINE f32x16 max(const f32x16& a, const f32x16& b) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] > b.reg[i_] ? a.reg[i_] : b.reg[i_];
    return out;
}

// Lane-wise minimum.
PUNA_INLINE f32x16 min(const f32x16& a, const f32x16& b) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] < b.reg[i_] ? a.reg[i_] : b.reg[i_];
    return out;
}

// Lane-wise a > b ? yes : no.
PUNA_INLINE f32x16 select_gt(const f32x16& a, const f32x16& b, const f32x16& yes, const f32x16& no) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] > b.reg[i_] ? yes.reg[i_] : no.reg[i_];
    return out;
}

// Lane-wise a / b.
PUNA_INLINE f32x16 div(const f32x16& a, const f32x16& b) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] / b.reg[i_];
    return out;
}

// Lane-wise |a|.
PUNA_INLINE f32x16 abs(const f32x16& a) { return max(a, broadcast(0.0f) - a); }

// Lane-wise clamp.
PUNA_INLINE f32x16 clamp(const f32x16& x, const f32x16& low, const f32x16& high) { return min(max(x, low), high); }

// The next functions reduce a vector to one number. Every build combines lane i first with lane i + 8, then with i + 4,
// i + 2 and i + 1.
#if defined(__AVX2__) && !defined(PUNA_EMULATE)
template <typename Fold>
PUNA_INLINE float reduce(const f32x16& value, const Fold& fold) {
#if defined(__AVX512F__)
    const __m512 all = (__m512)value.reg[0];
    const __m256 eight = fold(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
    const __m256 eight = fold((__m256)value.reg[0], (__m256)value.reg[1]);
#endif
    const __m256 four = fold(eight, _mm256_permute2f128_ps(eight, eight, 1));
    const __m256 two = fold(four, _mm256_permute_ps(four, 0x4e));
    return _mm256_cvtss_f32(fold(two, _mm256_permute_ps(two, 0xb1)));
}
PUNA_INLINE float reduce_add(const f32x16& value) {
    return reduce(value, [](__m256 a, __m256 b) PUNA_INLINED { return _mm256_add_ps(a, b); });
}
PUNA_INLINE float reduce_max(const f32x16& value) {
    return reduce(value, [](__m256 a, __m256 b) PUNA_INLINED { return _mm256_max_ps(a, b); });
}
#else
PUNA_INLINE float reduce_add(const f32x16& value) {
    float lane[kLanes];
    store(lane, value);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}
PUNA_INLINE float reduce_max(const f32x16& value) {
    float lane[kLanes];
    store(lane, value);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}
#endif

// Loads `count` floats, at most 16; the remaining lanes are 0.
PUNA_INLINE f32x16 load_partial(const float* from, int64_t count) {
    if (count >= kLanes) return load(from);
    float values[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = from[i];
    return load(values);
}

// Stores the first `count` lanes, at most 16.
PUNA_INLINE void store_partial(float* to, const f32x16& value, int64_t count) {
    if (count >= kLanes) return store(to, value);
    float values[kLanes];
    store(values, value);
    for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

PUNA_INLINE u32x16 load_u32(const void* from) {
    u32x16 out;
    PUNA_EACH_REG out.reg[i_] = *reinterpret_cast<const u32_mem*>(static_cast<const uint8_t*>(from) + i_ * kWidth * 4);
    return out;
}

PUNA_INLINE void store_u32(void* to, const u32x16& value) {
    PUNA_EACH_REG* reinterpret_cast<u32_mem*>(static_cast<uint8_t*>(to) + i_ * kWidth * 4) = value.reg[i_];
}

PUNA_INLINE u32x16 operator&(const u32x16& a, uint32_t mask) {
    u32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] & (u32_reg{} + mask);
    return out;
}

PUNA_INLINE u32x16 operator|(const u32x16& a, const u32x16& b) {
    u32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] | b.reg[i_];
    return out;
}

// Shifts each lane right by `count` bits, or left by -count.
PUNA_INLINE u32x16 shift_right(const u32x16& a, int count) {
    u32x16 out;
    PUNA_EACH_REG out.reg[i_] = count >= 0 ? a.reg[i_] >> count : a.reg[i_] << -count;
    return out;
}

PUNA_INLINE f32x16 as_f32(const u32x16& bits) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = (f32_reg)bits.reg[i_];
    return out;
}

PUNA_INLINE f32x16 as_f32(const i32x16& bits) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = (f32_reg)bits.reg[i_];
    return out;
}

PUNA_INLINE f32x16 to_f32(const i32x16& value) {
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] = __builtin_convertvector(value.reg[i_], f32_reg);
    return out;
}

PUNA_INLINE i32x16 operator+(const i32x16& a, const i32x16& b) {
    i32x16 out;
    PUNA_EACH_REG out.reg[i_] = a.reg[i_] + b.reg[i_];
    return out;
}

PUNA_INLINE i32x16 broadcast_i32(int32_t value) {
    i32x16 out;
    PUNA_EACH_REG out.reg[i_] = i32_reg{} + value;
    return out;
}

// Widen sixteen bytes, signed bytes, or 16-bit numbers to 32 bits. Written with intrinsics where they exist, because
// GCC 12 converts a vector of narrow integers element by element.
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
PUNA_INLINE i32x16 widen_u8(const uint8_t* from) {
    return i32x16{{(i32_reg)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))}};
}
PUNA_INLINE i32x16 widen_i8(const uint8_t* from) {
    return i32x16{{(i32_reg)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))}};
}
PUNA_INLINE u32x16 widen_u16(const uint16_t* from) {
    return u32x16{{(u32_reg)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}};
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
PUNA_INLINE i32x16 widen_u8(const uint8_t* from) {
    i32x16 out;
    PUNA_EACH_REG out.reg[i_] = (i32_reg)_mm256_cvtepu8_epi32(_mm_loadu_si64(from + i_ * kWidth));
    return out;
}
PUNA_INLINE i32x16 widen_i8(const uint8_t* from) {
    i32x16 out;
    PUNA_EACH_REG out.reg[i_] = (i32_reg)_mm256_cvtepi8_epi32(_mm_loadu_si64(from + i_ * kWidth));
    return out;
}
PUNA_INLINE u32x16 widen_u16(const uint16_t* from) {
    u32x16 out;
    PUNA_EACH_REG out.reg[i_] =
        (u32_reg)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i_ * kWidth)));
    return out;
}
#else
PUNA_INLINE i32x16 widen_u8(const uint8_t* from) {
    i32x16 out;
    PUNA_EACH_REG out.reg[i_] = __builtin_convertvector(*reinterpret_cast<const u8_mem*>(from + i_ * kWidth), i32_reg);
    return out;
}
PUNA_INLINE i32x16 widen_i8(const uint8_t* from) {
    i32x16 out;
    PUNA_EACH_REG out.reg[i_] = __builtin_convertvector(*reinterpret_cast<const i8_mem*>(from + i_ * kWidth), i32_reg);
    return out;
}
PUNA_INLINE u32x16 widen_u16(const uint16_t* from) {
    u32x16 out;
    PUNA_EACH_REG out.reg[i_] = __builtin_convertvector(*reinterpret_cast<const u16_mem*>(from + i_ * kWidth), u32_reg);
    return out;
}
#endif

// Widens sixteen IEEE half-precision numbers; exact, including subnormals, infinities and NaN.
PUNA_INLINE f32x16 f16_to_f32(const uint16_t* from) {
#if defined(__AVX512F__)
    return f32x16{{(f32_reg)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}};
#elif defined(__AVX2__)
    f32x16 out;
    PUNA_EACH_REG out.reg[i_] =
        (f32_reg)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i_ * kWidth)));
    return out;
#else
    const u32x16 half = widen_u16(from);
    f32x16 out;
    PUNA_EACH_REG {
        const u32_reg bits = half.reg[i_];
        const u32_reg magnitude = (bits & 0x7fffu) << 13, special = (bits & 0x7c00u) == 0x7c00u;
        const f32_reg value = (f32_reg)magnitude * 0x1p112f;  // changes the exponent bias from half's to float's
        const u32_reg number = (special & (magnitude | 0x7f800000u)) | (~special & (u32_reg)value);
        out.reg[i_] = (f32_reg)(number | (bits & 0x8000u) << 16);
    }
    return out;
#endif
}

// Rounds to the nearest bf16, ties to even; NaN stays NaN. Subnormal floats become a zero of the same sign, as in
// vcvtneps2bf16 (Intel SDM, volume 2: denormal inputs are treated as zeros), so that every build rounds identically.
PUNA_INLINE void store_bf16(uint16_t* to, const f32x16& value) {
#if defined(__AVX512BF16__) && !defined(PUNA_EMULATE)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value.reg[0]));
#else
    PUNA_EACH_REG {
        const u32_reg bits = (u32_reg)value.reg[i_];
        const u32_reg rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        const u32_reg nan = (bits & 0x7fffffffu) > 0x7f800000u;
        const u32_reg subnormal = (bits & 0x7f800000u) == 0u;
        const u32_reg number = (subnormal & (bits >> 16 & 0x8000u)) | (~subnormal & rounded);
        const u32_reg out = (nan & (bits >> 16 | 0x40u)) | (~nan & number);
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)out));
#else
        *reinterpret_cast<u16_mem*>(to + i_ * kWidth) = __builtin_convertvector(out, u16_mem);
#endif
    }
#endif
}

// Rounds to the nearest half-precision number, ties to even; magnitudes that round above 65504 become infinity.
PUNA_INLINE void store_f16(uint16_t* to, const f32x16& value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value.reg[0], 0));
#elif defined(__AVX2__)
    PUNA_EACH_REG _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i_ * kWidth),
                                   _mm256_cvtps_ph((__m256)value.reg[i_], 0));
#else
    PUNA_EACH_REG {
        const u32_reg bits = (u32_reg)value.reg[i_], sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
        // Normal halves: add half a unit in the last place (and the parity bit, for ties) before dropping 13 bits.
        // Subnormal halves: adding 0.5 moves the value into place and rounds it. Too large: infinity. NaN stays NaN.
        const u32_reg normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
        const u32_reg small = (u32_reg)((f32_reg)magnitude + 0.5f) - 0x3f000000u;
        const u32_reg is_small = magnitude < 0x38800000u, is_large = magnitude >= 0x477ff000u;
        const u32_reg is_nan = magnitude > 0x7f800000u;
        u32_reg out = (is_small & small) | (~is_small & normal);
        out = (is_large & 0x7c00u) | (~is_large & out);
        out = (is_nan & 0x7e00u) | (~is_nan & out);
        *reinterpret_cast<u16_mem*>(to + i_ * kWidth) = __builtin_convertvector(out | sign, u16_mem);
    }
#endif
}

// e^x for x in [-87, 88], within 2 units in the last place; exactly 0 below -87; e^88 above 88; NaN stays NaN. With
// n = round(x / ln 2) and r = x - n ln 2, |r| <= ln 2 / 2: a polynomial in r (Cephes' expf coefficients) times 2^n,
// which is applied by adding n to the exponent bits. n ln 2 is subtracted in two parts: `high` has few significant
// bits, so that n * high is exact; `low` is the rest.
PUNA_INLINE f32x16 exp(const f32x16& x) {
    const f32_reg zero = f32_reg{}, lowest = zero - 87.0f, highest = zero + 88.0f, log2e = zero + 1.44269504f;
    const f32_reg high = zero - 0.693359375f, low = zero + 2.12194440e-4f, magic = zero + 12582912.0f;  // 1.5 * 2^23
    f32x16 out;
    PUNA_EACH_REG {
        const i32_reg under = x.reg[i_] < lowest;
        f32_reg v = under ? lowest : x.reg[i_];
        v = v > highest ? highest : v;
        const f32_reg shift = fma(v, log2e, magic);
        const f32_reg n = shift - magic;
        const f32_reg r = fma(n, low, fma(n, high, v));
        f32_reg p = fma(zero + 1.9875691500e-4f, r, zero + 1.3981999507e-3f);
        p = fma(p, r, zero + 8.3334519073e-3f);
        p = fma(p, r, zero + 4.1665795894e-2f);
        p = fma(p, r, zero + 1.6666665459e-1f);
        p = fma(p, r, zero + 5.0000001201e-1f);
        p = fma(p, r * r, r) + 1.0f;
        const i32_reg exponent = ((i32_reg)shift - (i32_reg)magic) << 23;
        const i32_reg nan = x.reg[i_] != x.reg[i_];  // return a NaN unchanged
        out.reg[i_] = nan ? x.reg[i_] : under ? zero : (f32_reg)((i32_reg)p + exponent);
    }
    return out;
}
