// Reads 16-bit numbers, and converts between float32 and 16-bit floating-point numbers.
#ifndef PUNA_HALF_H
#define PUNA_HALF_H

#include <cstdint>
#include <cstring>

namespace puna {

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline uint16_t load_u16(const uint8_t* from) {
    uint16_t value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Widens an IEEE half-precision number; exact.
inline float from_half(uint16_t half) {
    const uint32_t magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    if ((half & 0x7c00u) == 0x7c00u) return float_of_bits(sign | magnitude | 0x7f800000u);
    return float_of_bits(sign | bits_of_float(float_of_bits(magnitude) * 0x1p112f));
}

// Rounds to the nearest half-precision number, ties to even; magnitudes that round above 65504 become infinity.
inline uint16_t to_half(float value) {
    const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t out;
    if (magnitude > 0x7f800000u)
        out = 0x7e00u;
    else if (magnitude >= 0x477ff000u)
        out = 0x7c00u;
    else if (magnitude < 0x38800000u)
        out = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    else
        out = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
    return static_cast<uint16_t>(out | sign);
}

inline float from_bfloat(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

}  // namespace puna

#endif
