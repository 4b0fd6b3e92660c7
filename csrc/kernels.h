// The table of kernels of one instruction set. Same arguments everywhere; the kernels_*.inl are their one definition.
#ifndef PUNA_KERNELS_H
#define PUNA_KERNELS_H

#include <cstdint>

#include "panels.h"

namespace puna {

constexpr int kPage = 64;        // tokens in a cache page, and keys in a tile of attention
constexpr int kPeakBlock = 64;   // numbers of which `peaks` finds the highest
constexpr int kMaxQueries = 64;  // that attention takes at once
constexpr int kSplit = 256;  // positions whose attention is summed together; longer contexts merge such sums in order

// Blocks of a row that share a scale; the last of an odd number has its own.
constexpr int kScaleBlocks = 2;

// 32 activations of one token, rounded to integers.
struct ActivationBlock {
    int8_t quants[kBlock];  // x = scale * quants
    float scale;            // the largest magnitude of the blocks that share it / 127
    float sum;              // of the quants, for formats with minimums
    float half_sum[2];      // of the first and the last 16
    int32_t minus_sum;      // - the sum of the quants, for formats with a zero point
    int32_t minus_half[2];  // - the sum of the first and the last 16
    int32_t unused;
};
static_assert(sizeof(ActivationBlock) == 64, "one cache line");

// From one token's row to the next, in blocks and in bf16 numbers: an odd number of cache lines, so that rows as long
// as a power of two do not all fall into the same few places of the nearest cache.
constexpr int64_t block_stride(int64_t cols) { return cols / kBlock | 1; }
constexpr int64_t bf16_stride(int64_t cols) { return ((cols + 31) / 32 | 1) * 32; }

// Inputs of a matrix, in the forms its kernel wants; those that no matrix wants may be null.
struct Activations {
    const float* values;            // [tokens][cols]
    const uint16_t* bf16;           // [tokens][bf16_stride(cols)]
    const ActivationBlock* blocks;  // [tokens][block_stride(cols)]
    int64_t cols;
};

enum class CacheType : int32_t { kF32 = 0, kF16 = 1, kBF16 = 30, kQ8_0 = 8 };

// One kv head's share of a sequence's cache. A page holds keys transposed, [head_dim][kPage], and values,
// [kPage][padded head_dim]; in bf16 two rows lie interleaved, [head_dim / 2][kPage][2] and [kPage / 2][padded
// head_dim][2]; q8_0 has behind each an f32 scale per 32 (or fewer) elements of one token: [groups][kPage] and
// [kPage][groups].
struct HeadCache {
    const uint8_t* keys;
    const uint8_t* values;
    const int32_t* pages;
    int64_t key_stride;  // bytes from one page to the next in the page table's numbering
    int64_t value_stride;
    CacheType type;
    int64_t head_dim;
    // Where keys are kept unrotated: this query's cosines and sines for every position, [page][head_dim / 2][kPage].
    const float* cos;
    const float* sin;
};

// Queries that share a kv head, and what attention has summed for them: o / l is the result, m the highest score.
struct Queries {
    const float* values;  // [count][head_dim], scaled already
    const int32_t* last;  // [count] position of each query: it sees keys 0 .. last
    int64_t count;
    float* highest;  // [count]
    float* total;    // [count]
    float* mixed;    // [count][padded head_dim]
};

// A matrix times one token waits for memory, which four streams fill better than one: it goes by halves of strips, two
// of which are read together. More tokens go panel by panel.
inline int64_t steps(const Panels& w, int64_t tokens) { return tokens == 1 ? 2 * w.strips() : w.count(); }

// How a block's scale is found when it is quantised. Levels are whole numbers: -n .. n - 1, or 0 .. n with a minimum.
enum class SearchKind : int8_t {
    kLargest,    // the largest magnitude becomes level n
    kSigned,     // the value of largest magnitude becomes level -n
    kSpan,       // the smallest value becomes level 0, the largest level n
    kBestScale,  // the best of some scales in the weighted least-squares sense, and of its levels the best fit
    kBestLine,   // the same for a scale and a minimum
    kTable,      // the same for the levels of iq4_nl
};

struct Search {
    SearchKind kind;
    int size;           // values that share a scale
    float levels;       // n
    int steps = 0;      // scales tried beyond the first: on each side of it, or for lines all of them
    float first = 0;    // lines: the first one spans n + first levels,
    float step = 0;     // the next ones this many more
    bool free = false;  // lines: the minimum may be above 0
};

struct Kernels {
    const char* name;
    bool wants_bf16;  // bf16 weights read Activations::bf16, and a bf16 cache is multiplied as such

    // out[t][row] = sum over k, ascending, of w[row][k] * x[t][k] (+ bias), for steps [first, last) of steps(w,
    // tokens). `add` accumulates onto out instead of replacing it. A token's sums do not depend on how many tokens
    // there are.
    void (*matmul)(const Panels& w, int64_t first, int64_t last, const Activations& x, int64_t tokens, float* out,
                   int64_t out_stride, bool add);

    // Rounds `cols` values, a multiple of kBlock, to blocks, kScaleBlocks of which share a scale.
    void (*quantize)(const float* x, int64_t cols, ActivationBlock* blocks);

    // Rounds to bf16; an odd number of columns gets a zero behind it.
    void (*to_bf16)(const float* x, int64_t cols, uint16_t* out);

    // out = x * weight / sqrt(mean(x^2) + eps); the mean is summed in float64.
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t size, float* out);

    // gate[i] = silu(gate[i]) * up[i].
    void (*silu_mul)(float* gate, const float* up, int64_t size);

    // Turns the pairs (x[i], x[i + half]) of one head by (cos[i], sin[i]).
    void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);

    // Writes one token's key and value of a kv head into its page.
    void (*store_key)(const float* key, int64_t head_dim, CacheType type, uint8_t* page, int64_t slot);
    void (*store_value)(const float* value, int64_t head_dim, CacheType type, uint8_t* page, int64_t slot);

    // Attention over positions split * kSplit .. of a cache, in tiles of kPage; sums of the queries are replaced. Keys
    // beyond a query's last add exactly 0. `scratch` has attend_floats(count, head_dim) floats.
    void (*attend)(const Queries& queries, const HeadCache& cache, int64_t split, float* scratch);

    // The highest of every kPeakBlock numbers, of which the last may be fewer. False when one is not finite.
    bool (*peaks)(const float* x, int64_t count, float* out);
    // out[i] = e^((x[i] - most) / temperature); below e^-87 exactly 0. May work in place.
    void (*exponentials)(const float* x, int64_t count, float most, double temperature, float* out);

    // What measures the machine: multiply-accumulates of bytes, and of floats, from registers, and how many there were;
    // and memory read in sequence.
    int64_t (*integer_work)(int64_t rounds, float* sink);
    int64_t (*float_work)(int64_t rounds, float* sink);
    void (*read_work)(const uint8_t* from, int64_t bytes, float* sink);

    // Quantising, sixteen blocks at once: x and weights [size][16]. Scales, and for kSpan and kBestLine what to
    // subtract from scale * level; and the levels of given inverse scales, [size][16].
    void (*search)(const Search& block, const float* x, const float* weights, float* scale, float* least);
    // The lowest and the highest of blocks of 32 values that follow each other, whose scales need no search; and their
    // levels, as take_levels.
    void (*extremes)(const float* x, int64_t blocks, float* low, float* high);
    void (*take_levels)(const float* x, int size, const float* least, const float* inverse, int zero, int top,
                        uint8_t* out);
    void (*take_block_levels)(const float* x, int64_t blocks, const float* least, const float* inverse, int zero,
                              int top, uint8_t* out);
    void (*measure_error)(const float* x, const float* weights, int size, const float* least, const float* step,
                          int zero, int top, float* error);
    void (*take_table_levels)(const float* x, int size, const float* inverse, uint8_t* out);
    // A row's plain numbers, `count` a multiple of 16: their largest magnitude, or NaN when one of them is not finite.
    float (*read_floats)(int32_t format, const uint8_t* from, int64_t count, float* out);

    // Adds the sums of a later split of one query to those before it.
    void (*merge)(float* highest, float* total, float* mixed, float later_highest, float later_total,
                  const float* later_mixed, int64_t padded_width);
};

constexpr int64_t padded_width(int64_t head_dim) { return (head_dim + kPanel - 1) / kPanel * kPanel; }
// Keys or values, scores, and the factors of a product as bf16.
constexpr int64_t attend_floats(int64_t count, int64_t head_dim) {
    return kPage * (padded_width(head_dim) + count) + count * ((head_dim > kPage ? head_dim : kPage) + 1) / 2;
}

// Bytes of one kv head's keys, and of its values, in one page.
int64_t key_page_bytes(CacheType type, int64_t head_dim);
int64_t value_page_bytes(CacheType type, int64_t head_dim);

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;        // AVX2, FMA, F16C
extern const Kernels kAvx512;      // and AVX-512 F, BW, DQ, VL, VNNI
extern const Kernels kAvx512Bf16;  // and AVX-512 BF16
#endif

}  // namespace puna

#endif
