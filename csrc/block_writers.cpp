// See block_writers.h. Block layouts follow ggml (ggml-common.h); all numbers are little-endian.

#include "block_writers.h"

#include <cstring>

namespace puna {

namespace {

using K = SearchKind;

void put(uint8_t* to, uint16_t value) { std::memcpy(to, &value, sizeof value); }

// Packs 32 levels into 16 bytes: level i into the low nibble of byte i, level 16 + i into the high nibble.
void put_nibbles(const uint8_t* level, uint8_t* out) {
    for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((level[i] & 15) | level[i + 16] << 4);
}

// Packs the fifth bits of 32 levels into 32 bits.
void put_fifth_bits(const uint8_t* level, uint8_t* out) {
    for (int k = 0; k < 4; ++k) {
        uint64_t eight;
        std::memcpy(&eight, level + 8 * k, sizeof eight);
        // Shifts bit 4 of each byte to bit 0. The multiplication then moves that bit of byte i to bit i of the top
        // byte.
        out[k] = static_cast<uint8_t>((eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    }
}

// Packs the eight six-bit scales and eight minimums of a Q4_K or Q5_K block into 12 bytes.
void put_six_bits(const int* scale, const int* offset, uint8_t* out) {
    for (int b = 0; b < 4; ++b) {
        out[b] = static_cast<uint8_t>(scale[b] | scale[b + 4] >> 4 << 6);
        out[4 + b] = static_cast<uint8_t>(offset[b] | offset[b + 4] >> 4 << 6);
        out[8 + b] = static_cast<uint8_t>((scale[b + 4] & 15) | (offset[b + 4] & 15) << 4);
    }
}

// Packs bits shift and shift + 1 of 256 levels: 32 bytes hold 128 levels, and each bit pair of these bytes holds 32
// consecutive levels.
void put_pairs(const uint8_t* level, int shift, uint8_t* out) {
    for (int part = 0; part < 2; ++part)
        for (int j = 0; j < 32; ++j) {
            const uint8_t* const from = level + 128 * part + j;
            int byte = 0;
            for (int k = 0; k < 4; ++k) byte |= (from[32 * k] >> shift & 3) << 2 * k;
            out[32 * part + j] = static_cast<uint8_t>(byte);
        }
}

// Collects bit `bit` of 256 levels: byte j has the bits of levels j, 32 + j, 64 + j, ...
void put_bits(const uint8_t* level, int bit, uint8_t* out) {
    for (int j = 0; j < 32; ++j) {
        int bits = 0;
        for (int k = 0; k < 8; ++k) bits |= (level[32 * k + j] >> bit & 1) << k;
        out[j] = static_cast<uint8_t>(bits);
    }
}

void write_q8_0(const QuantizedBlock& from, uint8_t* out) {
    put(out, from.scale);
    for (int i = 0; i < 32; ++i) out[2 + i] = static_cast<uint8_t>(from.level[i] - 127);
}

void write_q4_0(const QuantizedBlock& from, uint8_t* out) {  // also IQ4_NL
    put(out, from.scale);
    put_nibbles(from.level, out + 2);
}

void write_q4_1(const QuantizedBlock& from, uint8_t* out) {
    put(out, from.scale);
    put(out + 2, from.minimum);
    put_nibbles(from.level, out + 4);
}

void write_q5_0(const QuantizedBlock& from, uint8_t* out) {
    put(out, from.scale);
    put_fifth_bits(from.level, out + 2);
    put_nibbles(from.level, out + 6);
}

void write_q5_1(const QuantizedBlock& from, uint8_t* out) {
    put(out, from.scale);
    put(out + 2, from.minimum);
    put_fifth_bits(from.level, out + 4);
    put_nibbles(from.level, out + 8);
}

void write_q2_k(const QuantizedBlock& from, uint8_t* out) {
    for (int b = 0; b < 16; ++b) out[b] = static_cast<uint8_t>(from.part_scale[b] | from.part_minimum[b] << 4);
    put_pairs(from.level, 0, out + 16);
    put(out + 80, from.scale);
    put(out + 82, from.minimum);
}

void write_q3_k(const QuantizedBlock& from, uint8_t* out) {
    uint8_t* const scales = out + 96;
    put_bits(from.level, 2, out);
    put_pairs(from.level, 0, out + 32);
    std::memset(scales, 0, 12);
    for (int b = 0; b < 16; ++b) {
        const int six = from.part_scale[b] + 32;
        scales[b % 8] = static_cast<uint8_t>(scales[b % 8] | (six & 15) << (b < 8 ? 0 : 4));
        scales[8 + b % 4] = static_cast<uint8_t>(scales[8 + b % 4] | six >> 4 << 2 * (b / 4));
    }
    put(out + 108, from.scale);
}

// Writes the low four bits of 256 levels: 32 bytes hold 64 levels.
void put_nibbles_k(const uint8_t* level, uint8_t* out) {
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i) {
            const uint8_t* const from = level + 64 * pair + i;
            out[32 * pair + i] = static_cast<uint8_t>((from[0] & 15) | from[32] << 4);
        }
}

void write_q4_k(const QuantizedBlock& from, uint8_t* out) {
    put(out, from.scale);
    put(out + 2, from.minimum);
    put_six_bits(from.part_scale, from.part_minimum, out + 4);
    put_nibbles_k(from.level, out + 16);
}

void write_q5_k(const QuantizedBlock& from, uint8_t* out) {
    put(out, from.scale);
    put(out + 2, from.minimum);
    put_six_bits(from.part_scale, from.part_minimum, out + 4);
    put_bits(from.level, 4, out + 16);
    put_nibbles_k(from.level, out + 48);
}

void write_q6_k(const QuantizedBlock& from, uint8_t* out) {
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 64; ++i) {
            const uint8_t* const at = from.level + 128 * half + i;
            out[64 * half + i] = static_cast<uint8_t>((at[0] & 15) | at[64] << 4);
        }
    put_pairs(from.level, 4, out + 128);
    for (int b = 0; b < 16; ++b) out[192 + b] = static_cast<uint8_t>(from.part_scale[b]);
    put(out + 208, from.scale);
}

// Search ranges and steps are ggml's: those of quantize_row_*_ref, and with importance those of quantize_row_*_impl.
constexpr Search kSymmetric4{.kind = K::kBestScale, .size = 32, .levels = 8, .steps = 9, .step = 0.1f};
constexpr Search kSymmetric5{.kind = K::kBestScale, .size = 32, .levels = 16, .steps = 9, .step = 0.1f};
constexpr Search kAffine4{
    .kind = K::kBestAffine, .size = 32, .levels = 15, .steps = 36, .first = -0.9f, .step = 0.05f, .any_min = true};
constexpr Search kAffine5{
    .kind = K::kBestAffine, .size = 32, .levels = 31, .steps = 36, .first = -0.9f, .step = 0.05f, .any_min = true};
constexpr Search kTable{.kind = K::kTable, .size = 32, .levels = 127, .steps = 7, .step = 1};
constexpr Search kQ3K{.kind = K::kBestScale, .size = 16, .levels = 4, .steps = 9, .step = 0.1f};
constexpr Search kQ6K{.kind = K::kBestScale, .size = 16, .levels = 32, .steps = 9, .step = 0.1f};

}  // namespace

const Quantization kToQ8_0{.plain = {.kind = K::kAbsMax, .size = 32, .levels = 127},
                           .weights = Weights::kNone,
                           .weighted = {.kind = K::kAbsMax, .size = 32, .levels = 127},
                           .zero = 127,
                           .top = 254,
                           .write = write_q8_0};

const Quantization kToQ4_0{.plain = {.kind = K::kSignedAbsMax, .size = 32, .levels = 8},
                           .weights = Weights::kNone,
                           .weighted = kSymmetric4,
                           .zero = 8,
                           .top = 15,
                           .write = write_q4_0};

const Quantization kToQ5_0{.plain = {.kind = K::kSignedAbsMax, .size = 32, .levels = 16},
                           .weights = Weights::kNone,
                           .weighted = kSymmetric5,
                           .zero = 16,
                           .top = 31,
                           .write = write_q5_0};

const Quantization kToQ4_1{.plain = {.kind = K::kMinMax, .size = 32, .levels = 15},
                           .weights = Weights::kNone,
                           .weighted = kAffine4,
                           .zero = 0,
                           .top = 15,
                           .write = write_q4_1};

const Quantization kToQ5_1{.plain = {.kind = K::kMinMax, .size = 32, .levels = 31},
                           .weights = Weights::kNone,
                           .weighted = kAffine5,
                           .zero = 0,
                           .top = 31,
                           .write = write_q5_1};

const Quantization kToIQ4_NL{.plain = kTable,
                             .weights = Weights::kSquare,
                             .weighted = kTable,
                             .zero = 0,
                             .top = 15,
                             .block_power = true,
                             .write = write_q4_0};

const Quantization kToQ2_K{
    .plain = {.kind = K::kBestAffine, .size = 16, .levels = 3, .steps = 15, .first = -0.5f, .step = 0.1f},
    .weights = Weights::kMagnitude,
    .weighted = {.kind = K::kBestAffine, .size = 16, .levels = 3, .steps = 36, .first = -0.9f, .step = 0.05f},
    .zero = 0,
    .top = 3,
    .largest_scale = 15,
    .write = write_q2_k};

const Quantization kToQ3_K{.plain = kQ3K,
                           .weights = Weights::kTypical,
                           .weighted = kQ3K,
                           .zero = 4,
                           .top = 7,
                           .largest_scale = 31,
                           .write = write_q3_k};

const Quantization kToQ4_K{
    .plain = {.kind = K::kBestAffine, .size = 32, .levels = 15, .steps = 20, .first = -1, .step = 0.1f},
    .weights = Weights::kTypical,
    .weighted = {.kind = K::kBestAffine, .size = 32, .levels = 15, .steps = 36, .first = -0.9f, .step = 0.05f},
    .zero = 0,
    .top = 15,
    .largest_scale = 63,
    .write = write_q4_k};

const Quantization kToQ5_K{
    .plain = {.kind = K::kBestAffine, .size = 32, .levels = 31, .steps = 15, .first = -0.5f, .step = 0.1f},
    .weights = Weights::kTypical,
    .weighted = {.kind = K::kBestAffine, .size = 32, .levels = 31, .steps = 36, .first = -0.9f, .step = 0.05f},
    .zero = 0,
    .top = 31,
    .largest_scale = 63,
    .write = write_q5_k};

const Quantization kToQ6_K{.plain = kQ6K,
                           .weights = Weights::kSquare,
                           .weighted = kQ6K,
                           .zero = 32,
                           .top = 63,
                           .largest_scale = 127,
                           .importance_alone = true,
                           .write = write_q6_k};

}  // namespace puna
