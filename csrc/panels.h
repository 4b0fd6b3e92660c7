// Weight matrices in the layout that the kernels read: panels of 16 interleaved rows, so that a vector register holds
// 16 rows of the result and no sum runs across its lanes.
#ifndef PUNA_PANELS_H
#define PUNA_PANELS_H

#include <cstdint>

#include "formats.h"

namespace puna {

constexpr int kPanel = 16;  // rows of a panel
constexpr int kStrip = 4;   // panels of a strip
constexpr int kBlock = 32;  // columns of a block: the unit of integer panels and of quantised activations

// A panel of an integer format is stored in the order in which it is read, because memory delivers long sequential
// streams fastest. It consists of units. A unit is a line (64 bytes) of scales, followed by the planes of the blocks of
// 32 columns that the scales belong to: one, two or four. If the scales have a head (see `Scales`), one more line, the
// head, precedes each 256 columns.
constexpr int kLine = 64;  // bytes

// Bytes of a block's planes, of a block's scales, and of a head.
constexpr int plane_bytes(Planes planes) {
    return (planes == Planes::kFour    ? 4
            : planes == Planes::kFive  ? 5
            : planes == Planes::kSix   ? 6
            : planes == Planes::kEight ? 8
                                       : 0) *
           kLine;
}
constexpr int scale_bytes(Scales scales) {
    return scales == Scales::kHalfAndMin                              ? kLine
           : scales == Scales::kSigned || scales == Scales::kExponent ? kLine / 4
                                                                      : kLine / 2;
}
constexpr int head_bytes(Scales scales) { return scales >= Scales::kSixBit ? kLine : 0; }

// Byte offsets in a panel of the parts that belong to one block.
struct BlockOffsets {
    int64_t head, scales, planes;
};

// Always inlined, because the kernels are compiled for several instruction sets.
[[gnu::always_inline]] constexpr BlockOffsets block_offsets(Planes planes, Scales scales, int64_t block) {
    const int64_t share = scale_bytes(scales), plane = plane_bytes(planes), head = head_bytes(scales);
    const int64_t per = kLine / share, unit = kLine + per * plane;  // blocks in a unit, and bytes of a unit
    // block / 8 is the number of the head, block / per the number of the unit. Unsigned divisions by constants become
    // shifts.
    const int64_t eight = static_cast<int64_t>(static_cast<uint64_t>(block) / 8);
    const int64_t number = static_cast<int64_t>(static_cast<uint64_t>(block) / static_cast<uint64_t>(per));
    const int64_t at = number * unit + (eight + 1) * head, inside = block - number * per;
    return {eight * (head + 8 / per * unit), at + inside * share, at + kLine + inside * plane};
}

struct Panels {
    const FormatTraits* traits = nullptr;
    const uint8_t* data = nullptr;
    const float* bias = nullptr;  // [rows], or null
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t stride = 0;  // bytes of a panel
    int64_t count() const { return (rows + kPanel - 1) / kPanel; }
    // Strip s consists of the panels s, s + strips(), ...: up to kStrip panels, far apart, read as parallel streams.
    int64_t strips() const { return (count() + kStrip - 1) / kStrip; }
    int64_t bytes() const { return count() * stride; }
    bool integer() const { return !is_float(traits->planes); }
};

// Returns the description of a matrix, without its data.
Panels describe(const FormatTraits& traits, int64_t rows, int64_t cols);

// Fills panel `index` of `to` from the rows of a file. Row r of the matrix is row order[r] of `data`, or row r if
// `order` is null. Rows of the panel beyond the matrix become 0.
void pack_panel(const Panels& panels, int64_t index, const uint8_t* data, const int64_t* order, uint8_t* to);

// Dequantises one row into `to`, [cols]. Reference implementation of the panel layout; also reads the embedding.
void read_row(const Panels& panels, int64_t row, float* to);

}  // namespace puna

#endif
