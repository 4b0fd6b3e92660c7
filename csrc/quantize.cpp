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
constexpr int64_t kWorthAThread = 1 << 16;  // quantising this many values takes longer than starting a thread
constexpr double kUnseen = 1e-6;            // added to importance / mean importance, so that no column has weight 0

// Weight of a squared error if no importance is given, as in ggml: 1, x^2, |x|, or (rms of the block) + |x|.
enum class Weights { kNone, kSquare, kMagnitude, kTypical };

struct Recipe {
    Format format;
    Search plain;  // search without importance
    Weights weights;
    Search weighted;  // search with importance
    int zero, top;    // stored level that represents 0, and the highest stored level
};

using K = SearchKind;

constexpr const char* kTooLarge = "a value needs a scale beyond float16's 65504";

// Search ranges and steps are ggml's (quantize_row_*_ref, and quantize_row_*_impl with importance).
constexpr Recipe kRecipes[] = {
    {kQ8_0, {K::kAbsMax, 32, 127}, Weights::kNone, {K::kAbsMax, 32, 127}, 127, 254},
    {kQ4_0, {K::kSignedAbsMax, 32, 8}, Weights::kNone, {K::kBestScale, 32, 8, 9, 0, 0.1f}, 8, 15},
    {kQ5_0, {K::kSignedAbsMax, 32, 16}, Weights::kNone, {K::kBestScale, 32, 16, 9, 0, 0.1f}, 16, 31},
    {kQ4_1, {K::kMinMax, 32, 15}, Weights::kNone, {K::kBestAffine, 32, 15, 36, -0.9f, 0.05f, true}, 0, 15},
    {kQ5_1, {K::kMinMax, 32, 31}, Weights::kNone, {K::kBestAffine, 32, 31, 36, -0.9f, 0.05f, true}, 0, 31},
    {kIQ4_NL, {K::kTable, 32, 127, 7, 0, 1}, Weights::kSquare, {K::kTable, 32, 127, 7, 0, 1}, 0, 15},
    {kQ2_K,
     {K::kBestAffine, 16, 3, 15, -0.5f, 0.1f},
     Weights::kMagnitude,
     {K::kBestAffine, 16, 3, 36, -0.9f, 0.05f},
     0,
     3},
    {kQ3_K, {K::kBestScale, 16, 4, 9, 0, 0.1f}, Weights::kTypical, {K::kBestScale, 16, 4, 9, 0, 0.1f}, 4, 7},
    {kQ4_K,
     {K::kBestAffine, 32, 15, 20, -1, 0.1f},
     Weights::kTypical,
     {K::kBestAffine, 32, 15, 36, -0.9f, 0.05f},
     0,
     15},
    {kQ5_K,
     {K::kBestAffine, 32, 31, 15, -0.5f, 0.1f},
     Weights::kTypical,
     {K::kBestAffine, 32, 31, 36, -0.9f, 0.05f},
     0,
     31},
    {kQ6_K, {K::kBestScale, 16, 32, 9, 0, 0.1f}, Weights::kSquare, {K::kBestScale, 16, 32, 9, 0, 0.1f}, 32, 63},
};

const Recipe* find_recipe(Format format) {
    for (const Recipe& recipe : kRecipes)
        if (recipe.format == format) return &recipe;
    return nullptr;
}

void put(uint8_t* to, uint16_t value) { std::memcpy(to, &value, sizeof value); }

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

// Returns the largest integer to which a K format rounds a scale. Signed formats (Q3_K, Q6_K) go down to -largest - 1.
int highest_small(Format format) { return format == kQ2_K ? 15 : format == kQ3_K ? 31 : format == kQ6_K ? 127 : 63; }

// Packs 32 levels into 16 bytes: level i into the low nibble of byte i, level 16 + i into the high nibble.
void put_nibbles(const uint8_t* level, uint8_t* out) {
    for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((level[i] & 15) | level[i + 16] << 4);
}

// Packs the fifth bits of 32 levels into 32 bits.
void put_fifth_bits(const uint8_t* level, uint8_t* out) {
    for (int k = 0; k < 4; ++k) {
        uint64_t eight;
        std::memcpy(&eight, level + 8 * k, sizeof eight);
        // Shifts bit 4 of each byte to bit 0. The multiplication then moves that bit of byte i to bit i of the top
        // byte.
        out[k] = static_cast<uint8_t>((eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    }
}

// Packs the eight six-bit scales and eight minimums of a Q4_K or Q5_K block into 12 bytes.
void put_six_bits(const int* scale, const int* offset, uint8_t* out) {
    for (int b = 0; b < 4; ++b) {
        out[b] = static_cast<uint8_t>(scale[b] | scale[b + 4] >> 4 << 6);
        out[4 + b] = static_cast<uint8_t>(offset[b] | offset[b + 4] >> 4 << 6);
        out[8 + b] = static_cast<uint8_t>((scale[b + 4] & 15) | (offset[b + 4] & 15) << 4);
    }
}

// Packs bits shift and shift + 1 of 256 levels: 32 bytes hold 128 levels, and each bit pair of these bytes holds 32
// consecutive levels.
void put_pairs(const uint8_t* level, int shift, uint8_t* out) {
    for (int part = 0; part < 2; ++part)
        for (int j = 0; j < 32; ++j) {
            const uint8_t* const from = level + 128 * part + j;
            int byte = 0;
            for (int k = 0; k < 4; ++k) byte |= (from[32 * k] >> shift & 3) << 2 * k;
            out[32 * part + j] = static_cast<uint8_t>(byte);
        }
}

// Writes a block of 32 values with its own f16 scale and, depending on the format, minimum.
void put_block(Format format, uint16_t scale, uint16_t offset, const uint8_t* level, uint8_t* out) {
    put(out, scale);
    out += 2;
    if (format == kQ8_0) {
        for (int i = 0; i < 32; ++i) out[i] = static_cast<uint8_t>(level[i] - 127);
        return;
    }
    if (format == kQ4_1 || format == kQ5_1) {
        put(out, offset);
        out += 2;
    }
    if (format == kQ5_0 || format == kQ5_1) {
        put_fifth_bits(level, out);
        out += 4;
    }
    put_nibbles(level, out);
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
    // turned: levels as the kernels write them, [size][16]. level: the same levels block by block, [16][size].
    uint8_t turned[32 * kGroup], level[32 * kGroup];
    int64_t blocks;  // number of blocks that are not padding
    const Recipe* recipe;
    const Search* search;
};

bool can_quantize(const FormatTraits& from, const FormatTraits& to) {
    const bool floats = from.format == kF32 || from.format == kF16 || from.format == kBF16;
    return floats && find_recipe(to.format);
}

Quantizer::Quantizer(const Kernels& kernels, const FormatTraits& from, const FormatTraits& to, int64_t cols,
                     const float* importance)
    : kernels_(kernels), from_(from), to_(to), cols_(cols), importance_(importance) {
    // Rounds up to a multiple of the largest group: 16 blocks of 32 values.
    const size_t room = static_cast<size_t>((cols + 511) / 512 * 512);
    x_.assign(room, 0.0f);
    if (!importance) return;
    importance_padded_.assign(room, 0.0f);
    double mean = 0.0;
    for (int64_t k = 0; k < cols; ++k) mean += importance[k];
    mean /= static_cast<double>(cols);
    // Division by the mean makes the result independent of the unit of importance.
    for (int64_t k = 0; k < cols; ++k)
        importance_padded_[static_cast<size_t>(k)] =
            static_cast<float>((mean > 0.0 ? importance[k] / mean : 1.0) + kUnseen);
}

const char* Quantizer::row(const uint8_t* from, uint8_t* out) {
    const float maximum = kernels_.read_floats(from_.format, from, cols_, x_.data());
    if (std::isnan(maximum)) return "a value is not a finite number";
    if (maximum > kLargest) return kTooLarge;
    if (importance_) {
        double power = 0.0;
        for (const float x : x_) power += static_cast<double>(x) * x;
        power_ = static_cast<float>(power / static_cast<double>(cols_) * (to_.values == kSuper ? 2 : 1));
    }
    Group group;
    group.recipe = find_recipe(to_.format);
    group.search = importance_ ? &group.recipe->weighted : &group.recipe->plain;
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
    const Recipe& recipe = *find_recipe(to_.format);
    const Search& search = recipe.plain;
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
        kernels_.quantize_block_levels(x, count, offset, inverse, recipe.zero, recipe.top, level);
        for (int64_t b = 0; b < count; ++b, out += to_.bytes) {
            const uint16_t half = to_half(scale[b]), half_offset = to_half(0.0f - offset[b]);
            if (infinite(half) || infinite(half_offset)) return kTooLarge;
            put_block(recipe.format, half, half_offset, level + 32 * b, out);
        }
    }
    return nullptr;
}

// Sets the weights of the group that starts at column `first`, as ggml does for each format.
void Quantizer::weigh(Group& group, int64_t first) const {
    const int size = group.search->size;
    const Weights kind = group.recipe->weights;
    if (!importance_ && kind == Weights::kNone) return;
    float power[kGroup] = {};
    for (int i = 0; i < size; ++i)
        for (int b = 0; b < kGroup; ++b) power[b] += group.x[i * kGroup + b] * group.x[i * kGroup + b];
    std::fill(group.total, group.total + kGroup, 0.0f);
    for (int b = 0; b < kGroup; ++b) power[b] /= static_cast<float>(size);
    // In the weights of iq4_nl, ggml uses the mean square of each block; in those of other formats, the mean square of
    // the row.
    const bool alone = group.recipe->format == kIQ4_NL;
    for (int i = 0; i < size; ++i)
        for (int b = 0; b < kGroup; ++b) {
            const float whole = alone ? 2.0f * power[b] : power_;
            const float x = group.x[i * kGroup + b];
            float weight = 1.0f;
            if (importance_) {
                const float column = importance_padded_[static_cast<size_t>(first + b * size + i)];
                weight = group.recipe->format == kQ6_K ? column : column * std::sqrt(whole + x * x);
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
    const int high = highest_small(to_.format), low = lines ? 0 : -high - 1;
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
        kernels_.squared_error(group.x, group.weight, size, offset, step, group.recipe->zero, group.recipe->top, error);
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
    const Format format = to_.format;
    const bool super = to_.values == kSuper;
    const bool searched = importance_ != nullptr || format == kIQ4_NL;
    for (int s = 0; super && s < kGroup / per; ++s) {
        const int at = s * per;
        const bool lines = group.search->kind == K::kBestAffine;
        const int high = highest_small(format);
        group.unit[s] =
            share_unit(group.scale + at, group.total + at, per, lines ? 0 : high + 1, high, group.small + at);
        if (lines)
            group.offset_unit[s] =
                share_unit(group.offset + at, group.total + at, per, 0, high, group.small_offset + at);
    }
    for (int s = 0; super && s < kGroup / per; ++s)
        if (infinite(group.unit[s]) || infinite(group.offset_unit[s])) return false;
    if (super) refine(group);
    uint16_t half[kGroup], half_offset[kGroup];
    float add[kGroup];
    for (int b = 0; b < kGroup; ++b) {
        half[b] = to_half(group.scale[b]);
        half_offset[b] = to_half(0.0f - group.offset[b]);
        if (!super && (infinite(half[b]) || infinite(half_offset[b]))) return false;
        float step = searched ? from_half(half[b]) : group.scale[b];
        add[b] = searched ? -from_half(half_offset[b]) : group.offset[b];
        if (super) {
            step = from_half(group.unit[b / per]) * static_cast<float>(group.small[b]);
            add[b] = from_half(group.offset_unit[b / per]) * static_cast<float>(group.small_offset[b]);
        }
        group.inverse[b] = inverse_of(step);
    }
    if (format == kIQ4_NL)
        kernels_.quantize_table_levels(group.x, size, group.inverse, group.turned);
    else
        kernels_.quantize_levels(group.x, size, add, group.inverse, group.recipe->zero, group.recipe->top,
                                 group.turned);
    for (int b = 0; b < kGroup; ++b)
        for (int i = 0; i < size; ++i) group.level[b * size + i] = group.turned[i * kGroup + b];

    // Block layouts: block_q2_K .. block_q6_K in ggml-common.h.
    const int64_t count = group.blocks * size / to_.values;
    for (int64_t s = 0; s < count; ++s, out += to_.bytes) {
        const uint8_t* const level = group.level + s * to_.values;
        const int* const small = group.small + s * per;
        const int* const small_offset = group.small_offset + s * per;
        if (!super) put_block(format, half[s], half_offset[s], level, out);
        switch (format) {
            case kQ2_K:
                for (int b = 0; b < per; ++b) out[b] = static_cast<uint8_t>(small[b] | small_offset[b] << 4);
                put_pairs(level, 0, out + 16);
                put(out + 80, group.unit[s]);
                put(out + 82, group.offset_unit[s]);
                break;
            case kQ3_K: {
                uint8_t* const scales = out + 96;
                for (int j = 0; j < 32; ++j) {
                    int bits = 0;
                    for (int k = 0; k < 8; ++k) bits |= (level[32 * k + j] >> 2) << k;
                    out[j] = static_cast<uint8_t>(bits);
                }
                put_pairs(level, 0, out + 32);
                std::memset(scales, 0, 12);
                for (int b = 0; b < per; ++b) {
                    const int six = small[b] + 32;
                    scales[b % 8] = static_cast<uint8_t>(scales[b % 8] | (six & 15) << (b < 8 ? 0 : 4));
                    scales[8 + b % 4] = static_cast<uint8_t>(scales[8 + b % 4] | six >> 4 << 2 * (b / 4));
                }
                put(out + 108, group.unit[s]);
                break;
            }
            case kQ4_K:
            case kQ5_K: {
                put(out, group.unit[s]);
                put(out + 2, group.offset_unit[s]);
                put_six_bits(small, small_offset, out + 4);
                uint8_t* low = out + 16;
                if (format == kQ5_K) {
                    for (int j = 0; j < 32; ++j) {
                        int bits = 0;
                        for (int k = 0; k < 8; ++k) bits |= (level[32 * k + j] >> 4) << k;
                        low[j] = static_cast<uint8_t>(bits);
                    }
                    low += 32;
                }
                for (int pair = 0; pair < 4; ++pair)
                    for (int i = 0; i < 32; ++i) {
                        const uint8_t* const from = level + 64 * pair + i;
                        low[32 * pair + i] = static_cast<uint8_t>((from[0] & 15) | from[32] << 4);
                    }
                break;
            }
            case kQ6_K:
                for (int part = 0; part < 2; ++part)
                    for (int i = 0; i < 64; ++i) {
                        const uint8_t* const from = level + 128 * part + i;
                        out[64 * part + i] = static_cast<uint8_t>((from[0] & 15) | from[64] << 4);
                    }
                put_pairs(level, 4, out + 128);
                for (int b = 0; b < per; ++b) out[192 + b] = static_cast<uint8_t>(small[b]);
                put(out + 208, group.unit[s]);
                break;
            default:
                break;
        }
    }
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
    pool.each(rows, pool.grain(rows), [&](int64_t begin, int64_t end) {
        Quantizer quantizer(kernels, from, to, cols, importance);
        for (int64_t row = begin; row < end; ++row)
            if (const char* const why = quantizer.row(data + row * wide, out + row * narrow)) fault = why;
    });
    if (fault) throw std::invalid_argument(fault.load());
}

}  // namespace puna
