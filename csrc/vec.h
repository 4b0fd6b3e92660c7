// Sixteen floats at once on every instruction set. Included by each kernels_*.cpp inside its own namespace, so that
// code compiled for one processor never stands in for another's.

constexpr int kLanes = 16;

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
typedef int32_t IntReg __attribute__((vector_size(kWidth * 4)));

struct V16 {
    Reg part[kParts];
};

#define PUNA_INLINE static inline __attribute__((always_inline))
#define PUNA_EACH _Pragma("GCC unroll 4") for (int i_ = 0; i_ < kParts; ++i_)

PUNA_INLINE V16 load(const float* from) {
    V16 out;
    PUNA_EACH out.part[i_] = *reinterpret_cast<const Part*>(from + i_ * kWidth);
    return out;
}

PUNA_INLINE void store(float* to, const V16& value) {
    PUNA_EACH* reinterpret_cast<Part*>(to + i_ * kWidth) = value.part[i_];
}

PUNA_INLINE V16 broadcast(float value) {
    V16 out;
    PUNA_EACH out.part[i_] = Reg{} + value;
    return out;
}

// a * b + c, rounded once where the processor can; the portable build rounds twice, always.
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

PUNA_INLINE V16 operator*(const V16& a, const V16& b) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] * b.part[i_];
    return out;
}

// e^x for x from -87 to 88, within 2 units in the last place; below -87 exactly 0. n = round(x / ln 2), then a
// polynomial in the rest r, |r| <= ln 2 / 2 (Cephes' coefficients for expf), then 2^n by adding n to the exponent.
PUNA_INLINE V16 exponential(const V16& x) {
    const Reg zero = Reg{}, lowest = zero - 87.0f, highest = zero + 88.0f, log2e = zero + 1.44269504f;
    const Reg high = zero - 0.693359375f, low = zero + 2.12194440e-4f, magic = zero + 12582912.0f;  // 1.5 * 2^23
    V16 out;
    PUNA_EACH {
        const IntReg under = x.part[i_] < lowest;
        Reg v = under ? lowest : x.part[i_];
        v = v > highest ? highest : v;
        const Reg shifted = fused(v, log2e, magic);
        const Reg n = shifted - magic;
        const Reg r = fused(n, low, fused(n, high, v));
        Reg p = fused(zero + 1.9875691500e-4f, r, zero + 1.3981999507e-3f);
        p = fused(p, r, zero + 8.3334519073e-3f);
        p = fused(p, r, zero + 4.1665795894e-2f);
        p = fused(p, r, zero + 1.6666665459e-1f);
        p = fused(p, r, zero + 5.0000001201e-1f);
        p = fused(p, r * r, r) + 1.0f;
        const IntReg exponent = ((IntReg)shifted - (IntReg)magic) << 23;
        out.part[i_] = under ? zero : (Reg)((IntReg)p + exponent);
    }
    return out;
}
