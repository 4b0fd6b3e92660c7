// See panels.h.

#include "panels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace puna {

namespace {

void copy_u16(uint8_t* to, int row, const uint8_t* from) { std::memcpy(to + 2 * row, from, 2); }

// Writes the f16 or f32 scale of a file's block, and its minimum, into row `row` of a panel; the file's block starts at
// block `first` of the panel.
void pack_scales(const FormatTraits& traits, const uint8_t* block, int64_t first, int row, uint8_t* panel) {
    const BlockOffsets at = block_offsets(traits.planes, traits.scales, first);
    switch (traits.scales) {
        case Scales::kNone:
        case Scales::kExponent:
            return;
        case Scales::kHalf:  // a file's block may be eight blocks of the panel
            for (int b = 0; b < traits.values / kBlock; ++b)
                copy_u16(panel + block_offsets(traits.planes, traits.scales, first + b).scales, row,
                         block + traits.scale_at);
            return;
        case Scales::kSigned:
        case Scales::kSignedHalves: {
            const float scale = read_scale(traits, block);
            std::memcpy(panel + at.head + 4 * row, &scale, sizeof scale);
            return;
        }
        case Scales::kHalfAndMin:
        case Scales::kSixBit:
        case Scales::kNibbles: {
            uint8_t* const halves = panel + (head_bytes(traits.scales) ? at.head : at.scales);
            copy_u16(halves, row, block + traits.scale_at);
            copy_u16(halves + 2 * kPanel, row, block + traits.min_at);
            return;
        }
    }
}

// Returns the bytes of the scales that one row has in one block.
constexpr int piece_scales(Scales scales) {
    return scales == Scales::kHalf || scales == Scales::kHalfAndMin ? 0 : scale_bytes(scales) / kPanel;
}

// Writes one row of an integer format into its panel.
void pack_integer(const Panels& panels, const uint8_t* data, int row, uint8_t* panel) {
    const FormatTraits& traits = *panels.traits;
    const int lines = plane_bytes(traits.planes) / kLine,
              words = std::min(lines, traits.planes == Planes::kEight ? 8 : 4);
    const int blocks = traits.values / kBlock, scales = piece_scales(traits.scales);
    for (int64_t i = 0; i < panels.cols / traits.values; ++i, data += traits.bytes) {
        pack_scales(traits, data, i * blocks, row, panel);
        for (int b = 0; b < blocks; ++b) {
            const BlockOffsets at = block_offsets(traits.planes, traits.scales, i * blocks + b);
            uint8_t* const to = panel + at.planes + row * 4;
            RowBlock piece;
            traits.read(data, b, piece);
            for (int s = 0; s < words; ++s) std::memcpy(to + s * kLine, &piece.words[s], 4);
            for (int h = words; h < lines; ++h) std::memcpy(to + h * kLine, &piece.high[h - words], 4);
            for (int s = 0; s < scales; ++s) panel[at.scales + s * kPanel + row] = piece.scales[s];
        }
    }
}

// Writes one row of floats into its panel: elements, or for bf16 pairs, interleaved with those of the other rows.
void pack_float(const Panels& panels, const uint8_t* data, int row, uint8_t* to) {
    const Planes type = panels.traits->planes;
    for (int64_t k = 0; k < panels.cols; ++k) {
        if (type == Planes::kF32)
            std::memcpy(to + (k * kPanel + row) * 4, data + k * 4, 4);
        else if (type == Planes::kF16)
            std::memcpy(to + (k * kPanel + row) * 2, data + k * 2, 2);
        else
            std::memcpy(to + ((k / 2 * kPanel + row) * 2 + k % 2) * 2, data + k * 2, 2);
    }
}

// The following functions read a panel back, one value at a time.

float float_at(const Panels& panels, const uint8_t* panel, int row, int64_t k) {
    const Planes type = panels.traits->planes;
    if (type == Planes::kF32) {
        float value;
        std::memcpy(&value, panel + (k * kPanel + row) * 4, 4);
        return value;
    }
    if (type == Planes::kF16) return from_half(load_u16(panel + (k * kPanel + row) * 2));
    return from_bfloat(load_u16(panel + ((k / 2 * kPanel + row) * 2 + k % 2) * 2));
}

// Returns the stored integer at column k of a row minus the zero point, or the level that it selects.
int integer_at(const Panels& panels, const uint8_t* panel, int row, int64_t k) {
    const FormatTraits& traits = *panels.traits;
    const uint8_t* block = panel + block_offsets(traits.planes, traits.scales, k / kBlock).planes;
    const int j = static_cast<int>(k % kBlock), s = j / 4, i = j % 4;
    const auto byte = [&](int line) { return block[line * kLine + row * 4 + i]; };
    if (traits.planes == Planes::kEight) return byte(s) - traits.zero;
    int stored = byte(s % 4) >> (s < 4 ? 0 : 4) & 15;
    if (traits.levels) return traits.levels->values[stored];
    if (traits.planes == Planes::kFive) stored |= (byte(4) >> s & 1) << 4;
    if (traits.planes == Planes::kSix) stored |= (byte(4 + s / 4) >> 2 * (s % 4) & 3) << 4;
    return stored - traits.zero;
}

// Reads the scale of a row at column k, and the minimum (`minimum`; the K formats store its negative).
void scales_at(const Panels& panels, const uint8_t* panel, int row, int64_t k, float& scale, float& minimum) {
    const FormatTraits& traits = *panels.traits;
    const BlockOffsets at = block_offsets(traits.planes, traits.scales, k / kBlock);
    const uint8_t* const halves = panel + (head_bytes(traits.scales) ? at.head : at.scales);
    const uint8_t* const bytes = panel + at.scales + row;
    const int64_t h = k % kBlock / 16 * kPanel;
    const auto half_of = [&](int number) { return from_half(load_u16(halves + 2 * (number * kPanel + row))); };
    minimum = 0.0f;
    switch (traits.scales) {
        case Scales::kNone:
            return;
        case Scales::kHalf:
            scale = half_of(0);
            return;
        case Scales::kHalfAndMin:
            scale = half_of(0);
            minimum = half_of(1);
            return;
        case Scales::kExponent:
            scale = std::ldexp(1.0f, bytes[0] - 128);
            return;
        case Scales::kSixBit:
            scale = half_of(0) * bytes[0];
            minimum = half_of(1) * -static_cast<float>(bytes[kPanel]);
            return;
        case Scales::kNibbles:
            scale = half_of(0) * static_cast<float>(bytes[h] & 15);
            minimum = half_of(1) * -static_cast<float>(bytes[h] >> 4);
            return;
        case Scales::kSigned:
        case Scales::kSignedHalves:
            std::memcpy(&scale, panel + at.head + 4 * row, sizeof scale);
            scale *= static_cast<int8_t>(bytes[traits.scales == Scales::kSigned ? 0 : h]);
            return;
    }
}

}  // namespace

Panels describe(const FormatTraits& traits, int64_t rows, int64_t cols) {
    Panels out;
    out.traits = &traits;
    out.rows = rows;
    out.cols = cols;
    if (out.integer()) {
        out.stride = block_offsets(traits.planes, traits.scales, cols / kBlock - 1).planes + plane_bytes(traits.planes);
    } else {
        const int64_t even = traits.planes == Planes::kBf16 ? (cols + 1) / 2 * 2 : cols;
        out.stride = (even * kPanel * traits.bytes + kLine - 1) / kLine * kLine;
    }
    return out;
}

void pack_panel(const Panels& panels, int64_t index, const uint8_t* data, const int64_t* order, uint8_t* to) {
    const int64_t bytes = panels.cols / panels.traits->values * panels.traits->bytes;
    uint8_t* const panel = to + index * panels.stride;
    if ((index + 1) * kPanel > panels.rows) std::memset(panel, 0, static_cast<size_t>(panels.stride));
    const auto pack_row = panels.integer() ? pack_integer : pack_float;
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
    float scale = 0.0f, minimum = 0.0f;
    for (int64_t k = 0; k < panels.cols; ++k) {
        // The smallest group of columns that shares a scale is 16.
        if (k % 16 == 0) scales_at(panels, panel, lane, k, scale, minimum);
        const float product = scale * static_cast<float>(integer_at(panels, panel, lane, k));
        to[k] = minimum == 0.0f ? product : product + minimum;
    }
}

}  // namespace puna
