// Weight matrices as the kernels read them: panels of 16 rows side by side, so that a vector register holds 16 rows of
// the result and no sum ever runs across its lanes.
#ifndef PUNA_PANELS_H
#define PUNA_PANELS_H

#include <cstdint>

namespace puna {

constexpr int kPanel = 16;  // rows side by side
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

// A panel has two regions, each padded to 64 bytes: scales, then planes.
//
// Planes of integer formats: for each block of 32 columns, words of four bytes, one word for each of the 16 rows. Four
// bits: four rows of words, word s holding columns 4 s .. 4 s + 3 in its bytes' low halves and columns 16 + 4 s .. in
// their high halves. Fifth bits: one more row of words; bit s of byte i belongs to column 4 s + i. Fifth and sixth
// bits: two rows; in word h, bits 2 f and 2 f + 1 of byte i belong to column 4 (4 h + f) + i. Eight bits: eight rows of
// words, signed values plus 128.
//
// Scales, per block of the file (32 or 256 columns), each for 16 rows side by side: see `Scales`.
//
// Planes of floats: f32 and f16, for each column its 16 rows; bf16, for each pair of columns 16 pairs.
enum class Planes : int8_t { kFloat, kFour, kFive, kSix, kEight };

enum class Scales : int8_t {
    kNone,
    kHalf,          // f16 scale
    kHalfAndLeast,  // f16 scale, f16 minimum
    kSixBit,        // f16 scale, f16 factor of minima; then per 32 columns a byte of scale and one of minimum
    kSigned,        // f16 scale; then per 16 columns a signed byte of scale
    kNibbles,  // f16 scale, f16 factor of minima; then per 16 columns a byte: scale in the low, minimum in the high
               // half
};

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

// Bytes of a panel's scales, and of its planes, for `cols` columns.
int64_t scale_bytes(const Layout& layout, int64_t cols);
int64_t plane_bytes(const Layout& layout, int64_t cols);

struct Panels {
    const Layout* layout = nullptr;
    const uint8_t* data = nullptr;
    const float* bias = nullptr;  // [rows], or none
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t planes = 0;  // where a panel's planes begin
    int64_t stride = 0;  // bytes from panel to panel
    int64_t count() const { return (rows + kPanel - 1) / kPanel; }
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
