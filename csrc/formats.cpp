// See formats.h. Block layouts of the files follow ggml (ggml-common.h); all numbers are little-endian.

#include "formats.h"

#include <cstring>
#include <iterator>

#include "block_writers.h"
#include "grids.h"
#include "half.h"

namespace puna {

namespace {

uint32_t load_u32(const uint8_t* from) {
    uint32_t value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Spreads bits 0 .. 3 of `bits`: bit i becomes bit 0 of byte i.
uint32_t spread_bits(uint32_t bits) { return (bits & 15u) * 0x00204081u & 0x01010101u; }

// Reorders 32 fifth bits. In `bits`, bit k belongs to column k; the result has the order of Planes::kFive.
uint32_t fifth_bits(uint32_t bits) {
    uint32_t out = 0;
    for (int s = 0; s < 8; ++s) out |= spread_bits(bits >> 4 * s) << s;
    return out;
}

// Copies 16 bytes whose nibbles already have the order of Planes::kFour.
void copy_nibbles(const uint8_t* q, RowBlock& out) {
    for (int s = 0; s < 4; ++s) out.words[s] = load_u32(q + 4 * s);
}

// Reads the values of a block from the low (or, with `high`, the high) nibbles of 32 bytes.
void repack_nibbles(const uint8_t* q, bool high, RowBlock& out) {
    const int shift = high ? 4 : 0;
    for (int s = 0; s < 4; ++s)
        out.words[s] = (load_u32(q + 4 * s) >> shift & 0x0f0f0f0fu) | (load_u32(q + 16 + 4 * s) >> shift & 0x0f0f0f0fu)
                                                                          << 4;
}

// Packs 32 small values; value(s) returns the values of columns 4 s .. 4 s + 3 as bytes.
template <typename Value>
void pack_nibbles(const Value& value, RowBlock& out) {
    for (int s = 0; s < 4; ++s) out.words[s] = value(s) | value(s + 4) << 4;
}

// ---- blocks of 32 values. b is 0.

void read_q4_0(const uint8_t* block, int, RowBlock& out) { copy_nibbles(block + 2, out); }  // also IQ4_NL

void read_q4_1(const uint8_t* block, int, RowBlock& out) { copy_nibbles(block + 4, out); }

void read_q5_0(const uint8_t* block, int, RowBlock& out) {
    out.high[0] = fifth_bits(load_u32(block + 2));
    copy_nibbles(block + 6, out);
}

void read_q5_1(const uint8_t* block, int, RowBlock& out) {
    out.high[0] = fifth_bits(load_u32(block + 4));
    copy_nibbles(block + 8, out);
}

void read_q8_0(const uint8_t* block, int, RowBlock& out) {
    for (int s = 0; s < 8; ++s) out.words[s] = load_u32(block + 2 + 4 * s) ^ 0x80808080u;
}

void read_mxfp4(const uint8_t* block, int, RowBlock& out) {
    out.scales[0] = block[0];
    copy_nibbles(block + 1, out);
}

// ---- K formats: blocks of 256 values. Their 2-bit planes hold 128 columns in 32 bytes.

// Returns two bits of columns 4 s .. 4 s + 3 of block b.
uint32_t two_bits(const uint8_t* planes, int b, int s) {
    return load_u32(planes + 32 * (b / 4) + 4 * s) >> 2 * (b % 4) & 0x03030303u;
}

void read_q2_k(const uint8_t* block, int b, RowBlock& out) {
    for (int h = 0; h < 2; ++h) out.scales[h] = block[2 * b + h];
    pack_nibbles([&](int s) { return two_bits(block + 16, b, s); }, out);
}

void read_q3_k(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t* const packed = block + 96;
    for (int h = 0; h < 2; ++h) {  // scales of six bits, stored plus 32
        const int i = 2 * b + h, low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
        const int high = packed[8 + i % 4] >> 2 * (i / 4) & 3;
        out.scales[h] = static_cast<uint8_t>((low | high << 4) - 32);
    }
    pack_nibbles([&](int s) { return two_bits(block + 32, b, s) | (load_u32(block + 4 * s) >> b & 0x01010101u) << 2; },
                 out);
}

// Scales and minimums of six bits, for each 32 columns, in twelve bytes.
void read_six_bits(const uint8_t* packed, int b, RowBlock& out) {
    if (b < 4) {
        out.scales[0] = packed[b] & 63;
        out.scales[1] = packed[4 + b] & 63;
    } else {
        out.scales[0] = static_cast<uint8_t>((packed[4 + b] & 15) | packed[b - 4] >> 6 << 4);
        out.scales[1] = static_cast<uint8_t>(packed[4 + b] >> 4 | packed[b] >> 6 << 4);
    }
}

void read_q4_k(const uint8_t* block, int b, RowBlock& out) {
    read_six_bits(block + 4, b, out);
    repack_nibbles(block + 16 + 32 * (b / 2), b % 2, out);
}

void read_q5_k(const uint8_t* block, int b, RowBlock& out) {
    read_six_bits(block + 4, b, out);
    out.high[0] = 0;
    for (int s = 0; s < 8; ++s) out.high[0] |= (load_u32(block + 16 + 4 * s) >> b & 0x01010101u) << s;
    repack_nibbles(block + 48 + 32 * (b / 2), b % 2, out);
}

void read_q6_k(const uint8_t* block, int b, RowBlock& out) {
    for (int h = 0; h < 2; ++h) {
        out.scales[h] = block[192 + 2 * b + h];
        out.high[h] = 0;
        for (int f = 0; f < 4; ++f) out.high[h] |= two_bits(block + 128, b, 4 * h + f) << 2 * f;
    }
    repack_nibbles(block + 64 * (b / 4) + 32 * (b % 2), b % 4 >= 2, out);
}

// ---- formats whose stored values are indices of levels, and ternary formats: blocks of 256 values

constexpr Levels make_levels(const int8_t (&number)[16]) {
    Levels out{};
    for (int i = 0; i < 64; ++i) out.biased[i] = static_cast<uint8_t>(number[i % 16] + 128);
    for (int i = 0; i < 16; ++i) out.values[i] = number[i];
    return out;
}

constexpr Levels kLevelsOfIq4 = make_levels(kIq4Levels);
// In the following tables, bit 3 of the index is the sign. IQ1 has 8 times the numbers -1, 0 and 1, plus or minus 1.
constexpr Levels kLevelsOfMxfp4 = make_levels({0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12});
constexpr Levels kLevelsOfIq3Xxs = make_levels({4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62});
constexpr Levels kLevelsOfIq3S = make_levels({1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15});
constexpr Levels kLevelsOfIq2 = make_levels({8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43, 0, 0, 0, 0, 0});
constexpr Levels kLevelsOfIq1 = make_levels({-7, 1, 9, 0, 0, 0, 0, 0, -9, -1, 7, 0, 0, 0, 0, 0});

void read_iq4_xs(const uint8_t* block, int b, RowBlock& out) {
    const int low = block[4 + b / 2] >> 4 * (b % 2) & 15, high = load_u16(block + 2) >> 2 * b & 3;
    out.scales[0] = static_cast<uint8_t>((low | high << 4) - 32);
    copy_nibbles(block + 8 + 16 * b, out);
}

// The values of the ternary formats, 0 .. 2 (TQ2_0: 0 .. 3), are stored plus 7, so that the zero point is that of Q4_0.
constexpr uint32_t kTernaryBias = 0x07070707u;

void read_tq2_0(const uint8_t* block, int b, RowBlock& out) {
    pack_nibbles([&](int s) { return two_bits(block, b, s) + kTernaryBias; }, out);
}

// A byte holds the digits of a fraction in base 3. The planes hold digits 0 .. 4 of 32 bytes, then those of 16 bytes,
// then digits 0 .. 3 of four bytes.
void read_tq1_0(const uint8_t* block, int b, RowBlock& out) {
    constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
    const auto digit = [&](int column) {
        const uint8_t* byte;
        int number;
        if (column < 160)
            byte = block + column % 32, number = column / 32;
        else if (column < 240)
            byte = block + 32 + column % 16, number = (column - 160) / 16;
        else
            byte = block + 48 + column % 4, number = (column - 240) / 4;
        return static_cast<uint32_t>(static_cast<uint8_t>(*byte * kPowers[number]) * 3 >> 8);
    };
    pack_nibbles(
        [&](int s) {
            uint32_t four = 0;
            for (int i = 0; i < 4; ++i) four |= digit(32 * b + 4 * s + i) << 8 * i;
            return four + kTernaryBias;
        },
        out);
}

// Packs 32 values of a grid. index(j) is the number of point j, negative(j) has the signs of columns 8 j .. 8 j + 7. A
// point has the magnitudes of eight columns, or of four with kFine.
template <Grid kGrid, typename Index, typename Negative>
void pack_grid(const Index& index, const Negative& negative, RowBlock& out) {
    constexpr bool kFine = kGrid == Grid::kIq3Xxs || kGrid == Grid::kIq3S;
    const uint32_t* const points = points_of(kGrid);
    pack_nibbles(
        [&](int s) {
            const uint32_t at = kFine ? index(s) : 2 * index(s / 2) + static_cast<uint32_t>(s % 2);
            return points[at] | spread_bits(negative(s / 2) >> 4 * (s % 2)) << 3;
        },
        out);
}

// Returns eight sign bits of which seven are stored: the last one makes the number of set bits even.
uint32_t expand_signs(uint32_t seven) { return seven | static_cast<uint32_t>(__builtin_popcount(seven) & 1) << 7; }

// d * (0.5 + scale) * 0.25 = (d / 8) * (2 scale + 1), and correspondingly for the other formats.
uint8_t odd_scale(uint32_t scale) { return static_cast<uint8_t>(2 * scale + 1); }

void read_iq2_xxs(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t* const q = block + 2 + 8 * b;
    const uint32_t signs = load_u32(q + 4);
    out.scales[0] = odd_scale(signs >> 28);
    pack_grid<Grid::kIq2Xxs>([&](int j) { return uint32_t{q[j]}; },
                             [&](int j) { return expand_signs(signs >> 7 * j & 127); }, out);
}

// Scales of four bits, for each 16 columns.
void read_odd_nibbles(uint8_t packed, RowBlock& out) {
    for (int h = 0; h < 2; ++h) out.scales[h] = odd_scale(packed >> 4 * h & 15);
}

void read_iq2_xs(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t* const q = block + 2 + 8 * b;
    read_odd_nibbles(block[66 + b], out);
    pack_grid<Grid::kIq2Xs>([&](int j) { return load_u16(q + 2 * j) & 511u; },
                            [&](int j) { return expand_signs(load_u16(q + 2 * j) >> 9); }, out);
}

void read_iq2_s(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t *const q = block + 2 + 4 * b, *const signs = block + 34 + 4 * b;
    const uint32_t high = block[66 + b];
    read_odd_nibbles(block[74 + b], out);
    pack_grid<Grid::kIq2S>([&](int j) { return q[j] | (high >> 2 * j & 3) << 8; },
                           [&](int j) { return uint32_t{signs[j]}; }, out);
}

void read_iq3_xxs(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t* const q = block + 2 + 8 * b;
    const uint32_t signs = load_u32(block + 66 + 4 * b);
    out.scales[0] = odd_scale(signs >> 28);
    pack_grid<Grid::kIq3Xxs>([&](int j) { return uint32_t{q[j]}; },
                             [&](int j) { return expand_signs(signs >> 7 * j & 127); }, out);
}

void read_iq3_s(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t *const q = block + 2 + 8 * b, *const signs = block + 74 + 4 * b;
    const uint32_t high = block[66 + b];
    out.scales[0] = odd_scale(block[106 + b / 2] >> 4 * (b % 2) & 15);
    pack_grid<Grid::kIq3S>([&](int j) { return q[j] | (high >> j & 1) << 8; },
                           [&](int j) { return uint32_t{signs[j]}; }, out);
}

void read_iq1_s(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t* const q = block + 2 + 4 * b;
    const uint32_t high = load_u16(block + 34 + 2 * b);
    out.scales[0] = odd_scale(high >> 12 & 7);
    pack_grid<Grid::kIq1>([&](int j) { return q[j] | (high >> 3 * j & 7) << 8; },
                          [&](int) { return high >> 15 ? 255u : 0u; }, out);
}

void read_iq1_m(const uint8_t* block, int b, RowBlock& out) {
    const uint8_t* const q = block + 4 * b;
    const uint32_t high = load_u16(block + 32 + 2 * b);  // for each point, three bits of its number and a sign
    for (int h = 0; h < 2; ++h) {
        const int i = 2 * b + h;
        out.scales[h] = odd_scale(load_u16(block + 48 + 2 * (i / 4)) >> 3 * (i % 4) & 7);
    }
    pack_grid<Grid::kIq1>([&](int j) { return q[j] | (high >> 4 * j & 7) << 8; },
                          [&](int j) { return high >> 4 * j & 8 ? 255u : 0u; }, out);
}

// IQ1_M: the top four bits of the four words of scales, joined, are the f16 scale.
float read_scale_iq1_m(const uint8_t* block) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits |= load_u16(block + 48 + 2 * i) >> 12 << 4 * i;
    return from_half(static_cast<uint16_t>(bits));
}

// clang-format off: one paragraph per format
constexpr FormatTraits kFormats[] = {
    {.format = kF32, .values = 1, .bytes = 4, .planes = Planes::kF32},
    {.format = kF16, .values = 1, .bytes = 2, .planes = Planes::kF16},
    {.format = kBF16, .values = 1, .bytes = 2, .planes = Planes::kBf16},
    {.format = kQ8_0, .values = 32, .bytes = 34, .planes = Planes::kEight, .scales = Scales::kHalf, .zero = 128,
     .scale_at = 0, .read = read_q8_0, .quantization = &kToQ8_0},
    {.format = kQ4_0, .values = 32, .bytes = 18, .planes = Planes::kFour, .scales = Scales::kHalf, .zero = 8,
     .scale_at = 0, .read = read_q4_0, .quantization = &kToQ4_0},
    {.format = kQ4_1, .values = 32, .bytes = 20, .planes = Planes::kFour, .scales = Scales::kHalfAndMin,
     .scale_at = 0, .min_at = 2, .read = read_q4_1, .quantization = &kToQ4_1},
    {.format = kQ5_0, .values = 32, .bytes = 22, .planes = Planes::kFive, .scales = Scales::kHalf, .zero = 16,
     .scale_at = 0, .read = read_q5_0, .quantization = &kToQ5_0},
    {.format = kQ5_1, .values = 32, .bytes = 24, .planes = Planes::kFive, .scales = Scales::kHalfAndMin,
     .scale_at = 0, .min_at = 2, .read = read_q5_1, .quantization = &kToQ5_1},
    {.format = kQ2_K, .values = 256, .bytes = 84, .planes = Planes::kFour, .scales = Scales::kNibbles,
     .scale_at = 80, .min_at = 82, .read = read_q2_k, .quantization = &kToQ2_K},
    {.format = kQ3_K, .values = 256, .bytes = 110, .planes = Planes::kFour, .scales = Scales::kSignedHalves, .zero = 4,
     .scale_at = 108, .read = read_q3_k, .quantization = &kToQ3_K},
    {.format = kQ4_K, .values = 256, .bytes = 144, .planes = Planes::kFour, .scales = Scales::kSixBit,
     .scale_at = 0, .min_at = 2, .read = read_q4_k, .quantization = &kToQ4_K},
    {.format = kQ5_K, .values = 256, .bytes = 176, .planes = Planes::kFive, .scales = Scales::kSixBit,
     .scale_at = 0, .min_at = 2, .read = read_q5_k, .quantization = &kToQ5_K},
    {.format = kQ6_K, .values = 256, .bytes = 210, .planes = Planes::kSix, .scales = Scales::kSignedHalves, .zero = 32,
     .scale_at = 208, .read = read_q6_k, .quantization = &kToQ6_K},
    {.format = kIQ4_NL, .values = 32, .bytes = 18, .planes = Planes::kFour, .scales = Scales::kHalf,
     .scale_at = 0, .read = read_q4_0, .levels = &kLevelsOfIq4, .quantization = &kToIQ4_NL},
    {.format = kIQ4_XS, .values = 256, .bytes = 136, .planes = Planes::kFour, .scales = Scales::kSigned,
     .scale_at = 0, .read = read_iq4_xs, .levels = &kLevelsOfIq4},
    {.format = kIQ3_S, .values = 256, .bytes = 110, .planes = Planes::kFour, .scales = Scales::kSigned,
     .scale_at = 0, .read = read_iq3_s, .levels = &kLevelsOfIq3S},
    {.format = kIQ3_XXS, .values = 256, .bytes = 98, .planes = Planes::kFour, .scales = Scales::kSigned,
     .scale_at = 0, .read = read_iq3_xxs, .levels = &kLevelsOfIq3Xxs, .scale_factor = 0.25f},
    {.format = kIQ2_S, .values = 256, .bytes = 82, .planes = Planes::kFour, .scales = Scales::kSignedHalves,
     .scale_at = 0, .read = read_iq2_s, .levels = &kLevelsOfIq2, .scale_factor = 0.125f},
    {.format = kIQ2_XS, .values = 256, .bytes = 74, .planes = Planes::kFour, .scales = Scales::kSignedHalves,
     .scale_at = 0, .read = read_iq2_xs, .levels = &kLevelsOfIq2, .scale_factor = 0.125f},
    {.format = kIQ2_XXS, .values = 256, .bytes = 66, .planes = Planes::kFour, .scales = Scales::kSigned,
     .scale_at = 0, .read = read_iq2_xxs, .levels = &kLevelsOfIq2, .scale_factor = 0.125f},
    {.format = kIQ1_M, .values = 256, .bytes = 56, .planes = Planes::kFour, .scales = Scales::kSignedHalves,
     .read = read_iq1_m, .read_scale = read_scale_iq1_m, .levels = &kLevelsOfIq1, .scale_factor = 0.125f},
    {.format = kIQ1_S, .values = 256, .bytes = 50, .planes = Planes::kFour, .scales = Scales::kSigned,
     .scale_at = 0, .read = read_iq1_s, .levels = &kLevelsOfIq1, .scale_factor = 0.125f},
    {.format = kTQ2_0, .values = 256, .bytes = 66, .planes = Planes::kFour, .scales = Scales::kHalf, .zero = 8,
     .scale_at = 64, .read = read_tq2_0},
    {.format = kTQ1_0, .values = 256, .bytes = 54, .planes = Planes::kFour, .scales = Scales::kHalf, .zero = 8,
     .scale_at = 52, .read = read_tq1_0},
    {.format = kMXFP4, .values = 32, .bytes = 17, .planes = Planes::kFour, .scales = Scales::kExponent,
     .read = read_mxfp4, .levels = &kLevelsOfMxfp4},
};
// clang-format on

}  // namespace

const FormatTraits* find_format(int32_t format) {
    for (const FormatTraits& traits : kFormats)
        if (traits.format == format) return &traits;
    return nullptr;
}

FormatTable all_formats() { return {std::begin(kFormats), std::end(kFormats)}; }

float read_scale(const FormatTraits& traits, const uint8_t* block) {
    const float scale = traits.read_scale ? traits.read_scale(block) : from_half(load_u16(block + traits.scale_at));
    return scale * traits.scale_factor;
}

}  // namespace puna
