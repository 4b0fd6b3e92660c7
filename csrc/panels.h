// Weight matrices in the layout that the kernels read: panels of 16 interleaved rows, so that a vector register holds
// 16 rows of the result and no sum runs across its lanes.
#ifndef PUNA_PANELS_H
#define PUNA_PANELS_H

#include <cstdint>

namespace puna {

constexpr int kPanel = 16;  // rows of a panel
constexpr int kStrip = 4;   // panels of a strip
constexpr int kBlock = 32;  // columns of a block: the unit of integer panels and of quantised activations

// Weight formats of files; the values are ggml's type numbers.
enum Format : int32_t {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ2_K = 10,
    kQ3_K = 11,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kIQ4_NL = 20,
    kBF16 = 30,
};

// The levels of iq4_nl: `kvalues_iq4nl` in ggml-common.h.
constexpr int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// A panel of an integer format is stored in the order in which it is read, because memory delivers long sequential
// streams fastest. It consists of units. A unit is a line (64 bytes) of scales, followed by the planes of the blocks of
// 32 columns that the scales belong to: two blocks, or one with kHalfAndLeast, whose scales fill a line. In the K
// formats, one more line, the head, precedes each 256 columns: see `Scales`.
//
// The planes of an integer format hold the stored values of a block: lines of 16 words of four bytes, one word per row
// of the panel.
//   kFour: four lines. A word of line s holds columns 4 s .. 4 s + 3 in the low nibbles of its bytes, and columns
//          16 + 4 s .. 16 + 4 s + 3 in the high nibbles.
//   kFive: kFour, then a line of fifth bits: bit s of byte i belongs to column 4 s + i.
//   kSix:  kFour, then two lines of fifth and sixth bits: in line h, bits 2 f and 2 f + 1 of byte i belong to column
//          4 (4 h + f) + i.
//   kEight: eight lines. A word of line s holds columns 4 s .. 4 s + 3 as signed values plus 128.
// Panels of floats have no planes: f32 and f16 hold the 16 rows of each column; bf16 holds, for each pair of columns,
// the pairs of the 16 rows.
enum class Planes : int8_t { kFloat, kFour, kFive, kSix, kEight };

// The scales that a panel stores for its 16 rows: once per 256 columns in the head, or once per block of 32 columns.
enum class Scales : int8_t {
    kNone,
    kHalf,          // block: f16 scale
    kHalfAndLeast,  // block: f16 scale, f16 minimum
    kSixBit,        // head: f16 scale, f16 factor of the minimums; block: a byte of scale, a byte of minimum
    kSigned,        // head: f16 scale; block: for each 16 columns a signed byte of scale
    kNibbles,       // head: as kSixBit; block: for each 16 columns a byte, scale in the low nibble, minimum in the high
};

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
constexpr int scale_bytes(Scales scales) { return scales == Scales::kHalfAndLeast ? kLine : kLine / 2; }
constexpr int head_bytes(Scales scales) {
    return scales == Scales::kSixBit || scales == Scales::kSigned || scales == Scales::kNibbles ? kLine : 0;
}

// Byte offsets in a panel of the parts that belong to one block.
struct Place {
    int64_t head, scales, planes;
};

// Always inlined, because the kernels are compiled for several instruction sets.
[[gnu::always_inline]] constexpr Place place_of(Planes planes, Scales scales, int64_t block) {
    const int64_t share = scale_bytes(scales), plane = plane_bytes(planes), head = head_bytes(scales);
    const int64_t per = kLine / share, unit = kLine + per * plane;  // blocks in a unit, and bytes of a unit
    // block / 8 is the number of the head, block / per the number of the unit. Unsigned divisions by constants become
    // shifts.
    const int64_t eight = static_cast<int64_t>(static_cast<uint64_t>(block) / 8);
    const int64_t number = static_cast<int64_t>(static_cast<uint64_t>(block) / static_cast<uint64_t>(per));
    const int64_t at = number * unit + (eight + 1) * head, inside = block - number * per;
    return {eight * (head + 8 / per * unit), at + inside * share, at + kLine + inside * plane};
}

// One row of the table of formats. value = scale * (stored - zero) [+ minimum].
struct Layout {
    Format format;
    int16_t values;  // values in one block of the file
    int16_t bytes;   // bytes of one block of the file
    Planes planes;
    Scales scales;
    int16_t zero;
};

// Returns the layout of a format, or null.
const Layout* find_layout(int32_t format);

struct Panels {
    const Layout* layout = nullptr;
    const uint8_t* data = nullptr;
    const float* bias = nullptr;  // [rows], or null
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t stride = 0;  // bytes of a panel
    int64_t count() const { return (rows + kPanel - 1) / kPanel; }
    // Strip s consists of the panels s, s + strips(), ...: up to kStrip panels, far apart, read as parallel streams.
    int64_t strips() const { return (count() + kStrip - 1) / kStrip; }
    bool integer() const { return layout->planes != Planes::kFloat; }
};

// Returns the description of a matrix, without its data.
Panels describe(const Layout& layout, int64_t rows, int64_t cols);

// Fills panel `index` of `to` from the rows of a file. Row r of the matrix is row order[r] of `data`, or row r if
// `order` is null. Rows of the panel beyond the matrix become 0.
void pack_panel(const Panels& panels, int64_t index, const uint8_t* data, const int64_t* order, uint8_t* to);

// Dequantises one row into `to`, [cols]. Reference implementation of the panel layout; also reads the embedding.
void read_row(const Panels& panels, int64_t row, float* to);

}  // namespace puna

#endif
