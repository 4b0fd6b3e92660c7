// See sampling.h. Nothing is sorted: a filter is a cut in the weights, found by counting them by their bits, whose
// order is that of the numbers.

#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "half.h"

namespace puna {

namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// The numbers with the penalty for those already seen; false when one of these is not finite.
bool penalise(const float* logits, int64_t count, const uint8_t* seen, float penalty, std::vector<float>& out) {
    out.assign(logits, logits + count);
    for (int64_t at = 0; at < count; at += 8) {
        uint64_t any = 0;
        const int64_t size = std::min<int64_t>(8, count - at);
        std::memcpy(&any, seen + at, static_cast<size_t>(size));
        if (any == 0) continue;
        for (int64_t i = at; i < at + size; ++i) {
            if (!seen[i]) continue;
            float& value = out[static_cast<size_t>(i)];
            if (!std::isfinite(value)) return false;
            value = value > 0.0f ? value / penalty : value * penalty;
            value = std::min(kLargest, std::max(-kLargest, value));  // a small penalty may make it infinite
        }
    }
    return true;
}

// The tokens that may still be drawn, in the order of their ids.
struct Candidates {
    std::vector<int32_t> ids;    // room for all of the vocabulary, of which the first `count` are used
    std::vector<float> weights;  // none negative, so that their bits have the order of the numbers
    size_t count = 0;

    // Takes the logits that are not below `least`, as they are.
    void take(const float* logits, int64_t vocab, const std::vector<float>& peaks, float least) {
        count = 0;
        for (size_t block = 0; block < peaks.size(); ++block) {
            if (peaks[block] < least) continue;
            const int64_t from = static_cast<int64_t>(block) * kPeakBlock;
            for (int64_t i = from; i < std::min(vocab, from + kPeakBlock); ++i) {
                ids[count] = static_cast<int32_t>(i);
                weights[count] = logits[i];
                count += logits[i] >= least;
            }
        }
    }

    // Keeps those whose weights have at least these bits, and of those that equal them the first few.
    void keep(uint32_t least, int64_t equals = std::numeric_limits<int64_t>::max()) {
        size_t kept = 0;
        int64_t met = 0;
        for (size_t i = 0; i < count; ++i) {
            const uint32_t bits = bits_of_float(weights[i]);
            met += bits == least;
            ids[kept] = ids[i];
            weights[kept] = weights[i];
            kept += static_cast<size_t>((bits > least) | ((bits == least) & (met <= equals)));
        }
        count = kept;
    }
};

double sum(const float* values, size_t count) {
    double parts[8] = {};  // so that each addition need not wait for the last
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (size_t j = 0; j < 8; ++j) parts[j] += values[i + j];
    for (; i < count; ++i) parts[0] += values[i];
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

// Keeps the likeliest tokens, of equals the lower id, while what was kept before is below `limit`: their number, or
// with `by_weight` the sum of their weights. What lies above a weight is counted by the upper eleven bits of all
// weights, then by the next ten of those that share them, then by the last ten; what lies surely below is dropped
// early.
void cut(Candidates& from, bool by_weight, double limit) {
    constexpr size_t kWays = 4;  // tables, so that equal weights need not wait for each other
    static thread_local std::vector<double> table;
    double before = 0.0;  // kept above the weights that share the bits found
    uint32_t found = 0;
    for (int above = 31, shift = 20; above > 0; above = shift, shift -= 10) {
        const uint32_t buckets = 1u << (above - shift);
        table.assign(kWays * buckets, 0.0);
        const float* weights = from.weights.data();
        for (size_t i = 0; i < from.count; ++i) {
            const uint32_t bits = bits_of_float(weights[i]);
            if (bits >> above == found >> above)
                table[(bits >> shift & (buckets - 1)) * kWays + i % kWays] += by_weight ? weights[i] : 1.0;
        }
        uint32_t lowest = buckets;
        bool reached = false;
        for (uint32_t at = buckets; at-- > 0 && !reached;) {
            const double* parts = &table[at * kWays];
            const double amount = (parts[0] + parts[1]) + (parts[2] + parts[3]);
            if (amount == 0.0) continue;
            if (lowest < buckets) before += table[lowest * kWays];
            table[at * kWays] = amount;
            lowest = at;
            reached = before + amount >= limit;
        }
        if (above == 31 && !reached) return;  // all of it is not enough
        found |= lowest << shift;             // not reached: by rounding alone, and then it is the lowest
        if (above == 31) from.keep(found);
    }
    const double each = by_weight ? float_of_bits(found) : 1.0;
    from.keep(found, std::max<int64_t>(1, static_cast<int64_t>(std::ceil((limit - before) / each))));
}

// Keeps the `count` highest logits, not the highest weights: at a great temperature unlike logits weigh the same. A
// logit's distance from `most` has no sign (nor may a zero have one), so that its bits have its order, and are turned
// round for `cut`. Leaves logits less `most`.
void keep_top(Candidates& from, float most, int64_t count) {
    constexpr uint32_t kInfinity = 0x7f800000u;
    float* const values = from.weights.data();
    for (size_t i = 0; i < from.count; ++i)
        values[i] = float_of_bits(kInfinity - bits_of_float(std::abs(most - values[i])));
    cut(from, false, static_cast<double>(count));
    for (size_t i = 0; i < from.count; ++i) values[i] = -float_of_bits(kInfinity - bits_of_float(values[i]));
}

// A logit below which no token passes the filters, from cheap bounds. At least `top_k` tokens are no lower than the
// `top_k`-th highest peak. Tokens whose weights are below (1 - top_p) / count of the `total`, that of all weights, make
// up less than 1 - top_p together, however many they are. What min_p drops must stay where top_p is still to see it:
// among those of top_k.
float floor_of(const std::vector<float>& peaks, int64_t count, float most, double total, const puna_sampling& options) {
    static thread_local std::vector<float> sorted;
    float least = -kLargest;
    const auto top_k = static_cast<size_t>(options.top_k);
    if (top_k > 0 && top_k <= peaks.size()) {
        sorted = peaks;
        const auto nth = sorted.begin() + static_cast<std::ptrdiff_t>(top_k - 1);
        std::nth_element(sorted.begin(), nth, sorted.end(), std::greater<float>());
        least = *nth;
    }
    double weight = options.min_p;
    if (options.top_p < 1.0)
        weight = top_k > 0 ? 0.0 : std::max(weight, (1.0 - options.top_p) * total / static_cast<double>(count));
    if (weight > 0.0) {
        constexpr double kSlack = 0.01;  // of the exponent, for rounding
        const double logit = most + options.temperature * (std::log(weight) - kSlack);
        if (logit > least) least = std::nextafter(static_cast<float>(logit), -kLargest);
    }
    return least;
}

// The token at a part of the candidates' sum, `uniform` in [0, 1).
int64_t draw(const Candidates& from, double uniform) {
    constexpr size_t kBlock = 512;
    const float* weights = from.weights.data();
    const size_t count = from.count;
    double total = 0.0;
    for (size_t at = 0; at < count; at += kBlock) total += sum(weights + at, std::min(kBlock, count - at));
    double before = 0.0;
    for (size_t at = 0; at < count; at += kBlock) {
        const size_t size = std::min(kBlock, count - at);
        const double block = sum(weights + at, size);
        if (before + block > uniform * total) {
            double passed = before;
            for (size_t i = at; i < at + size; ++i) {
                passed += weights[i];
                if (passed > uniform * total) return from.ids[i];
            }
        }
        before += block;
    }
    size_t last = count - 1;  // by rounding alone
    while (last > 0 && weights[last] == 0.0f) --last;
    return from.ids[last];
}

}  // namespace

int64_t sample(const Kernels& kernels, const float* logits, int64_t count, const uint8_t* seen,
               const puna_sampling& options, double uniform) {
    // Kept between calls: fresh pages cost more than the work.
    static thread_local std::vector<float> changed, peaks;
    static thread_local Candidates candidates;
    if (options.repetition_penalty != 1.0f) {
        if (!penalise(logits, count, seen, options.repetition_penalty, changed)) return -1;
        logits = changed.data();
    }
    peaks.resize(static_cast<size_t>((count + kPeakBlock - 1) / kPeakBlock));
    if (!kernels.peaks(logits, count, peaks.data())) return -1;
    const auto highest = std::max_element(peaks.begin(), peaks.end());
    const float most = *highest;
    if (options.temperature == 0.0)
        return std::find(logits + (highest - peaks.begin()) * kPeakBlock, logits + count, most) - logits;

    candidates.ids.resize(static_cast<size_t>(count));
    candidates.weights.resize(static_cast<size_t>(count));
    float* const weights = candidates.weights.data();
    double total = 0.0;
    if (options.top_k == 0 && options.top_p < 1.0) {
        kernels.exponentials(logits, count, most, options.temperature, weights);
        total = sum(weights, static_cast<size_t>(count));
    }
    candidates.take(logits, count, peaks, floor_of(peaks, count, most, total, options));
    if (options.top_k > 0) keep_top(candidates, most, options.top_k);
    const float origin = options.top_k > 0 ? 0.0f : most;
    kernels.exponentials(weights, static_cast<int64_t>(candidates.count), origin, options.temperature, weights);
    if (options.top_k > 0) total = sum(weights, candidates.count);
    if (options.top_p < 1.0) cut(candidates, true, options.top_p * total);
    if (options.min_p > 0.0) candidates.keep(bits_of_float(static_cast<float>(options.min_p)));
    return draw(candidates, uniform);
}

}  // namespace puna
