// Vectors of sixteen numbers on every instruction set, held in one, two or four registers. Included by each
// kernels_*.cpp inside its own namespace, so that the linker cannot replace code for one instruction set with code for
// another.

constexpr int kLanes = 16;

// Locality hint for __builtin_prefetch of streams from memory: 3 = L1, 2 = L2. More cache lines can be in flight to L2
// than to L1. AVX2 uses L1; L2 was not measured there.
constexpr int kFirstCache = 3, kSecondCache = 2;
#if defined(__AVX512F__)
constexpr int kStreamCache = kSecondCache;
#else
constexpr int kStreamCache = kFirstCache;
#endif

// Lanes of one register; the vector types below consist of kParts registers.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef float Part __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef float Reg __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntPart __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef int32_t IntReg __attribute__((vector_size(kWidth * 4)));
typedef uint32_t WordPart __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint32_t WordReg __attribute__((vector_size(kWidth * 4)));
typedef uint8_t BytePart __attribute__((vector_size(kWidth), aligned(1), may_alias));
typedef int8_t SignedPart __attribute__((vector_size(kWidth), aligned(1), may_alias));
typedef uint16_t HalfPart __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

// An integer as a type, to pass a template argument to a generic lambda.
template <int kNumber>
struct Number {
    static constexpr int kValue = kNumber;
};

struct V16 {  // sixteen floats
    Reg part[kParts];
};
struct I16 {  // sixteen int32
    IntReg part[kParts];
};
struct U16 {  // sixteen uint32, or sixteen words of four bytes
    WordReg part[kParts];
};

#define PUNA_INLINE static inline __attribute__((always_inline))
// Runs the following statement for each register i_ of a vector.
#define PUNA_EACH _Pragma("GCC unroll 4") for (int i_ = 0; i_ < kParts; ++i_)

PUNA_INLINE V16 load(const float* from) {
    V16 out;
    PUNA_EACH out.part[i_] = *reinterpret_cast<const Part*>(from + i_ * kWidth);
    return out;
}

PUNA_INLINE void store(float* to, const V16& value) {
    PUNA_EACH* reinterpret_cast<Part*>(to + i_ * kWidth) = value.part[i_];
}

// The compiler drops value - 0, which equals value even for -0. It could not drop Reg{} + value, because 0 + -0 is 0.
PUNA_INLINE V16 broadcast(float value) {
    V16 out;
    PUNA_EACH out.part[i_] = value - Reg{};
    return out;
}

// a * b + c, rounded once on AVX2, AVX-512 and Arm; every other build rounds twice.
PUNA_INLINE Reg fused(Reg a, Reg b, Reg c) {
#if defined(__AVX512F__)
    return (Reg)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Reg)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Reg)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

PUNA_INLINE V16 madd(const V16& a, const V16& b, const V16& c) {
    V16 out;
    PUNA_EACH out.part[i_] = fused(a.part[i_], b.part[i_], c.part[i_]);
    return out;
}

PUNA_INLINE V16 operator+(const V16& a, const V16& b) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] + b.part[i_];
    return out;
}

PUNA_INLINE V16 operator-(const V16& a, const V16& b) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] - b.part[i_];
    return out;
}

PUNA_INLINE V16 operator*(const V16& a, const V16& b) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] * b.part[i_];
    return out;
}

PUNA_INLINE V16 higher(const V16& a, const V16& b) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] > b.part[i_] ? a.part[i_] : b.part[i_];
    return out;
}

// The next functions reduce a vector to one number. Every build combines lane i first with lane i + 8, then with i + 4,
// i + 2 and i + 1.
#if defined(__AVX2__) && !defined(PUNA_EMULATE)
template <typename Fold>
PUNA_INLINE float folded(const V16& value, const Fold& fold) {
#if defined(__AVX512F__)
    const __m512 all = (__m512)value.part[0];
    const __m256 eight = fold(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
    const __m256 eight = fold((__m256)value.part[0], (__m256)value.part[1]);
#endif
    const __m256 four = fold(eight, _mm256_permute2f128_ps(eight, eight, 1));
    const __m256 two = fold(four, _mm256_permute_ps(four, 0x4e));
    return _mm256_cvtss_f32(fold(two, _mm256_permute_ps(two, 0xb1)));
}
PUNA_INLINE float sum_of(const V16& value) {
    return folded(value, [](__m256 a, __m256 b) __attribute__((always_inline)) { return _mm256_add_ps(a, b); });
}
PUNA_INLINE float highest_of(const V16& value) {
    return folded(value, [](__m256 a, __m256 b) __attribute__((always_inline)) { return _mm256_max_ps(a, b); });
}
#else
PUNA_INLINE float sum_of(const V16& value) {
    float lane[kLanes];
    store(lane, value);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}
PUNA_INLINE float highest_of(const V16& value) {
    float lane[kLanes];
    store(lane, value);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}
#endif

// Loads `count` floats, at most 16; the remaining lanes are 0.
PUNA_INLINE V16 load_some(const float* from, int64_t count) {
    if (count >= kLanes) return load(from);
    float values[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = from[i];
    return load(values);
}

// Stores the first `count` lanes, at most 16.
PUNA_INLINE void store_some(float* to, const V16& value, int64_t count) {
    if (count >= kLanes) return store(to, value);
    float values[kLanes];
    store(values, value);
    for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

PUNA_INLINE U16 load_words(const void* from) {
    U16 out;
    PUNA_EACH out.part[i_] = *reinterpret_cast<const WordPart*>(static_cast<const uint8_t*>(from) + i_ * kWidth * 4);
    return out;
}

PUNA_INLINE void store_words(void* to, const U16& value) {
    PUNA_EACH* reinterpret_cast<WordPart*>(static_cast<uint8_t*>(to) + i_ * kWidth * 4) = value.part[i_];
}

PUNA_INLINE U16 operator&(const U16& a, uint32_t mask) {
    U16 out;
    PUNA_EACH out.part[i_] = a.part[i_] & (WordReg{} + mask);
    return out;
}

PUNA_INLINE U16 operator|(const U16& a, const U16& b) {
    U16 out;
    PUNA_EACH out.part[i_] = a.part[i_] | b.part[i_];
    return out;
}

// Shifts each lane right by `count` bits, or left by -count.
PUNA_INLINE U16 shifted(const U16& a, int count) {
    U16 out;
    PUNA_EACH out.part[i_] = count >= 0 ? a.part[i_] >> count : a.part[i_] << -count;
    return out;
}

PUNA_INLINE V16 as_floats(const U16& bits) {
    V16 out;
    PUNA_EACH out.part[i_] = (Reg)bits.part[i_];
    return out;
}

PUNA_INLINE V16 to_floats(const I16& value) {
    V16 out;
    PUNA_EACH out.part[i_] = __builtin_convertvector(value.part[i_], Reg);
    return out;
}

PUNA_INLINE I16 operator+(const I16& a, const I16& b) {
    I16 out;
    PUNA_EACH out.part[i_] = a.part[i_] + b.part[i_];
    return out;
}

PUNA_INLINE I16 all_equal(int32_t value) {
    I16 out;
    PUNA_EACH out.part[i_] = IntReg{} + value;
    return out;
}

// Widen sixteen bytes, signed bytes, or 16-bit numbers to 32 bits. Written with intrinsics where they exist, because
// GCC 12 converts a vector of narrow integers element by element.
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
PUNA_INLINE I16 from_bytes(const uint8_t* from) {
    return I16{{(IntReg)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))}};
}
PUNA_INLINE I16 from_signed(const uint8_t* from) {
    return I16{{(IntReg)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))}};
}
PUNA_INLINE U16 from_halves(const uint16_t* from) {
    return U16{{(WordReg)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}};
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
PUNA_INLINE I16 from_bytes(const uint8_t* from) {
    I16 out;
    PUNA_EACH out.part[i_] = (IntReg)_mm256_cvtepu8_epi32(_mm_loadu_si64(from + i_ * kWidth));
    return out;
}
PUNA_INLINE I16 from_signed(const uint8_t* from) {
    I16 out;
    PUNA_EACH out.part[i_] = (IntReg)_mm256_cvtepi8_epi32(_mm_loadu_si64(from + i_ * kWidth));
    return out;
}
PUNA_INLINE U16 from_halves(const uint16_t* from) {
    U16 out;
    PUNA_EACH out.part[i_] =
        (WordReg)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i_ * kWidth)));
    return out;
}
#else
PUNA_INLINE I16 from_bytes(const uint8_t* from) {
    I16 out;
    PUNA_EACH out.part[i_] = __builtin_convertvector(*reinterpret_cast<const BytePart*>(from + i_ * kWidth), IntReg);
    return out;
}
PUNA_INLINE I16 from_signed(const uint8_t* from) {
    I16 out;
    PUNA_EACH out.part[i_] = __builtin_convertvector(*reinterpret_cast<const SignedPart*>(from + i_ * kWidth), IntReg);
    return out;
}
PUNA_INLINE U16 from_halves(const uint16_t* from) {
    U16 out;
    PUNA_EACH out.part[i_] = __builtin_convertvector(*reinterpret_cast<const HalfPart*>(from + i_ * kWidth), WordReg);
    return out;
}
#endif

// Widens sixteen IEEE half-precision numbers; exact, including subnormals, infinities and NaN.
PUNA_INLINE V16 from_f16(const uint16_t* from) {
#if defined(__AVX512F__)
    return V16{{(Reg)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}};
#elif defined(__AVX2__)
    V16 out;
    PUNA_EACH out.part[i_] =
        (Reg)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i_ * kWidth)));
    return out;
#else
    const U16 half = from_halves(from);
    V16 out;
    PUNA_EACH {
        const WordReg bits = half.part[i_];
        const WordReg magnitude = (bits & 0x7fffu) << 13, special = (bits & 0x7c00u) == 0x7c00u;
        const Reg value = (Reg)magnitude * 0x1p112f;  // changes the exponent bias from half's to float's
        const WordReg number = (special & (magnitude | 0x7f800000u)) | (~special & (WordReg)value);
        out.part[i_] = (Reg)(number | (bits & 0x8000u) << 16);
    }
    return out;
#endif
}

// Rounds to the nearest bf16, ties to even; NaN stays NaN. Subnormal floats become a zero of the same sign, as in
// vcvtneps2bf16 (Intel SDM, volume 2: denormal inputs are treated as zeros), so that every build rounds identically.
PUNA_INLINE void to_bf16(uint16_t* to, const V16& value) {
#if defined(__AVX512BF16__) && !defined(PUNA_EMULATE)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value.part[0]));
#else
    PUNA_EACH {
        const WordReg bits = (WordReg)value.part[i_];
        const WordReg rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        const WordReg nan = (bits & 0x7fffffffu) > 0x7f800000u;
        const WordReg subnormal = (bits & 0x7f800000u) == 0u;
        const WordReg number = (subnormal & (bits >> 16 & 0x8000u)) | (~subnormal & rounded);
        const WordReg out = (nan & (bits >> 16 | 0x40u)) | (~nan & number);
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)out));
#else
        *reinterpret_cast<HalfPart*>(to + i_ * kWidth) = __builtin_convertvector(out, HalfPart);
#endif
    }
#endif
}

// Rounds to the nearest half-precision number, ties to even; magnitudes that round above 65504 become infinity.
PUNA_INLINE void to_f16(uint16_t* to, const V16& value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value.part[0], 0));
#elif defined(__AVX2__)
    PUNA_EACH _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i_ * kWidth),
                               _mm256_cvtps_ph((__m256)value.part[i_], 0));
#else
    PUNA_EACH {
        const WordReg bits = (WordReg)value.part[i_], sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
        // Normal halves: add half a unit in the last place (and the parity bit, for ties) before dropping 13 bits.
        // Subnormal halves: adding 0.5 moves the value into place and rounds it. Too large: infinity. NaN stays NaN.
        const WordReg normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
        const WordReg small = (WordReg)((Reg)magnitude + 0.5f) - 0x3f000000u;
        const WordReg is_small = magnitude < 0x38800000u, is_large = magnitude >= 0x477ff000u;
        const WordReg is_nan = magnitude > 0x7f800000u;
        WordReg out = (is_small & small) | (~is_small & normal);
        out = (is_large & 0x7c00u) | (~is_large & out);
        out = (is_nan & 0x7e00u) | (~is_nan & out);
        *reinterpret_cast<HalfPart*>(to + i_ * kWidth) = __builtin_convertvector(out | sign, HalfPart);
    }
#endif
}

// e^x for x in [-87, 88], within 2 units in the last place; exactly 0 below -87; e^88 above 88; NaN stays NaN. With
// n = round(x / ln 2) and r = x - n ln 2, |r| <= ln 2 / 2: a polynomial in r (Cephes' expf coefficients) times 2^n,
// which is applied by adding n to the exponent bits. n ln 2 is subtracted in two parts: `high` has few significant
// bits, so that n * high is exact; `low` is the rest.
PUNA_INLINE V16 exponential(const V16& x) {
    const Reg zero = Reg{}, lowest = zero - 87.0f, highest = zero + 88.0f, log2e = zero + 1.44269504f;
    const Reg high = zero - 0.693359375f, low = zero + 2.12194440e-4f, magic = zero + 12582912.0f;  // 1.5 * 2^23
    V16 out;
    PUNA_EACH {
        const IntReg under = x.part[i_] < lowest;
        Reg v = under ? lowest : x.part[i_];
        v = v > highest ? highest : v;
        const Reg shift = fused(v, log2e, magic);
        const Reg n = shift - magic;
        const Reg r = fused(n, low, fused(n, high, v));
        Reg p = fused(zero + 1.9875691500e-4f, r, zero + 1.3981999507e-3f);
        p = fused(p, r, zero + 8.3334519073e-3f);
        p = fused(p, r, zero + 4.1665795894e-2f);
        p = fused(p, r, zero + 1.6666665459e-1f);
        p = fused(p, r, zero + 5.0000001201e-1f);
        p = fused(p, r * r, r) + 1.0f;
        const IntReg exponent = ((IntReg)shift - (IntReg)magic) << 23;
        const IntReg nan = x.part[i_] != x.part[i_];  // return a NaN unchanged
        out.part[i_] = nan ? x.part[i_] : under ? zero : (Reg)((IntReg)p + exponent);
    }
    return out;
}
