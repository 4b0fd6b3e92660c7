// See quantize.h. Block layouts follow ggml (ggml-common.h).
//
// A group is sixteen blocks, each with its own scale. They are transposed, so that a register holds one value of each
// block. The search for scales (kernels_quantize.inl) comes first. In the K formats the scales (and minimums) of 256
// values are then rounded to small integers times a common f16 unit. The levels are computed last, from the rounded
// scales.

#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "half.h"
#include "threads.h"

namespace puna {

namespace {

constexpr int kSuper = 256, kGroup = 16;
// Values above this limit need scales beyond float16 in every format; squares of values below it stay finite.
constexpr float kLargest = 1e15f;
constexpr int64_t kWorthAThread = 1 << 16;   // quantising this many values takes longer than starting a thread
constexpr double kMinimumImportance = 1e-6;  // added to importance / mean importance, so that no column has weight 0

using K = SearchKind;

constexpr const char* kTooLarge = "a value needs a scale beyond float16's 65504";

bool infinite(uint16_t half) { return (half & 0x7c00u) == 0x7c00u; }

float inverse_of(float value) { return value != 0.0f ? 1.0f / value : 0.0f; }

int nearest(float value, int low, int high) {
    return std::min(high, std::max(low, static_cast<int>(std::lrint(value))));
}

// Rounds `count` scales that share a unit to integers -low .. high. Returns the unit as f16. Of 13 units around the one
// that maps the largest scale to the end of the range, the unit with the smallest weighted squared error is chosen.
uint16_t share_unit(const float* scale, const float* weight, int count, int low, int high, int* out) {
    float maximum = 0.0f;
    for (int b = 0; b < count; ++b)
        if (std::fabs(scale[b]) > std::fabs(maximum)) maximum = scale[b];
    std::fill(out, out + count, 0);
    if (std::fabs(maximum) < 1e-30f) return 0;
    // In signed formats the largest scale maps to -low, because their range is one step longer on the negative side.
    const float end = low > 0 ? static_cast<float>(-low) : static_cast<float>(high);
    float best = 0.0f, unit = maximum / end;
    for (int step = -6; step <= 6; ++step) {
        const float inverse = (end + 0.1f * static_cast<float>(step)) / maximum;
        float lx = 0.0f, ll = 0.0f;
        for (int b = 0; b < count; ++b) {
            const float level = static_cast<float>(nearest(inverse * scale[b], -low, high));
            lx += weight[b] * level * scale[b];
            ll += weight[b] * level * level;
        }
        if (ll > 0.0f && lx * lx > best * ll) {
            best = lx * lx / ll;
            unit = lx / ll;
        }
    }
    const uint16_t half = to_half(unit);
    const float inverse = inverse_of(from_half(half));
    for (int b = 0; b < count; ++b) out[b] = nearest(inverse * scale[b], -low, high);
    return half;
}

// Returns the value of largest magnitude, with its sign (ties: the first).
float signed_largest(const float* x, float low, float high) {
    if (high != -low) return high > -low ? high : low;
    for (int i = 0; high > 0.0f; ++i)
        if (std::fabs(x[i]) == high) return x[i];
    return 0.0f;
}

}  // namespace

struct Quantizer::Group {
    float x[32 * kGroup];       // [size][16]
    float weight[32 * kGroup];  // [size][16]
    float total[kGroup];        // sum of each block's weights
    float scale[kGroup] = {}, offset[kGroup] = {}, inverse[kGroup] = {};
    int small[kGroup] = {}, small_offset[kGroup] = {};  // K formats: scale and offset in units
    uint16_t unit[2] = {}, offset_unit[2] = {};         // K formats: units, one for each 256 values
    // transposed: levels as the kernels write them, [size][16]. level: the same levels block by block, [16][size].
    uint8_t transposed[32 * kGroup], level[32 * kGroup];
    int64_t blocks;  // number of blocks that are not padding
    const Search* search;
};

bool can_quantize(const FormatTraits& from, const FormatTraits& to) { return is_float(from.planes) && to.quantization; }

Quantizer::Quantizer(const Kernels& kernels, const FormatTraits& from, const FormatTraits& to, int64_t cols,
                     const float* importance)
    : kernels_(kernels), from_(from), to_(to), cols_(cols), importance_(importance) {
    // Rounds up to a multiple of the largest group: 16 blocks of 32 values.
    const size_t padded_cols = static_cast<size_t>((cols + 511) / 512 * 512);
    x_.assign(padded_cols, 0.0f);
    if (!importance) return;
    importance_padded_.assign(padded_cols, 0.0f);
    double mean = 0.0;
    for (int64_t k = 0; k < cols; ++k) mean += importance[k];
    mean /= static_cast<double>(cols);
    // Division by the mean makes the result independent of the unit of importance.
    for (int64_t k = 0; k < cols; ++k)
        importance_padded_[static_cast<size_t>(k)] =
            static_cast<float>((mean > 0.0 ? importance[k] / mean : 1.0) + kMinimumImportance);
}

const char* Quantizer::row(const uint8_t* from, uint8_t* out) {
    const float maximum = kernels_.read_floats(from_.planes, from, cols_, x_.data());
    if (std::isnan(maximum)) return "a value is not a finite number";
    if (maximum > kLargest) return kTooLarge;
    if (importance_) {
        double power = 0.0;
        for (const float x : x_) power += static_cast<double>(x) * x;
        power_ = static_cast<float>(power / static_cast<double>(cols_) * (to_.quantization->largest_scale ? 2 : 1));
    }
    const Quantization& how = *to_.quantization;
    Group group;
    group.search = importance_ ? &how.weighted : &how.plain;
    if (group.search->kind <= K::kMinMax) return plain_row(out);
    const int size = group.search->size;
    for (int64_t first = 0; first < cols_; first += size * kGroup) {
        group.blocks = std::min<int64_t>(kGroup, (cols_ - first) / size);
        for (int b = 0; b < kGroup; ++b)
            for (int i = 0; i < size; ++i) group.x[i * kGroup + b] = x_[static_cast<size_t>(first + b * size + i)];
        weigh(group, first);
        kernels_.search(*group.search, group.x, group.weight, group.scale, group.offset);
        if (!pack(group, out + first / to_.values * to_.bytes)) return kTooLarge;
    }
    return nullptr;
}

// Quantises a row without transposing: the scale of each block is computed from its block_min_max (kAbsMax,
// kSignedAbsMax, kMinMax).
const char* Quantizer::plain_row(uint8_t* out) const {
    constexpr int64_t kAtOnce = 16;
    float low[kAtOnce], high[kAtOnce], scale[kAtOnce], offset[kAtOnce] = {}, inverse[kAtOnce];
    uint8_t level[kAtOnce * 32];
    const Quantization& how = *to_.quantization;
    const Search& search = how.plain;
    for (int64_t first = 0; first < cols_ / 32; first += kAtOnce) {
        const int64_t count = std::min(kAtOnce, cols_ / 32 - first);
        const float* const x = x_.data() + 32 * first;
        kernels_.block_min_max(x, count, low, high);
        for (int64_t b = 0; b < count; ++b) {
            if (search.kind == K::kMinMax) {
                scale[b] = (high[b] - low[b]) / search.levels;
                offset[b] = 0.0f - low[b];
            } else {
                scale[b] = search.kind == K::kSignedAbsMax
                               ? signed_largest(x + 32 * b, low[b], high[b]) / -search.levels
                               : std::max(high[b], -low[b]) / search.levels;
            }
            // As in ggml, levels are relative to the stored scale if importance is given, else to the unrounded scale.
            inverse[b] = inverse_of(importance_ ? from_half(to_half(scale[b])) : scale[b]);
        }
        kernels_.quantize_block_levels(x, count, offset, inverse, how.zero, how.top, level);
        for (int64_t b = 0; b < count; ++b, out += to_.bytes) {
            const uint16_t half = to_half(scale[b]), half_offset = to_half(0.0f - offset[b]);
            if (infinite(half) || infinite(half_offset)) return kTooLarge;
            how.write({.level = level + 32 * b, .scale = half, .minimum = half_offset}, out);
        }
    }
    return nullptr;
}

// Sets the weights of the group that starts at column `first`, as ggml does for each format.
void Quantizer::weigh(Group& group, int64_t first) const {
    const int size = group.search->size;
    const Quantization& how = *to_.quantization;
    const Weights kind = how.weights;
    if (!importance_ && kind == Weights::kNone) return;
    float power[kGroup] = {};
    for (int i = 0; i < size; ++i)
        for (int b = 0; b < kGroup; ++b) power[b] += group.x[i * kGroup + b] * group.x[i * kGroup + b];
    std::fill(group.total, group.total + kGroup, 0.0f);
    for (int b = 0; b < kGroup; ++b) power[b] /= static_cast<float>(size);
    for (int i = 0; i < size; ++i)
        for (int b = 0; b < kGroup; ++b) {
            const float mean = how.block_power ? 2.0f * power[b] : power_;
            const float x = group.x[i * kGroup + b];
            float weight = 1.0f;
            if (importance_) {
                const float column = importance_padded_[static_cast<size_t>(first + b * size + i)];
                weight = how.importance_alone ? column : column * std::sqrt(mean + x * x);
            } else if (kind == Weights::kSquare) {
                weight = x * x;
            } else if (kind == Weights::kMagnitude) {
                weight = std::fabs(x);
            } else {
                weight = std::sqrt(power[b]) + std::fabs(x);
            }
            group.weight[i * kGroup + b] = weight;
            group.total[b] += weight;
        }
}

// The scale and minimum of a block were rounded separately and may not be the best pair. Tries all pairs in which each
// differs from the rounded number by at most one step, and keeps the pair with the smallest error.
void Quantizer::refine(Group& group) const {
    const int size = group.search->size, per = kSuper / size;
    const bool lines = group.search->kind == K::kBestAffine;
    const Quantization& how = *to_.quantization;
    const int high = how.largest_scale, low = lines ? 0 : -high - 1;
    int small[kGroup], small_offset[kGroup];
    std::copy(group.small, group.small + kGroup, small);
    std::copy(group.small_offset, group.small_offset + kGroup, small_offset);
    float best[kGroup];
    std::fill(best, best + kGroup, HUGE_VALF);
    for (int way = 0; way < (lines ? 9 : 3); ++way) {
        // 0, 1, -1: the current value comes first, so that it wins ties.
        const int by = (way % 3 + 1) % 3 - 1, below = (way / 3 + 1) % 3 - 1;
        int here[kGroup], offset_here[kGroup];
        float step[kGroup], offset[kGroup], error[kGroup];
        for (int b = 0; b < kGroup; ++b) {
            here[b] = std::min(high, std::max(low, small[b] + by));
            offset_here[b] = lines ? std::min(high, std::max(0, small_offset[b] + below)) : 0;
            step[b] = from_half(group.unit[b / per]) * static_cast<float>(here[b]);
            offset[b] = from_half(group.offset_unit[b / per]) * static_cast<float>(offset_here[b]);
        }
        kernels_.squared_error(group.x, group.weight, size, offset, step, how.zero, how.top, error);
        for (int b = 0; b < kGroup; ++b)
            if (error[b] < best[b]) {
                best[b] = error[b];
                group.small[b] = here[b];
                group.small_offset[b] = offset_here[b];
            }
    }
}

// Rounds the scales to the format's precision, computes levels from the rounded scales, and writes the blocks. Returns
// false if a scale does not fit into f16.
bool Quantizer::pack(Group& group, uint8_t* out) const {
    const int size = group.search->size, per = kSuper / size;
    const Quantization& how = *to_.quantization;
    const bool shared = how.largest_scale > 0;  // the scales of a block share units
    const bool table = group.search->kind == K::kTable;
    const bool searched = importance_ != nullptr || table;
    for (int s = 0; shared && s < kGroup / per; ++s) {
        const int at = s * per;
        const bool lines = group.search->kind == K::kBestAffine;
        const int high = how.largest_scale;
        group.unit[s] =
            share_unit(group.scale + at, group.total + at, per, lines ? 0 : high + 1, high, group.small + at);
        if (lines)
            group.offset_unit[s] =
                share_unit(group.offset + at, group.total + at, per, 0, high, group.small_offset + at);
    }
    for (int s = 0; shared && s < kGroup / per; ++s)
        if (infinite(group.unit[s]) || infinite(group.offset_unit[s])) return false;
    if (shared) refine(group);
    uint16_t half[kGroup], half_offset[kGroup];
    float add[kGroup];
    for (int b = 0; b < kGroup; ++b) {
        half[b] = to_half(group.scale[b]);
        half_offset[b] = to_half(0.0f - group.offset[b]);
        if (!shared && (infinite(half[b]) || infinite(half_offset[b]))) return false;
        float step = searched ? from_half(half[b]) : group.scale[b];
        add[b] = searched ? -from_half(half_offset[b]) : group.offset[b];
        if (shared) {
            step = from_half(group.unit[b / per]) * static_cast<float>(group.small[b]);
            add[b] = from_half(group.offset_unit[b / per]) * static_cast<float>(group.small_offset[b]);
        }
        group.inverse[b] = inverse_of(step);
    }
    if (table)
        kernels_.quantize_table_levels(group.x, size, group.inverse, group.transposed);
    else
        kernels_.quantize_levels(group.x, size, add, group.inverse, how.zero, how.top, group.transposed);
    for (int b = 0; b < kGroup; ++b)
        for (int i = 0; i < size; ++i) group.level[b * size + i] = group.transposed[i * kGroup + b];

    const int64_t count = group.blocks * size / to_.values;
    for (int64_t s = 0; s < count; ++s, out += to_.bytes)
        how.write({.level = group.level + s * to_.values,
                   .scale = shared ? group.unit[s] : half[s],
                   .minimum = shared ? group.offset_unit[s] : half_offset[s],
                   .part_scale = group.small + s * per,
                   .part_minimum = group.small_offset + s * per},
                  out);
    return true;
}

void quantize(const Kernels& kernels, int threads, const FormatTraits& from, const FormatTraits& to,
              const uint8_t* data, int64_t rows, int64_t cols, const float* importance, uint8_t* out) {
    for (int64_t k = 0; importance && k < cols; ++k)
        if (!(importance[k] >= 0.0f) || !std::isfinite(importance[k]))
            throw std::invalid_argument("an importance is negative or not a finite number");
    const int64_t wide = cols / from.values * from.bytes, narrow = cols / to.values * to.bytes;
    std::atomic<const char*> fault{nullptr};
    const int64_t useful = 1 + rows * cols / kWorthAThread;
    Pool pool(static_cast<int>(std::min<int64_t>(threads, useful)));
    const Quantizer quantizer(kernels, from, to, cols, importance);
    std::vector<Quantizer> quantizers(static_cast<size_t>(pool.threads()), quantizer);
    pool.each(rows, pool.grain(rows), [&](int64_t begin, int64_t end, int thread) noexcept {
        Quantizer& own = quantizers[static_cast<size_t>(thread)];
        for (int64_t row = begin; row < end; ++row)
            if (const char* const why = own.row(data + row * wide, out + row * narrow)) fault = why;
    });
    if (fault) throw std::invalid_argument(fault.load());
}

}  // namespace puna
