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
// Panels of floats have no planes: kF32 and kF16 hold the 16 rows of each column; kBf16 holds, for each pair of
// columns, the pairs of the 16 rows.
enum class Planes : int8_t { kF32, kF16, kBf16, kFour, kFive, kSix, kEight };

constexpr bool is_float(Planes planes) { return planes <= Planes::kBf16; }

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

// Methods to find a block's scale during quantisation. Levels are integers: -n .. n - 1, or 0 .. n with a minimum.
enum class SearchKind : int8_t {
    kAbsMax,        // scale = largest magnitude / n
    kSignedAbsMax,  // the value of largest magnitude becomes level -n
    kMinMax,        // the smallest value becomes level 0, the largest level n
    kBestScale,     // tries several scales; keeps the one with the smallest weighted squared error
    kBestAffine,    // kBestScale for a scale and a minimum
    kTable,         // kBestScale with the levels of iq4_nl
};

// The scales that a search tries. kBestScale and kTable: the value of largest magnitude maps to level -n + i * step,
// for i from -steps to steps, and once to n - 1. kBestAffine: the range of the values maps to n + first + i * step
// levels, for i from 0 to steps.
struct Search {
    SearchKind kind;
    int size;      // values that share a scale
    float levels;  // n
    int steps = 0;
    float first = 0;
    float step = 0;
    bool any_min = false;  // kBestAffine: the minimum may be positive
};

// Weight of a squared error if no importance is given, as in ggml: 1, x^2, |x|, or (rms of the block) + |x|.
enum class Weights : int8_t { kNone, kSquare, kMagnitude, kTypical };

// A quantised block, to be written in the layout of a file. Formats with one scale per block: `scale` and `minimum` are
// f16 numbers. K formats: they are the f16 units of the scales and minimums of the block's parts.
struct QuantizedBlock {
    const uint8_t* level;  // stored integers, one per value
    uint16_t scale, minimum;
    const int* part_scale = nullptr;    // K formats: scales in units, one per part
    const int* part_minimum = nullptr;  // K formats: minimums in units
};

// How float rows are quantised to a format.
struct Quantization {
    Search plain;     // search without importance
    Weights weights;  // without importance
    Search weighted;  // search with importance
    int zero, top;    // stored level that represents 0, and the highest stored level
    // K formats: the largest integer to which the scale of a part is rounded. Formats without minimums go down to
    // -largest_scale - 1. 0: the format has one f16 scale per block.
    int largest_scale = 0;
    // Importance is multiplied by sqrt(power + x^2); power is a multiple of the mean square of the row, or of the
    // block.
    bool block_power = false;
    bool importance_alone = false;  // importance is the weight
    void (*write)(const QuantizedBlock& from, uint8_t* block);
};

// A weight format: everything that the runtime knows about it. A new format needs one such descriptor, in the table of
// formats.cpp, and, if its panels have a new combination of planes, scales and zero, a line in kernels_table.inl.
// value = scale * (stored - zero) [+ minimum], or scale * levels[stored].
struct FormatTraits {
    Format format;
    int16_t values;  // values in one block of the file
    int16_t bytes;   // bytes of one block of the file
    Planes planes;
    Scales scales = Scales::kNone;
    int16_t zero = 0;
    int16_t scale_at = -1, min_at = -1;  // byte offsets of the f16 scale and minimum in the file's block; -1: none
    // Reads 32 columns, starting with column 32 b, of a file's block. Null for floats.
    void (*read)(const uint8_t* block, int b, RowBlock& out) = nullptr;
    // Reads the scale of a block whose scale is not an f16 number at `scale_at`. Null for all other formats.
    float (*read_scale)(const uint8_t* block) = nullptr;
    const Levels* levels = nullptr;
    float scale_factor = 1.0f;                   // power of two by which kSigned and kSignedHalves multiply the scale
    const Quantization* quantization = nullptr;  // null: float rows cannot be quantised to this format
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

// Returns the scale of a file's block in a format that has one per block, times `scale_factor`.
float read_scale(const FormatTraits& traits, const uint8_t* block);

}  // namespace puna

#endif
