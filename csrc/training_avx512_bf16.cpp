// The kernels of training.h. A product of two bf16 matrices takes pairs of consecutive elements of the summed
// dimension: the left factor is read row by row, one pair at a time; the right factor is packed, [pair][column][2].

#include <immintrin.h>

#include "formats.h"
#include "half.h"
#include "kernels.h"
#include "training.h"

namespace puna {
namespace train_bf16 {
#include "vec.h"

constexpr int64_t kRows = 48;  // queries of a block: eight tiles of six rows
constexpr int64_t kTile = 64;  // columns of a tile: four registers

// Masked versions for the last lanes of a row.
PUNA_INLINE f32x16 widen_part(const uint16_t* from, int64_t count) {
    if (count >= kLanes) return as_f32(shift_right(widen_u16(from), -16));
    const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), from);
    return f32x16{{(f32_reg)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)}};
}
PUNA_INLINE void narrow_part(uint16_t* to, const f32x16& value, int64_t count) {
    if (count >= kLanes) return store_bf16(to, value);
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1),
                             (__m256i)_mm512_cvtneps_pbh((__m512)value.reg[0]));
}
// The first `count` lanes, at most 16; the others become 0.
PUNA_INLINE f32x16 first_lanes(const f32x16& value, int64_t count) {
    const __mmask16 kept = count <= 0 ? 0 : count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
    return f32x16{{(f32_reg)_mm512_maskz_mov_ps(kept, (__m512)value.reg[0])}};
}
PUNA_INLINE f32x16 from_bytes(__m128i bytes) {
    return f32x16{{(f32_reg)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))}};
}

#include "training_rows.inl"

// out[r][0 .. 63] (+)= the sum over `pairs` of left[r][pair] * right[pair][column]; strides are in pairs and floats.
template <int kHeight>
static void tile(const uint32_t* left, int64_t left_stride, const uint32_t* right, int64_t right_stride, int64_t pairs,
                 float* out, int64_t out_stride, bool add) {
    __m512 sum[kHeight][4];
    for (int r = 0; r < kHeight; ++r)
        for (int c = 0; c < 4; ++c)
            sum[r][c] = add ? _mm512_loadu_ps(out + r * out_stride + 16 * c) : _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; ++p) {
        __m512bh column[4];
        for (int c = 0; c < 4; ++c) column[c] = (__m512bh)_mm512_loadu_si512(right + p * right_stride + 16 * c);
        for (int r = 0; r < kHeight; ++r) {
            const __m512bh both = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(left[r * left_stride + p]));
            for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], both, column[c]);
        }
    }
    for (int r = 0; r < kHeight; ++r)
        for (int c = 0; c < 4; ++c) _mm512_storeu_ps(out + r * out_stride + 16 * c, sum[r][c]);
}

// The same for any number of rows and a number of columns that is a multiple of 64.
static void product(const uint32_t* left, int64_t left_stride, int64_t rows, const uint32_t* right, int64_t columns,
                    int64_t right_stride, int64_t pairs, float* out, int64_t out_stride, bool add) {
    for (int64_t c = 0; c < columns; c += kTile) {
        int64_t r = 0;
        for (; r + 6 <= rows; r += 6)
            tile<6>(left + r * left_stride, left_stride, right + c, right_stride, pairs, out + r * out_stride + c,
                    out_stride, add);
        const uint32_t* rest = left + r * left_stride;
        float* to = out + r * out_stride + c;
        switch (rows - r) {
            case 5:
                tile<5>(rest, left_stride, right + c, right_stride, pairs, to, out_stride, add);
                break;
            case 4:
                tile<4>(rest, left_stride, right + c, right_stride, pairs, to, out_stride, add);
                break;
            case 3:
                tile<3>(rest, left_stride, right + c, right_stride, pairs, to, out_stride, add);
                break;
            case 2:
                tile<2>(rest, left_stride, right + c, right_stride, pairs, to, out_stride, add);
                break;
            case 1:
                tile<1>(rest, left_stride, right + c, right_stride, pairs, to, out_stride, add);
                break;
            default:
                break;
        }
    }
}

static int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Transposes words: out[word][row] = the words of a row, for `rows` rows; further columns up to `to_rows` become 0.
static void transpose(const uint16_t* from, int64_t stride, int64_t rows, int64_t words, uint32_t* out,
                      int64_t to_rows) {
    for (int64_t w = 0; w < words; ++w)
        for (int64_t r = rows; r < to_rows; ++r) out[w * to_rows + r] = 0;
    const __m512i steps = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(static_cast<int32_t>(2 * stride)));
    int64_t r = 0;
    for (; r + 16 <= rows; r += 16)
        for (int64_t w = 0; w < words; ++w)
            _mm512_storeu_si512(out + w * to_rows + r, _mm512_i32gather_epi32(steps, from + r * stride + 2 * w, 1));
    for (; r < rows; ++r)
        for (int64_t w = 0; w < words; ++w) __builtin_memcpy(out + w * to_rows + r, from + r * stride + 2 * w, 4);
}

// Packs pairs of rows: out[row / 2][column] = (from[row][column], from[row + 1][column]). Missing rows are 0.
static void pair_rows(const uint16_t* from, int64_t stride, int64_t rows, int64_t columns, int64_t to_rows,
                      uint32_t* out) {
    for (int64_t r = 0; r < to_rows; r += 2)
        for (int64_t c = 0; c < columns; c += kLanes) {
            const __m512i low =
                r < rows
                    ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + r * stride + c)))
                    : _mm512_setzero_si512();
            const __m512i high = r + 1 < rows ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(
                                                    reinterpret_cast<const __m256i*>(from + (r + 1) * stride + c)))
                                              : _mm512_setzero_si512();
            _mm512_storeu_si512(out + r / 2 * columns + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

// Packs pairs of rows of floats in the same way, rounding them.
PUNA_INLINE __m512i pair_of(const f32x16& low, const f32x16& high) {
    const __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low.reg[0]));
    const __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high.reg[0]));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

// Memory of a head: consecutive parts, each aligned to 64 bytes.
struct Parts {
    uint8_t* next;
    template <typename Type>
    Type* take(int64_t count) {
        Type* out = reinterpret_cast<Type*>(next);
        next += padded(count * static_cast<int64_t>(sizeof(Type)), 64);
        return out;
    }
};

static int64_t scratch(int64_t tokens, int64_t width) {
    const int64_t length = padded(tokens, kTile), wide = padded(width, kTile);
    // forward: keys, values, scores, weights; backward: see attend_backward
    return 4 * (4 * length * wide + 2 * length * wide + 2 * kRows * length + kRows * length + 2 * (kRows / 2) * length +
                (kRows + 2) * wide * 3 + kRows) +
           64 * 32;
}

// Replaces the scores of a block of queries by exp(score * scale - from), which is the row's maximum, or its lse. Keys
// after the query become 0. Returns nothing; `sums` receives the sums of rows if it is not null.
static void exponentials(float* scores, int64_t stride, int64_t keys, int64_t query, float scale, float from) {
    const f32x16 times = broadcast(scale), minus = broadcast(from);
    float* row = scores;
    (void)stride;
    int64_t k = 0;
    for (; k + kLanes <= query + 1; k += kLanes) store(row + k, exp(load(row + k) * times - minus));
    for (; k < keys; k += kLanes) {
        store(row + k, first_lanes(exp(load(row + k) * times - minus), query + 1 - k));
    }
}

static void attend(const TrainAttention& job, int64_t head, uint8_t* memory) {
    const int64_t width = job.width, stride = (job.heads + 2 * job.kv_heads) * width, words = width / 2;
    const int64_t kv = head / (job.heads / job.kv_heads), length = padded(job.tokens, kTile),
                  wide = padded(width, kTile);
    Parts parts{memory};
    uint32_t* keys = parts.take<uint32_t>(words * length);       // [pair of elements][key]
    uint32_t* values = parts.take<uint32_t>(length / 2 * wide);  // [pair of keys][element]
    float* scores = parts.take<float>(kRows * length);
    uint16_t* weights = parts.take<uint16_t>(kRows * length);
    float* sums = parts.take<float>((kRows + 2) * wide);
    const uint16_t* q = job.qkv + head * width;
    transpose(job.qkv + (job.heads + kv) * width, stride, job.tokens, words, keys, length);
    const uint16_t* v = job.qkv + (job.heads + job.kv_heads + kv) * width;
    pair_rows(v, stride, job.tokens, width, length, values);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
    for (int64_t first = 0; first < job.tokens; first += kRows) {
        const int64_t rows = job.tokens - first < kRows ? job.tokens - first : kRows;
        const int64_t end = padded(first + rows, kTile);
        product(reinterpret_cast<const uint32_t*>(q + first * stride), stride / 2, rows, keys, end, length, words,
                scores, length, false);
        float inverse[kRows];
        for (int64_t r = 0; r < rows; ++r) {
            float* row = scores + r * length;
            const int64_t query = first + r;
            float high = row[query];
            f32x16 most = broadcast(high);
            for (int64_t k = 0; k + kLanes <= query; k += kLanes) most = max(most, load(row + k));
            for (int64_t k = query / kLanes * kLanes; k < query; ++k) high = row[k] > high ? row[k] : high;
            const float rest = reduce_max(most);
            high = (rest > high ? rest : high) * scale;
            exponentials(row, length, end, query, scale, high);
            f32x16 total = broadcast(0.0f);
            for (int64_t k = 0; k < end; k += kLanes) {
                const f32x16 value = load(row + k);
                total = total + value;
                store_bf16(weights + r * length + k, value);
            }
            const float sum = reduce_add(total);
            inverse[r] = 1.0f / sum;
            job.lse[head * job.tokens + query] = high + __builtin_logf(sum);
        }
        // Columns of `sums` beyond the width are computed from whatever follows a row of `values`, and not read.
        product(reinterpret_cast<const uint32_t*>(weights), length / 2, rows, values, wide, width, end / 2, sums, wide,
                false);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t e = 0; e < width; e += kLanes)
                store_bf16(job.out + (first + r) * job.heads * width + head * width + e,
                           load(sums + r * wide + e) * broadcast(inverse[r]));
    }
}

static void write_columns(const float* from, int64_t from_stride, int64_t rows, int64_t width, uint16_t* to,
                          int64_t stride) {
    const __m512i steps = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(static_cast<int32_t>(4 * from_stride)));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t e = 0; e < width; e += kLanes)
            store_bf16(to + r * stride + e,
                       f32x16{{(f32_reg)_mm512_i32gather_ps(steps, from + e * from_stride + r, 1)}});
}

// Per block of queries: S = Q K', P = exp(S - lse), dP = dO V', dS = P (dP - sum(dO O)), dQ = dS K, and, transposed so
// that their right factors are pairs of queries, dV' += dO' P and dK' += Q' dS.
static void attend_backward(const TrainAttention& job, int64_t kv, uint8_t* memory) {
    const int64_t width = job.width, stride = (job.heads + 2 * job.kv_heads) * width, words = width / 2;
    const int64_t group = job.heads / job.kv_heads, length = padded(job.tokens, kTile), wide = padded(width, kTile);
    const int64_t out_stride = job.heads * width;
    Parts parts{memory};
    uint32_t* keys = parts.take<uint32_t>(words * length);
    uint32_t* values = parts.take<uint32_t>(words * length);
    uint32_t* key_pairs = parts.take<uint32_t>(length / 2 * wide);
    float* grad_keys = parts.take<float>(width * length);    // [element][key]
    float* grad_values = parts.take<float>(width * length);  // [element][key]
    float* scores = parts.take<float>(kRows * length);
    float* grad_scores = parts.take<float>(kRows * length);
    uint16_t* rounded = parts.take<uint16_t>(kRows * length);
    uint32_t* weight_pairs = parts.take<uint32_t>(kRows / 2 * length);
    uint32_t* score_pairs = parts.take<uint32_t>(kRows / 2 * length);
    uint32_t* pairs = parts.take<uint32_t>(kRows / 2 * wide);
    uint32_t* columns = parts.take<uint32_t>(wide * (kRows / 2));
    float* sums = parts.take<float>((kRows + 2) * wide);
    const uint16_t* k = job.qkv + (job.heads + kv) * width;
    transpose(k, stride, job.tokens, words, keys, length);
    transpose(k + job.kv_heads * width, stride, job.tokens, words, values, length);
    pair_rows(k, stride, job.tokens, width, length, key_pairs);
    __builtin_memset(grad_keys, 0, static_cast<size_t>(4 * width * length));
    __builtin_memset(grad_values, 0, static_cast<size_t>(4 * width * length));
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
        for (int64_t first = 0; first < job.tokens; first += kRows) {
            const int64_t rows = job.tokens - first < kRows ? job.tokens - first : kRows;
            const int64_t end = padded(first + rows, kTile), even = padded(rows, 2);
            const uint16_t* q = job.qkv + first * stride + head * width;
            const uint16_t* grad = job.grad + first * out_stride + head * width;
            const uint16_t* out = job.out + first * out_stride + head * width;
            product(reinterpret_cast<const uint32_t*>(q), stride / 2, rows, keys, end, length, words, scores, length,
                    false);
            product(reinterpret_cast<const uint32_t*>(grad), out_stride / 2, rows, values, end, length, words,
                    grad_scores, length, false);
            for (int64_t r = 0; r < even; ++r) {
                float *row = scores + r * length, *grad_row = grad_scores + r * length;
                if (r >= rows) {  // the missing row of the last pair
                    for (int64_t j = 0; j < end; ++j) row[j] = grad_row[j] = 0.0f;
                    continue;
                }
                exponentials(row, length, end, first + r, scale, job.lse[head * job.tokens + first + r]);
                f32x16 dot = broadcast(0.0f);
                for (int64_t e = 0; e < width; e += kLanes)
                    dot = fma(widen(grad + r * out_stride + e), widen(out + r * out_stride + e), dot);
                const f32x16 minus = broadcast(reduce_add(dot)), times = broadcast(scale);
                for (int64_t j = 0; j < end; j += kLanes) {
                    const f32x16 value = load(row + j) * (load(grad_row + j) - minus) * times;
                    store(grad_row + j, value);
                    store_bf16(rounded + r * length + j, value);
                }
            }
            for (int64_t r = 0; r < even; r += 2)
                for (int64_t j = 0; j < end; j += kLanes) {
                    const float *row = scores + r * length + j, *grad_row = grad_scores + r * length + j;
                    _mm512_storeu_si512(weight_pairs + r / 2 * length + j, pair_of(load(row), load(row + length)));
                    _mm512_storeu_si512(score_pairs + r / 2 * length + j,
                                        pair_of(load(grad_row), load(grad_row + length)));
                }
            product(reinterpret_cast<const uint32_t*>(rounded), length / 2, rows, key_pairs, wide, width, end / 2, sums,
                    wide, false);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t e = 0; e < width; e += kLanes)
                    store_bf16(job.grad_qkv + (first + r) * stride + head * width + e, load(sums + r * wide + e));
            pair_rows(grad, out_stride, rows, width, even, pairs);
            for (int64_t p = 0; p < even / 2; ++p)
                for (int64_t e = 0; e < width; ++e) columns[e * (kRows / 2) + p] = pairs[p * width + e];
            product(columns, kRows / 2, width, weight_pairs, end, length, even / 2, grad_values, length, true);
            pair_rows(q, stride, rows, width, even, pairs);
            for (int64_t p = 0; p < even / 2; ++p)
                for (int64_t e = 0; e < width; ++e) columns[e * (kRows / 2) + p] = pairs[p * width + e];
            product(columns, kRows / 2, width, score_pairs, end, length, even / 2, grad_keys, length, true);
        }
    uint16_t* to = job.grad_qkv + (job.heads + kv) * width;
    write_columns(grad_keys, length, job.tokens, width, to, stride);
    write_columns(grad_values, length, job.tokens, width, to + job.kv_heads * width, stride);
}

#include "training_blocks.inl"

}  // namespace train_bf16

extern const TrainKernels kTrainBf16 = {
    .scratch = train_bf16::scratch,
    .attend = train_bf16::attend,
    .attend_backward = train_bf16::attend_backward,
    .norm = train_bf16::norm,
    .norm_backward = train_bf16::norm_backward,
    .gated = train_bf16::gated,
    .gated_backward = train_bf16::gated_backward,
    .rotate = train_bf16::rotate,
    .cross_entropy = train_bf16::cross_entropy,
    .decoder = train_bf16::decoder,
    .widen = train_bf16::widen_row,
    .squares = train_bf16::squares,
};

}  // namespace puna
