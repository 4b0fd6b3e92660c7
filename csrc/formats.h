// The table of weight formats: how files store the blocks of a format, and how panels (panels.h) hold its values.
#ifndef PUNA_FORMATS_H
#define PUNA_FORMATS_H

#include <cstdint>

namespace puna {

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
    kIQ2_XXS = 16,
    kIQ2_XS = 17,
    kIQ3_XXS = 18,
    kIQ1_S = 19,
    kIQ4_NL = 20,
    kIQ3_S = 21,
    kIQ2_S = 22,
    kIQ4_XS = 23,
    kIQ1_M = 29,
    kBF16 = 30,
    kTQ1_0 = 34,
    kTQ2_0 = 35,
    kMXFP4 = 39,
};

// The planes of a panel hold the stored values of its blocks of 32 columns: lines of 16 words of four bytes, one word
// per row of the panel.
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
    kHalfAndMin,    // block: f16 scale, f16 minimum
    kExponent,      // block: a byte e; the scale is 2^(e - 128)
    kSixBit,        // head: f16 scale, f16 factor of the minimums; block: a byte of scale, a byte of minimum
    kNibbles,       // head: as kSixBit; block: for each 16 columns a byte, scale in the low nibble, minimum in the high
    kSigned,        // head: f32 scale; block: a signed byte of scale
    kSignedHalves,  // head: f32 scale; block: for each 16 columns a signed byte of scale
};

// `values`: the numbers that 4-bit stored values select. `biased`: these numbers plus 128, four times, which fills a
// vector register.
struct Levels {
    int8_t values[16];
    alignas(64) uint8_t biased[64];
};

constexpr int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// 32 columns of one row in the order of panels: `words` of the main planes, `high` of the planes of fifth and sixth
// bits, and the bytes of scales (see Scales).
struct RowBlock {
    uint32_t words[8];
    uint32_t high[2];
    uint8_t scales[2];
};

// One row of the table of formats. value = scale * (stored - zero) [+ minimum], or scale * levels[stored].
struct FormatTraits {
    Format format;
    int16_t values;  // values in one block of the file
    int16_t bytes;   // bytes of one block of the file
    Planes planes;
    Scales scales;
    int16_t zero;
    int16_t scale_at, min_at;  // byte offsets of the f16 scale and minimum in the file's block; -1: none
    // Reads 32 columns, starting with column 32 b, of a file's block. Null for floats.
    void (*read)(const uint8_t* block, int b, RowBlock& out);
    const Levels* levels = nullptr;
    float scale_factor = 1.0f;  // power of two by which kSigned and kSignedHalves multiply the f16 scale
};

// Returns the traits of a format, or null.
const FormatTraits* find_format(int32_t format);

// All rows of the table.
struct FormatTable {
    const FormatTraits *first, *last;
    const FormatTraits* begin() const { return first; }
    const FormatTraits* end() const { return last; }
};
FormatTable all_formats();

// Returns the scale of a file's block in a format that has one per block, times `unit`.
float read_scale(const FormatTraits& traits, const uint8_t* block);

}  // namespace puna

#endif
