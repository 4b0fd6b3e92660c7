// The kernels, written once over V16 (vec.h) and compiled for each instruction set. No standard library templates here:
// the linker would be free to use one set's copy everywhere.

#include "vec.h"

// A tile of kTokens x kGroup panels whose sums stay in registers.
template <int kTokens, int kGroup>
PUNA_INLINE void tile(const Panels& w, int64_t panel, const float* x, int64_t x_stride, float* out, int64_t out_stride,
                      bool add) {
    V16 sum[kTokens][kGroup];
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroup; ++g) sum[t][g] = broadcast(0.0f);
    const float* from = w.data + panel * kPanel * w.cols;
    const int64_t step = kPanel * w.cols;
    for (int64_t k = 0; k < w.cols; ++k) {
        V16 weight[kGroup];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) weight[g] = load(from + g * step + k * kPanel);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
            const V16 value = broadcast(x[t * x_stride + k]);
#pragma GCC unroll 8
            for (int g = 0; g < kGroup; ++g) sum[t][g] = madd(weight[g], value, sum[t][g]);
        }
    }
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroup; ++g) {
            const int64_t row = (panel + g) * kPanel;
            const int64_t valid = w.rows - row < kPanel ? w.rows - row : kPanel;
            float values[kPanel];
            store(values, sum[t][g]);
            float* to = out + t * out_stride + row;
            for (int64_t r = 0; r < valid; ++r) {
                const float value = w.bias ? values[r] + w.bias[row + r] : values[r];
                to[r] = add ? to[r] + value : value;
            }
        }
}

#if defined(__AVX512F__)
constexpr int kTileTokens = 12, kTileGroup = 2, kVectorGroup = 8;
#elif defined(__AVX2__)
constexpr int kTileTokens = 6, kTileGroup = 1, kVectorGroup = 4;
#else
constexpr int kTileTokens = 3, kTileGroup = 1, kVectorGroup = 2;
#endif

template <int kGroup>
PUNA_INLINE void columns(const Panels& w, int64_t panel, const float* x, int64_t x_stride, int64_t tokens, float* out,
                         int64_t out_stride, bool add) {
    int64_t t = 0;
    for (; t + kTileTokens <= tokens; t += kTileTokens)
        tile<kTileTokens, kGroup>(w, panel, x + t * x_stride, x_stride, out + t * out_stride, out_stride, add);
    for (; t < tokens; ++t) tile<1, kGroup>(w, panel, x + t * x_stride, x_stride, out + t * out_stride, out_stride, add);
}

static void matmul(const Panels& w, int64_t first, int64_t last, const float* x, int64_t x_stride, int64_t tokens,
                   float* out, int64_t out_stride, bool add) {
    int64_t panel = first;
    if (tokens < kTileTokens) {
        // Few tokens: many panels at once, so that enough sums are under way to hide the latency of each.
        for (; panel + kVectorGroup <= last; panel += kVectorGroup)
            for (int64_t t = 0; t < tokens; ++t)
                tile<1, kVectorGroup>(w, panel, x + t * x_stride, x_stride, out + t * out_stride, out_stride, add);
    } else {
        for (; panel + kTileGroup <= last; panel += kTileGroup)
            columns<kTileGroup>(w, panel, x, x_stride, tokens, out, out_stride, add);
    }
    for (; panel < last; ++panel) columns<1>(w, panel, x, x_stride, tokens, out, out_stride, add);
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t size, float* out) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
    const float scale = static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(size) + eps));
    for (int64_t i = 0; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

// A part of an array that may end inside a vector.
PUNA_INLINE V16 load_some(const float* from, int64_t count) {
    if (count >= kLanes) return load(from);
    float values[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = from[i];
    return load(values);
}

PUNA_INLINE void store_some(float* to, const V16& value, int64_t count) {
    if (count >= kLanes) return store(to, value);
    float values[kLanes];
    store(values, value);
    for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

static void silu_mul(float* gate, const float* up, int64_t size) {
    const V16 minus = broadcast(-1.0f), one = broadcast(1.0f);
    for (int64_t i = 0; i < size; i += kLanes) {
        const V16 x = load_some(gate + i, size - i);
        const V16 below = exponential(x * minus) + one;  // 1 + e^-x
        V16 y;
        PUNA_EACH y.part[i_] = x.part[i_] / below.part[i_];
        store_some(gate + i, y * load_some(up + i, size - i), size - i);
    }
}

static void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

static void attend(const float* query, const HeadCache& cache, int64_t last, int64_t head_dim, float* out) {
    constexpr int kTiles = kPage / kLanes;
    const int64_t padded = (head_dim + kLanes - 1) / kLanes * kLanes;
    float running = -__builtin_inff(), total = 0.0f;
    for (int64_t e = 0; e < head_dim; ++e) out[e] = 0.0f;
    for (int64_t start = 0; start <= last; start += kPage) {
        const int64_t page = cache.pages[start / kPage];
        const float* keys = cache.keys + page * cache.key_stride;
        const float* values = cache.values + page * cache.value_stride;
        const int64_t valid = last + 1 - start < kPage ? last + 1 - start : kPage;
        V16 sum[kTiles];
        for (int i = 0; i < kTiles; ++i) sum[i] = broadcast(0.0f);
        for (int64_t e = 0; e < head_dim; ++e) {
            const V16 q = broadcast(query[e]);
#pragma GCC unroll 4
            for (int i = 0; i < kTiles; ++i) sum[i] = madd(load(keys + e * kPage + i * kLanes), q, sum[i]);
        }
        float scores[kPage];
        for (int i = 0; i < kTiles; ++i) store(scores + i * kLanes, sum[i]);
        float highest = running;
        for (int64_t j = 0; j < valid; ++j) highest = scores[j] > highest ? scores[j] : highest;
        for (int64_t j = 0; j < kPage; ++j) scores[j] = j < valid ? scores[j] - highest : -1000.0f;
        for (int i = 0; i < kTiles; ++i) store(scores + i * kLanes, exponential(load(scores + i * kLanes)));
        float rescale[kLanes];
        store(rescale, exponential(broadcast(running - highest)));
        total *= rescale[0];
        for (int64_t j = 0; j < valid; ++j) total += scores[j];
        const V16 shrink = broadcast(rescale[0]);
        for (int64_t e = 0; e < head_dim; e += kLanes) {
            V16 mixed = load_some(out + e, head_dim - e) * shrink;
            for (int64_t j = 0; j < valid; ++j) mixed = madd(load(values + j * padded + e), broadcast(scores[j]), mixed);
            store_some(out + e, mixed, head_dim - e);
        }
        running = highest;
    }
    for (int64_t e = 0; e < head_dim; ++e) out[e] /= total;
}
