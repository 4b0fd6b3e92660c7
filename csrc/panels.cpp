// See panels.h. Block layouts of the files follow ggml (ggml-common.h); all numbers are little-endian.

#include "panels.h"

#include <algorithm>
#include <cstring>

#include "half.h"

namespace puna {

namespace {

// Columns: format, values and bytes of a file's block, planes, scales, zero point (see Layout).
constexpr Layout kLayouts[] = {
    {kF32, 1, 4, Planes::kFloat, Scales::kNone, 0},       {kF16, 1, 2, Planes::kFloat, Scales::kNone, 0},
    {kBF16, 1, 2, Planes::kFloat, Scales::kNone, 0},      {kQ8_0, 32, 34, Planes::kEight, Scales::kHalf, 128},
    {kQ4_0, 32, 18, Planes::kFour, Scales::kHalf, 8},     {kQ4_1, 32, 20, Planes::kFour, Scales::kHalfAndLeast, 0},
    {kQ5_0, 32, 22, Planes::kFive, Scales::kHalf, 16},    {kQ5_1, 32, 24, Planes::kFive, Scales::kHalfAndLeast, 0},
    {kIQ4_NL, 32, 18, Planes::kFour, Scales::kHalf, 0},   {kQ2_K, 256, 84, Planes::kFour, Scales::kNibbles, 0},
    {kQ3_K, 256, 110, Planes::kFour, Scales::kSigned, 4}, {kQ4_K, 256, 144, Planes::kFour, Scales::kSixBit, 0},
    {kQ5_K, 256, 176, Planes::kFive, Scales::kSixBit, 0}, {kQ6_K, 256, 210, Planes::kSix, Scales::kSigned, 32},
};

uint32_t word(const uint8_t* from) {
    uint32_t value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

uint16_t half(const uint8_t* from) {
    uint16_t value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// The part of a panel that belongs to one row and one block of 32 columns: `words` of the main planes, `high` of the
// planes of fifth and sixth bits.
struct Piece {
    uint32_t words[8];
    uint32_t high[2];
};

// Spreads bits 0 .. 3 of `bits`: bit i becomes bit 0 of byte i.
uint32_t spread(uint32_t bits) { return (bits & 15u) * 0x00204081u & 0x01010101u; }

// Reorders 32 fifth bits. In `bits`, bit k belongs to column k; the result has the order of Planes::kFive.
uint32_t fifth_bits(uint32_t bits) {
    uint32_t out = 0;
    for (int s = 0; s < 8; ++s) out |= spread(bits >> 4 * s) << s;
    return out;
}

// Copies 16 bytes whose nibbles already have the order of Planes::kFour.
void take_four(const uint8_t* q, Piece& out) {
    for (int s = 0; s < 4; ++s) out.words[s] = word(q + 4 * s);
}

// Reads the values of a block from the low (or, with `high`, the high) nibbles of 32 bytes.
void take_halves(const uint8_t* q, bool high, Piece& out) {
    const int shift = high ? 4 : 0;
    for (int s = 0; s < 4; ++s)
        out.words[s] = (word(q + 4 * s) >> shift & 0x0f0f0f0fu) | (word(q + 16 + 4 * s) >> shift & 0x0f0f0f0fu) << 4;
}

// Packs 32 small values; value(s) returns the values of columns 4 s .. 4 s + 3 as bytes.
template <typename Value>
void take_small(const Value& value, Piece& out) {
    for (int s = 0; s < 4; ++s) out.words[s] = value(s) | value(s + 4) << 4;
}

// Reads 32 columns, starting with column 32 b, of the file's block at `from`.
void take(Format format, const uint8_t* from, int b, Piece& out) {
    const int part = b / 4, quarter = b % 4;  // the 2-bit planes of K formats hold 128 columns in 32 bytes
    switch (format) {
        case kQ4_0:
        case kIQ4_NL:
            return take_four(from + 2, out);
        case kQ4_1:
            return take_four(from + 4, out);
        case kQ5_0:
            out.high[0] = fifth_bits(word(from + 2));
            return take_four(from + 6, out);
        case kQ5_1:
            out.high[0] = fifth_bits(word(from + 4));
            return take_four(from + 8, out);
        case kQ8_0:
            for (int s = 0; s < 8; ++s) out.words[s] = word(from + 2 + 4 * s) ^ 0x80808080u;
            return;
        case kQ2_K: {
            const uint8_t* q = from + 16 + 32 * part;
            return take_small([&](int s) { return word(q + 4 * s) >> 2 * quarter & 0x03030303u; }, out);
        }
        case kQ3_K: {
            const uint8_t* third = from;
            const uint8_t* q = from + 32 + 32 * part;
            return take_small(
                [&](int s) {
                    return (word(q + 4 * s) >> 2 * quarter & 0x03030303u) | (word(third + 4 * s) >> b & 0x01010101u)
                                                                                << 2;
                },
                out);
        }
        case kQ4_K:
            return take_halves(from + 16 + 32 * (b / 2), b % 2, out);
        case kQ5_K:
            out.high[0] = 0;
            for (int s = 0; s < 8; ++s) out.high[0] |= (word(from + 16 + 4 * s) >> b & 0x01010101u) << s;
            return take_halves(from + 48 + 32 * (b / 2), b % 2, out);
        case kQ6_K: {
            const uint8_t* pairs = from + 128 + 32 * part;
            for (int h = 0; h < 2; ++h) {
                out.high[h] = 0;
                for (int f = 0; f < 4; ++f)
                    out.high[h] |= (word(pairs + 16 * h + 4 * f) >> 2 * quarter & 0x03030303u) << 2 * f;
            }
            return take_halves(from + 64 * part + 32 * (quarter % 2), quarter >= 2, out);
        }
        default:
            return;
    }
}

// Offsets of the f16 scale and minimum in a file's block.
struct ScaleFields {
    int scale, least;  // least: -1 if the format has none
};

ScaleFields scale_fields(Format format) {
    switch (format) {
        case kQ4_1:
        case kQ5_1:
        case kQ4_K:
        case kQ5_K:
            return {0, 2};
        case kQ2_K:
            return {80, 82};
        case kQ3_K:
            return {108, -1};
        case kQ6_K:
            return {208, -1};
        default:
            return {0, -1};
    }
}

// Computes the two bytes of scales that a panel of a K format stores for 32 columns; see Scales.
void take_scale_bytes(Format format, const uint8_t* from, int b, uint8_t out[2]) {
    if (format == kQ4_K || format == kQ5_K) {  // packed six-bit numbers: a scale and a minimum for each 32 columns
        const uint8_t* s = from + 4;
        if (b < 4) {
            out[0] = s[b] & 63;
            out[1] = s[4 + b] & 63;
        } else {
            out[0] = static_cast<uint8_t>((s[4 + b] & 15) | s[b - 4] >> 6 << 4);
            out[1] = static_cast<uint8_t>(s[4 + b] >> 4 | s[b] >> 6 << 4);
        }
        return;
    }
    for (int h = 0; h < 2; ++h) {
        const int i = 2 * b + h;  // index of the group of 16 columns: 0 .. 15
        if (format == kQ2_K) {
            out[h] = from[i];
        } else if (format == kQ6_K) {
            out[h] = from[192 + i];
        } else {  // Q3_K: scales have six bits and are stored plus 32
            const uint8_t* s = from + 96;
            const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4, high = s[8 + i % 4] >> 2 * (i / 4) & 3;
            out[h] = static_cast<uint8_t>((low | high << 4) - 32);
        }
    }
}

void put_half(uint8_t* to, int row, uint16_t value) { std::memcpy(to + 2 * row, &value, sizeof value); }

// Writes the scales of a file's block into row `row` of a panel; the file's block starts at block `first` of the panel.
void pack_scales(const Layout& layout, const uint8_t* block, int64_t first, int row, uint8_t* panel) {
    const ScaleFields fields = scale_fields(layout.format);
    const Place at = place_of(layout.planes, layout.scales, first);
    uint8_t* const halves = panel + (head_bytes(layout.scales) ? at.head : at.scales);
    put_half(halves, row, half(block + fields.scale));
    if (fields.least >= 0) put_half(halves + 2 * kPanel, row, half(block + fields.least));
    if (layout.values == kBlock) return;
    for (int b = 0; b < layout.values / kBlock; ++b) {
        uint8_t bytes[2];
        take_scale_bytes(layout.format, block, b, bytes);
        uint8_t* const to = panel + place_of(layout.planes, layout.scales, first + b).scales;
        for (int i = 0; i < 2; ++i) to[i * kPanel + row] = bytes[i];
    }
}

// Writes one row of an integer format into its panel.
template <Format kFormat>
void pack_integer(const Panels& panels, const uint8_t* data, int row, uint8_t* panel) {
    constexpr int kWords = kFormat == kQ8_0 ? 8 : 4;
    constexpr int kHigh = kFormat == kQ6_K ? 2 : kFormat == kQ5_0 || kFormat == kQ5_1 || kFormat == kQ5_K ? 1 : 0;
    const Layout& layout = *panels.layout;
    const int blocks = layout.values / kBlock;
    for (int64_t i = 0; i < panels.cols / layout.values; ++i, data += layout.bytes) {
        pack_scales(layout, data, i * blocks, row, panel);
        for (int b = 0; b < blocks; ++b) {
            uint8_t* const to = panel + place_of(layout.planes, layout.scales, i * blocks + b).planes;
            Piece piece;
            take(kFormat, data, b, piece);
            for (int s = 0; s < kWords; ++s) std::memcpy(to + s * kLine + row * 4, &piece.words[s], 4);
            for (int h = 0; h < kHigh; ++h) std::memcpy(to + (kWords + h) * kLine + row * 4, &piece.high[h], 4);
        }
    }
}

// Writes one row of floats into its panel: element after element, or for bf16 pair after pair, among those of the other
// rows.
void pack_float(const Panels& panels, const uint8_t* data, int row, uint8_t* to) {
    const Format format = panels.layout->format;
    for (int64_t k = 0; k < panels.cols; ++k) {
        if (format == kF32)
            std::memcpy(to + (k * kPanel + row) * 4, data + k * 4, 4);
        else if (format == kF16)
            std::memcpy(to + (k * kPanel + row) * 2, data + k * 2, 2);
        else
            std::memcpy(to + ((k / 2 * kPanel + row) * 2 + k % 2) * 2, data + k * 2, 2);
    }
}

void pack_row(const Panels& panels, const uint8_t* data, int row, uint8_t* to) {
    switch (panels.layout->format) {
        case kF32:
        case kF16:
        case kBF16:
            return pack_float(panels, data, row, to);
        case kQ8_0:
            return pack_integer<kQ8_0>(panels, data, row, to);
        case kQ4_0:
            return pack_integer<kQ4_0>(panels, data, row, to);
        case kQ4_1:
            return pack_integer<kQ4_1>(panels, data, row, to);
        case kQ5_0:
            return pack_integer<kQ5_0>(panels, data, row, to);
        case kQ5_1:
            return pack_integer<kQ5_1>(panels, data, row, to);
        case kIQ4_NL:
            return pack_integer<kIQ4_NL>(panels, data, row, to);
        case kQ2_K:
            return pack_integer<kQ2_K>(panels, data, row, to);
        case kQ3_K:
            return pack_integer<kQ3_K>(panels, data, row, to);
        case kQ4_K:
            return pack_integer<kQ4_K>(panels, data, row, to);
        case kQ5_K:
            return pack_integer<kQ5_K>(panels, data, row, to);
        case kQ6_K:
            return pack_integer<kQ6_K>(panels, data, row, to);
    }
}

// The following functions read a panel back, one value at a time.

float float_at(const Panels& panels, const uint8_t* panel, int row, int64_t k) {
    const Format format = panels.layout->format;
    if (format == kF32) {
        float value;
        std::memcpy(&value, panel + (k * kPanel + row) * 4, 4);
        return value;
    }
    if (format == kF16) return from_half(half(panel + (k * kPanel + row) * 2));
    return from_bfloat(half(panel + ((k / 2 * kPanel + row) * 2 + k % 2) * 2));
}

// Returns the stored integer at column k of a row, before the zero point is subtracted; for iq4_nl, the level.
int stored_at(const Panels& panels, const uint8_t* panel, int row, int64_t k) {
    const uint8_t* block = panel + place_of(panels.layout->planes, panels.layout->scales, k / kBlock).planes;
    const int j = static_cast<int>(k % kBlock), s = j / 4, i = j % 4;
    const auto byte = [&](int line) { return block[line * kLine + row * 4 + i]; };
    if (panels.layout->planes == Planes::kEight) return byte(s);
    const int low = byte(s % 4) >> (s < 4 ? 0 : 4) & 15;
    if (panels.layout->planes == Planes::kFive) return low | (byte(4) >> s & 1) << 4;
    if (panels.layout->planes == Planes::kSix) return low | (byte(4 + s / 4) >> 2 * (s % 4) & 3) << 4;
    return panels.layout->format == kIQ4_NL ? kIq4Levels[low] : low;
}

// Reads the scale of a row at column k, and the minimum (`least`; the K formats store its negative).
void scales_at(const Panels& panels, const uint8_t* panel, int row, int64_t k, float& scale, float& least) {
    const Layout& layout = *panels.layout;
    const Place at = place_of(layout.planes, layout.scales, k / kBlock);
    const uint8_t* const halves = panel + (head_bytes(layout.scales) ? at.head : at.scales);
    const uint8_t* const bytes = panel + at.scales + row;
    const int64_t h = k % kBlock / 16;
    scale = from_half(half(halves + 2 * row));
    least = 0.0f;
    if (layout.scales == Scales::kHalf) return;
    if (layout.scales == Scales::kSigned) {
        scale *= static_cast<int8_t>(bytes[h * kPanel]);
        return;
    }
    least = from_half(half(halves + 2 * kPanel + 2 * row));
    if (layout.scales == Scales::kHalfAndLeast) return;
    if (layout.scales == Scales::kSixBit) {
        scale *= bytes[0];
        least *= -static_cast<float>(bytes[kPanel]);
    } else {
        scale *= bytes[h * kPanel] & 15;
        least *= -static_cast<float>(bytes[h * kPanel] >> 4);
    }
}

}  // namespace

const Layout* find_layout(int32_t format) {
    for (const Layout& layout : kLayouts)
        if (layout.format == format) return &layout;
    return nullptr;
}

Panels describe(const Layout& layout, int64_t rows, int64_t cols) {
    Panels out;
    out.layout = &layout;
    out.rows = rows;
    out.cols = cols;
    if (out.integer()) {
        out.stride = place_of(layout.planes, layout.scales, cols / kBlock - 1).planes + plane_bytes(layout.planes);
    } else {
        const int64_t even = layout.format == kBF16 ? (cols + 1) / 2 * 2 : cols;
        out.stride = (even * kPanel * layout.bytes + kLine - 1) / kLine * kLine;
    }
    return out;
}

void pack_panel(const Panels& panels, int64_t index, const uint8_t* data, const int64_t* order, uint8_t* to) {
    const int64_t bytes = panels.cols / panels.layout->values * panels.layout->bytes;
    uint8_t* const panel = to + index * panels.stride;
    if ((index + 1) * kPanel > panels.rows) std::memset(panel, 0, static_cast<size_t>(panels.stride));
    for (int r = 0; r < kPanel && index * kPanel + r < panels.rows; ++r) {
        const int64_t row = index * kPanel + r;
        pack_row(panels, data + (order ? order[row] : row) * bytes, r, panel);
    }
}

void read_row(const Panels& panels, int64_t row, float* to) {
    const uint8_t* panel = panels.data + row / kPanel * panels.stride;
    const int lane = static_cast<int>(row % kPanel);
    if (!panels.integer()) {
        for (int64_t k = 0; k < panels.cols; ++k) to[k] = float_at(panels, panel, lane, k);
        return;
    }
    const float zero = panels.layout->zero;
    float scale = 0.0f, least = 0.0f;
    for (int64_t k = 0; k < panels.cols; ++k) {
        // The smallest group of columns that shares a scale is 16.
        if (k % 16 == 0) scales_at(panels, panel, lane, k, scale, least);
        const float product = scale * (static_cast<float>(stored_at(panels, panel, lane, k)) - zero);
        to[k] = least == 0.0f ? product : product + least;
    }
}

}  // namespace puna
