// The table of kernels of one instruction set. Same arguments everywhere; `kernels.inl` is their one definition.
#ifndef PUNA_KERNELS_H
#define PUNA_KERNELS_H

#include <cstdint>

namespace puna {

constexpr int kPanel = 16;  // output rows side by side in a weight panel
constexpr int kPage = 64;   // tokens in a cache page, and keys in a tile of attention

// A matrix of `rows` x `cols` as panels of 16 rows: panel p holds, for each column in order, its 16 rows' values; rows
// beyond the last are 0.
struct Panels {
    const float* data = nullptr;
    const float* bias = nullptr;  // [rows], or none
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t count() const { return (rows + kPanel - 1) / kPanel; }
};

// One head's share of a sequence's cache: keys transposed, [head_dim][kPage], values [kPage][padded head_dim], a page
// each; the strides are floats from one page of this head to the next in the page table's numbering.
struct HeadCache {
    const float* keys;
    const float* values;
    const int32_t* pages;
    int64_t key_stride;
    int64_t value_stride;
};

struct Kernels {
    const char* name;

    // out[t][row] = sum over k, ascending, of w[row][k] * x[t][k] (+ bias), for panels [first, last). `add` accumulates
    // onto out instead of replacing it. A token's sums do not depend on how many tokens there are.
    void (*matmul)(const Panels& w, int64_t first, int64_t last, const float* x, int64_t x_stride, int64_t tokens,
                   float* out, int64_t out_stride, bool add);

    // out = x * weight / sqrt(mean(x^2) + eps); the mean is summed in float64.
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t size, float* out);

    // gate[i] = silu(gate[i]) * up[i].
    void (*silu_mul)(float* gate, const float* up, int64_t size);

    // Turns the pairs (x[i], x[i + half]) of one head by (cos[i], sin[i]).
    void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);

    // Attention of one query, scaled already, over positions 0 .. last of a cache; `out` has head_dim floats. Tiles
    // start at positions 0, 64, 128, ...; keys and values beyond `last` are never read as numbers.
    void (*attend)(const float* query, const HeadCache& cache, int64_t last, int64_t head_dim, float* out);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace puna

#endif
