// See sampling.h. Nothing is sorted: a filter is a cut in the weights, found by counting them by the upper and then by
// the lower half of their bits, whose order is that of the numbers.

#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "half.h"

namespace puna {

namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

bool all_finite(const float* values, int64_t count) {
    constexpr uint32_t kExponent = 0x7f800000u;
    uint32_t worst = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t exponent = bits_of_float(values[i]) & kExponent;
        worst = exponent > worst ? exponent : worst;
    }
    return worst != kExponent;
}

int64_t likeliest(const float* logits, int64_t count) {
    float most[8];  // so that each comparison need not wait for the last
    for (float& one : most) one = logits[0];
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int j = 0; j < 8; ++j) most[j] = logits[i + j] > most[j] ? logits[i + j] : most[j];
    for (; i < count; ++i) most[0] = logits[i] > most[0] ? logits[i] : most[0];
    return std::find(logits, logits + count, *std::max_element(most, most + 8)) - logits;
}

// The tokens that a filter keeps: those above a weight, and of those that equal it the first few.
struct Cut {
    uint32_t bits = 0;  // of the weight
    int64_t equals = INT64_MAX;
    bool keeps(float weight, int64_t& met) const {
        const uint32_t own = bits_of_float(weight);
        return own > bits || (own == bits && met++ < equals);
    }
};

// Keeps the likeliest tokens, of equals the lower id, while what was kept before is below `limit`: their number, or
// with `by_weight` the sum of their weights. Looks only at what `so_far` keeps.
Cut cut_at(const std::vector<float>& weights, const Cut& so_far, bool by_weight, double limit) {
    constexpr uint32_t kHalf = 1u << 16;
    thread_local std::vector<double> upper, lower;
    upper.assign(kHalf / 2, 0.0);  // weights are positive
    lower.assign(kHalf, 0.0);
    int64_t met = 0;
    for (const float weight : weights)
        if (so_far.keeps(weight, met)) upper[bits_of_float(weight) >> 16] += by_weight ? weight : 1.0;
    double before = 0.0;
    uint32_t high = kHalf / 2;
    while (high > 0) {
        --high;
        if (upper[high] > 0.0 && before + upper[high] >= limit) break;
        before += upper[high];
    }
    met = 0;
    for (const float weight : weights)
        if (so_far.keeps(weight, met) && bits_of_float(weight) >> 16 == high)
            lower[bits_of_float(weight) & (kHalf - 1)] += by_weight ? weight : 1.0;
    uint32_t low = kHalf;
    while (low > 0) {
        --low;
        if (lower[low] > 0.0 && before + lower[low] >= limit) break;
        before += lower[low];
    }
    if (before + lower[low] < limit) return so_far;  // all of it is not enough
    const double each = by_weight ? float_of_bits(high << 16 | low) : 1.0;
    const double needed = std::ceil((limit - before) / each);
    return {high << 16 | low, std::max<int64_t>(1, static_cast<int64_t>(needed))};
}

int64_t draw(const std::vector<float>& weights, const Cut& cut, float least, double total, double uniform) {
    const bool all = cut.bits == 0 && least <= 0.0f;
    std::vector<int64_t> ids;
    if (!all) {
        int64_t met = 0;
        total = 0.0;
        for (size_t i = 0; i < weights.size(); ++i)
            if (cut.keeps(weights[i], met) && weights[i] >= least) {
                ids.push_back(static_cast<int64_t>(i));
                total += weights[i];
            }
    }
    const int64_t count = static_cast<int64_t>(all ? weights.size() : ids.size());
    double sum = 0.0;
    int64_t last = 0;
    for (int64_t at = 0; at < count; ++at) {
        const int64_t id = all ? at : ids[static_cast<size_t>(at)];
        const float weight = weights[static_cast<size_t>(id)];
        sum += weight;
        if (weight > 0.0f) last = id;
        if (sum > uniform * total) return id;
    }
    return last;
}

}  // namespace

int64_t sample(const Kernels& kernels, const float* logits, int64_t count, const uint8_t* seen,
               const puna_sampling& options, double uniform) {
    if (!all_finite(logits, count)) return -1;
    std::vector<float> changed;
    if (options.repetition_penalty != 1.0f) {
        changed.assign(logits, logits + count);
        for (int64_t i = 0; i < count; ++i) {
            float& value = changed[static_cast<size_t>(i)];
            if (seen[i]) value = value > 0.0f ? value / options.repetition_penalty : value * options.repetition_penalty;
            value = std::min(kLargest, std::max(-kLargest, value));  // a small penalty may make it infinite
        }
        logits = changed.data();
    }
    const int64_t best = likeliest(logits, count);
    if (options.temperature == 0.0) return best;
    std::vector<float> weights(static_cast<size_t>(count));
    const double total = kernels.exponentials(logits, count, logits[best], options.temperature, weights.data());
    Cut cut;
    if (options.top_k > 0 && options.top_k < count) cut = cut_at(weights, cut, false, options.top_k);
    if (options.top_p < 1.0) {
        double kept = cut.bits ? 0.0 : total;
        int64_t met = 0;
        if (cut.bits)
            for (const float weight : weights) kept += cut.keeps(weight, met) ? weight : 0.0f;
        cut = cut_at(weights, cut, true, options.top_p * kept);
    }
    return draw(weights, cut, static_cast<float>(options.min_p), total, uniform);
}

}  // namespace puna
