// Weight matrices as the kernels read them: panels of 16 rows side by side, so that a vector register holds 16 rows of
// the result and no sum ever runs across its lanes.
#ifndef PUNA_PANELS_H
#define PUNA_PANELS_H

#include <cstdint>

namespace puna {

constexpr int kPanel = 16;  // rows side by side
constexpr int kStrip = 4;   // panels of a strip
constexpr int kBlock = 32;  // columns that share a scale of the activations, and the unit of integer panels

// How a file packs values; the numbers are ggml's.
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

// An integer panel is one stream, in the order in which it is read, because memory brings long streams fastest. It is
// made of units: a line (64 bytes) of scales, then the planes of its blocks of 32 columns, which are two where a
// block's scales take half a line. The K formats have in front of each 256 columns one more line, the head: see
// `Scales`.
//
// Planes of integer formats: for each block of 32 columns, words of four bytes, one word for each of the 16 rows. Four
// bits: four rows of words, word s holding columns 4 s .. 4 s + 3 in its bytes' low halves and columns 16 + 4 s .. in
// their high halves. Fifth bits: one more row of words; bit s of byte i belongs to column 4 s + i. Fifth and sixth
// bits: two rows; in word h, bits 2 f and 2 f + 1 of byte i belong to column 4 (4 h + f) + i. Eight bits: eight rows of
// words, signed values plus 128.
//
// Planes of floats: f32 and f16, for each column its 16 rows; bf16, for each pair of columns 16 pairs.
enum class Planes : int8_t { kFloat, kFour, kFive, kSix, kEight };

// What there is of each, for 16 rows side by side.
enum class Scales : int8_t {
    kNone,
    kHalf,          // a block: f16 scale
    kHalfAndLeast,  // a block: f16 scale, f16 minimum
    kSixBit,        // the head: f16 scale, f16 factor of minima; a block: a byte of scale, one of minimum
    kSigned,        // the head: f16 scale; a block: per 16 columns a signed byte of scale
    kNibbles,       // the head: as kSixBit; a block: per 16 columns a byte, scale in the low, minimum in the high half
};

constexpr int kLine = 64;  // bytes

// Bytes of a block's planes, of its scales, and of a head.
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

// Where what belongs to a block lies in its panel.
struct Place {
    int64_t head, scales, planes;
};

// Always inline, because kernels are compiled for several instruction sets.
[[gnu::always_inline]] constexpr Place place_of(Planes planes, Scales scales, int64_t block) {
    const int64_t share = scale_bytes(scales), plane = plane_bytes(planes), head = head_bytes(scales);
    const int64_t per = kLine / share, unit = kLine + per * plane;  // blocks of a unit, its bytes
    const int64_t eight = static_cast<int64_t>(static_cast<uint64_t>(block) / 8);
    const int64_t number = static_cast<int64_t>(static_cast<uint64_t>(block) / static_cast<uint64_t>(per));
    const int64_t at = number * unit + (eight + 1) * head, inside = block - number * per;
    return {eight * (head + 8 / per * unit), at + inside * share, at + kLine + inside * plane};
}

// One line of the table of formats. value = scale * (stored - zero) [+ minimum].
struct Layout {
    Format format;
    int16_t values;  // in a block of the file
    int16_t bytes;   // of a block of the file
    Planes planes;
    Scales scales;
    int16_t zero;
};

// The layout of a format, or null.
const Layout* find_layout(int32_t format);

struct Panels {
    const Layout* layout = nullptr;
    const uint8_t* data = nullptr;
    const float* bias = nullptr;  // [rows], or none
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t stride = 0;  // bytes from panel to panel
    int64_t count() const { return (rows + kPanel - 1) / kPanel; }
    // Strip s is the panels s, s + strips(), ...: up to kStrip of them, far from each other, to be read side by side.
    int64_t strips() const { return (count() + kStrip - 1) / kStrip; }
    bool integer() const { return layout->planes != Planes::kFloat; }
};

// Describes a matrix without memory.
Panels describe(const Layout& layout, int64_t rows, int64_t cols);

// Fills panel `index` of `to` from the file's rows: row r of the matrix begins at data + order[r] * row bytes (order
// may be null: r). Whatever lies beyond the last row becomes 0.
void pack_panel(const Panels& panels, int64_t index, const uint8_t* data, const int64_t* order, uint8_t* to);

// One row's values: the slow and obvious reading of a panel. `to` has cols floats.
void read_row(const Panels& panels, int64_t row, float* to);

}  // namespace puna

#endif
