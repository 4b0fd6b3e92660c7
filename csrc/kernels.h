// The table of kernels of one instruction set. All sets share these signatures; the files kernels_*.inl define the
// kernels once for all sets.
#ifndef PUNA_KERNELS_H
#define PUNA_KERNELS_H

#include <cassert>
#include <cstdint>

#include "panels.h"

namespace puna {

constexpr int kPage = 64;        // tokens in a cache page, and keys in a tile of attention
constexpr int kMaxBlock = 64;    // `block_max` returns one maximum per kMaxBlock values
constexpr int kMaxQueries = 64;  // queries that one call of `attend` accepts
constexpr int kSplit = 256;      // positions per partial attention sum; partial sums are merged in ascending order

// Number of consecutive activation blocks that share a scale when they are multiplied by weights with scales of this
// kind: two if the scales are quantised (K and IQ formats), for which llama.cpp rounds activations in groups of 256;
// otherwise one, as in llama.cpp. See benchmarks/NOTES.md. Rows of these formats have a multiple of eight blocks.
constexpr int scale_blocks(Scales scales) { return head_bytes(scales) ? 2 : 1; }

// 1.5 * 2^23 and its bits. Adding kMagic to a float of small magnitude rounds it to a whole number n, ties to even:
// kMagic + n has the bits kMagicBits + n.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4b400000;

// 32 activations of one token, quantised to 8 bits.
struct ActivationBlock {
    int8_t quants[kBlock];    // x = scale * quants
    float scale;              // largest magnitude of the blocks that share this scale / 128, or the negative of that
    float sum;                // sum of the quants, for formats with minimums
    float half_sum[2];        // sums of the first 16 and of the last 16 quants
    int32_t neg_sum;          // -(sum of the quants), for formats with a zero point
    int32_t neg_half_sum[2];  // -(sums of the first 16 and of the last 16 quants)
    int32_t start;            // kMagicBits - 8 * (sum of the quants), which AVX2 kernels read: see kFloatBits
};
static_assert(sizeof(ActivationBlock) == 64, "one cache line");

// Distance from one token's row to the next, in blocks and in bf16 values: an odd number of cache lines, because
// rows a power of two apart would compete for the same sets of the L1 cache.
constexpr int64_t block_stride(int64_t cols) { return cols / kBlock | 1; }
constexpr int64_t bf16_stride(int64_t cols) { return ((cols + 31) / 32 | 1) * 32; }

// Inputs of a matrix, in the forms that its kernel reads. A form that no matrix reads may be null.
struct Activations {
    const float* values;            // [tokens][cols]
    const uint16_t* bf16;           // [tokens][bf16_stride(cols)]
    const ActivationBlock* blocks;  // [tokens][block_stride(cols)]
    int64_t cols;
};

// The inputs of the tokens from `first` on.
inline Activations rows_from(const Activations& x, int64_t first) {
    return {.values = x.values + first * x.cols,
            .bf16 = x.bf16 ? x.bf16 + first * bf16_stride(x.cols) : nullptr,
            .blocks = x.blocks ? x.blocks + first * block_stride(x.cols) : nullptr,
            .cols = x.cols};
}

enum class CacheType : int32_t { kF32 = 0, kF16 = 1, kBF16 = 30, kQ8_0 = 8 };

// One kv head's part of a sequence's cache. A page holds keys transposed, [head_dim][kPage], and values,
// [kPage][padded head_dim]. In bf16, pairs of rows are interleaved: [head_dim / 2][kPage][2] and
// [kPage / 2][padded head_dim][2]. In q8_0, f32 scales follow the keys, [groups][kPage], and the values,
// [kPage][groups]: one scale for each group of kBlock elements of a token (the last group may be smaller).
struct HeadCache {
    const uint8_t* keys;
    const uint8_t* values;
    const int32_t* pages;
    int64_t key_stride;  // bytes between consecutive page numbers
    int64_t value_stride;
    CacheType type;
    int64_t head_dim;
    // Non-null if keys are cached unrotated: cosines and sines of every position, [page][head_dim / 2][kPage].
    const float* cos;
    const float* sin;
};

// Queries that share a kv head, and their online-softmax sums over one split: weighted_values / exp_sum is the
// attention output.
struct Queries {
    const float* values;  // [count][head_dim], already multiplied by 1 / sqrt(head_dim)
    const int32_t* last;  // [count] position of each query: it attends to keys 0 .. last
    int64_t count;
    float* max_score;        // [count] maximum score
    float* exp_sum;          // [count] sum of exp(score - max_score)
    float* weighted_values;  // [count][padded head_dim] sum of exp(score - max_score) * value
};

// Number of work units of a matrix product. For one token, memory bandwidth is the limit, and four parallel streams use
// it better than one: the unit is half a strip (up to two panels), and both halves are read together. For more tokens
// the unit is a panel.
inline int64_t work_units(const Panels& w, int64_t tokens) { return tokens == 1 ? 2 * w.strips() : w.count(); }

// out[t][row] = sum over k, ascending, of w[row][k] * x[t][k] (+ bias), for some work units of a matrix.
struct MatmulJob {
    const Panels& w;
    const Activations& x;
    int64_t first, last;  // work units [first, last) of work_units(w, tokens)
    int64_t tokens;
    float* out;
    int64_t out_stride;  // distance from one token's row of `out` to the next
    bool add;            // add the result to `out` instead of replacing it
};

// How products of several tokens are divided among threads. Each thread has about `pieces` pieces. A piece consists of
// a multiple of `panels` panels, if the matrices have enough, and of a block of up to `tokens` tokens; 0: of all
// tokens. A thread takes `tiles` items of a prompt's attention at once, if there are many.
struct Division {
    int64_t pieces, panels, tokens, tiles;
};

// Returns the number of tokens of a block, so that no block has a single one of several tokens; `tokens` is positive,
// `most` is 0 or at least 64.
constexpr int64_t token_block(int64_t tokens, int64_t most) {
    assert(tokens > 0);
    if (most == 0 || tokens <= most) return tokens;
    const int64_t blocks = (tokens + most - 1) / most;
    int64_t size = ((tokens + blocks - 1) / blocks + 3) / 4 * 4;  // kernels multiply tiles of four tokens
    while (size > 4 && tokens % size == 1) size -= 4;             // the work units of one token are other ones
    return tokens % size == 1 ? tokens : size;
}

struct Kernels {
    const char* name;
    Division division;
    bool uses_bf16;  // bf16 instructions are used; bf16 matrices then read Activations::bf16

    // A token's result has the same bits for any number of tokens.
    void (*matmul)(const MatmulJob& job);

    // Quantises `cols` values, a multiple of kBlock, to 8 bits. Each `scale_blocks` blocks, one or two, share a scale,
    // with which the value of largest magnitude becomes -128.
    void (*quantize)(const float* x, int64_t cols, int scale_blocks, ActivationBlock* blocks);

    // Rounds to bf16. An odd number of columns is padded with one zero.
    void (*to_bf16)(const float* x, int64_t cols, uint16_t* out);

    // out = x * weight / sqrt(mean(x^2) + eps). The mean is summed in float64.
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t size, float* out);

    // gate[i] = silu(gate[i]) * up[i].
    void (*silu_mul)(float* gate, const float* up, int64_t size);

    // Rotates the pairs (x[i], x[i + half]) of one head by angles with the cosines cos[i] and the sines sin[i].
    void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);

    // Write the key and the value of one token for one kv head into slot `slot` of a page.
    void (*store_key)(const float* key, int64_t head_dim, CacheType type, uint8_t* page, int64_t slot);
    void (*store_value)(const float* value, int64_t head_dim, CacheType type, uint8_t* page, int64_t slot);

    // Attention over positions split * kSplit .. split * kSplit + kSplit - 1, in tiles of kPage keys. Overwrites the
    // queries' sums. Keys after a query's `last` contribute exactly 0. `scratch`: attend_floats(count, head_dim)
    // floats.
    void (*attend)(const Queries& queries, const HeadCache& cache, int64_t split, float* scratch);

    // Merges the sums of a later split of one query into those of the earlier splits.
    void (*merge)(float* max_score, float* exp_sum, float* weighted_values, float later_max, float later_sum,
                  const float* later_values, int64_t padded_width);

    // out[b] = maximum of block b of kMaxBlock values (the last may be shorter). Returns whether all are finite.
    bool (*block_max)(const float* x, int64_t count, float* out);
    // out[i] = exp((x[i] - most) / temperature); results below e^-87 become exactly 0. `out` may be `x`.
    void (*exponentials)(const float* x, int64_t count, float most, double temperature, float* out);

    // Workloads for measuring the machine. The first two multiply-accumulate bytes or floats held in registers and
    // return the number of products; read_work reads memory sequentially.
    int64_t (*integer_work)(int64_t rounds, float* sink);
    int64_t (*float_work)(int64_t rounds, float* sink);
    void (*read_work)(const uint8_t* from, int64_t bytes, float* sink);

    // The following kernels quantise sixteen blocks at once; x and weights are [size][16]. `search` writes the scales
    // and, for kBestAffine, `offset`, with x ~ scale * level - offset. For kAbsMax, kSignedAbsMax and kMinMax it does
    // nothing, because `block_min_max` suffices.
    void (*search)(const Search& block, const float* x, const float* weights, float* scale, float* offset);
    // Minimum and maximum of each consecutive block of 32 values; the scales of kAbsMax, kSignedAbsMax and kMinMax are
    // computed from these two values, without a search.
    void (*block_min_max)(const float* x, int64_t blocks, float* low, float* high);
    // Levels of sixteen blocks, [size][16]: (x + offset) * inverse rounded to the nearest integer, plus `zero`, clamped
    // to 0 .. top.
    void (*quantize_levels)(const float* x, int size, const float* offset, const float* inverse, int zero, int top,
                            uint8_t* out);
    // Does the same as quantize_levels for consecutive blocks of 32 values instead of sixteen transposed blocks.
    void (*quantize_block_levels)(const float* x, int64_t blocks, const float* offset, const float* inverse, int zero,
                                  int top, uint8_t* out);
    // Weighted squared error of sixteen blocks when each value is replaced by its nearest level l * step - offset, with
    // l from -zero to top - zero.
    void (*squared_error)(const float* x, const float* weights, int size, const float* offset, const float* step,
                          int zero, int top, float* error);
    // Indices of the iq4_nl levels nearest to x * inverse, for sixteen blocks, [size][16].
    void (*quantize_table_levels)(const float* x, int size, const float* inverse, uint8_t* out);
    // Converts `count` values (a multiple of 16) of f32, f16 or bf16 to float. Returns their largest magnitude, or NaN
    // if one is not finite.
    float (*read_floats)(Planes type, const uint8_t* from, int64_t count, float* out);
};

constexpr int64_t padded_width(int64_t head_dim) { return (head_dim + kPanel - 1) / kPanel * kPanel; }
// Size of `scratch` of `attend`: a page's keys or values as float32, scores, and scores and queries as bf16.
constexpr int64_t attend_floats(int64_t count, int64_t head_dim) {
    return kPage * (padded_width(head_dim) + count) + (count * (head_dim + kPage) + 1) / 2;
}

// Bytes of one kv head's keys, and of its values, in one page.
int64_t key_page_bytes(CacheType type, int64_t head_dim);
int64_t value_page_bytes(CacheType type, int64_t head_dim);

// Calls body(offset) for each cache line that store_key writes for the token in slot `slot`: offsets of bytes in a
// page's keys. Keys are transposed, so each of a token's elements (in bf16: each pair) is in another line.
template <typename Body>
void for_each_key_line(CacheType type, int64_t head_dim, int64_t slot, const Body& body) {
    const int64_t pair = type == CacheType::kBF16 ? 2 : 1;
    const int64_t bytes = type == CacheType::kF32 ? 4 : type == CacheType::kQ8_0 ? 1 : 2 * pair;
    for (int64_t row = 0; row < head_dim / pair; ++row) body((row * kPage + slot) * bytes);
    if (type != CacheType::kQ8_0) return;
    for (int64_t group = 0; group < (head_dim + kBlock - 1) / kBlock; ++group)
        body(head_dim * kPage + (group * kPage + slot) * 4);
}

// PUNA_ONLY_PORTABLE and PUNA_NO_AVX512 leave kernels out of test builds that do not need them.
#if defined(__x86_64__) && !defined(PUNA_ONLY_PORTABLE)
#define PUNA_X86_KERNELS
#if !defined(PUNA_NO_AVX512)
#define PUNA_AVX512_KERNELS
#endif
#endif

extern const Kernels kPortable;
#if defined(PUNA_X86_KERNELS)
extern const Kernels kAvx2;  // needs AVX2, FMA, F16C
#if defined(PUNA_AVX_VNNI)
extern const Kernels kAvxVnni;  // also needs AVX-VNNI; missing if the compiler does not know it
#endif
#if defined(PUNA_AVX512_KERNELS)
extern const Kernels kAvx512;      // also needs AVX-512 F, BW, DQ, VL, VNNI
extern const Kernels kAvx512Bf16;  // also needs AVX-512 BF16
#endif
#elif defined(__aarch64__)
extern const Kernels kNeonDotprod;  // needs FEAT_DotProd
#endif

}  // namespace puna

#endif
