// Implements sampling.h without sorting: each filter keeps the tokens whose weight reaches a threshold. Radix select
// finds the threshold by counting weights by their leading bits. This works because non-negative floats have the same
// order as their bits read as integers.
//
// Options that are off do not read the vocabulary. A row without options is read once, for the most likely token.

#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <vector>

#include "half.h"

namespace puna {

namespace {

constexpr float kMaxFloat = std::numeric_limits<float>::max();

// Adds the bias, then applies the penalties. Both are computed in double precision and rounded once, so that the
// implementations in PyTorch and NumPy compute the same numbers.
void change_logits(const puna_sample_row& row, float* logits) {
    const puna_sampling& options = *row.options;
    const auto store = [&](int32_t id, double value) {
        logits[id] = static_cast<float>(std::min<double>(kMaxFloat, std::max<double>(-kMaxFloat, value)));
    };
    for (int32_t i = 0; i < row.bias_count; ++i) store(row.bias_ids[i], logits[row.bias_ids[i]] + row.bias[i]);
    for (int32_t i = 0; i < row.seen_count; ++i) {
        const int32_t id = row.seen[i], generated = row.generated[i];
        double value = logits[id];
        value = value > 0.0 ? value / options.repetition_penalty : value * options.repetition_penalty;
        value -= generated * options.frequency_penalty;
        if (generated > 0) value -= options.presence_penalty;
        store(id, value);
    }
}

// Moves the logits of the allowed tokens to the front, and writes their ids to `ids`. Returns their number.
int64_t take_allowed(const uint32_t* allowed, int64_t vocab, float* logits, int32_t* ids) {
    int64_t kept = 0;
    for (int64_t word = 0; word * 32 < vocab; ++word) {
        if (allowed[word] == 0) continue;
        for (int64_t i = word * 32; i < std::min(vocab, word * 32 + 32); ++i) {
            ids[kept] = static_cast<int32_t>(i);
            logits[kept] = logits[i];
            kept += allowed[word] >> (i - word * 32) & 1u;
        }
    }
    return kept;
}

// Writes the maximum of each block of logits to `peaks`. Returns whether all logits are finite.
bool find_peaks(const Kernels& kernels, const float* logits, int64_t count, std::vector<float>& peaks) {
    peaks.resize(static_cast<size_t>((count + kMaxBlock - 1) / kMaxBlock));
    return kernels.block_max(logits, count, peaks.data());
}

// The tokens that may still be chosen, in order of their ids.
struct Candidates {
    std::vector<int32_t> ids;    // has the size of the vocabulary; the first `count` are used
    std::vector<float> weights;  // logits at first, later their exponentials
    size_t count = 0;

    // Sets the candidates to the tokens whose logits are at least `least`. Skips blocks of kMaxBlock logits whose
    // maximum, in `peaks`, is lower.
    void take(const float* logits, int64_t vocab, const std::vector<float>& peaks, float least) {
        count = 0;
        for (size_t block = 0; block < peaks.size(); ++block) {
            if (peaks[block] < least) continue;
            const int64_t from = static_cast<int64_t>(block) * kMaxBlock;
            for (int64_t i = from; i < std::min(vocab, from + kMaxBlock); ++i) {
                ids[count] = static_cast<int32_t>(i);
                weights[count] = logits[i];
                count += logits[i] >= least;
            }
        }
    }

    // Keeps the tokens whose weight bits are above `least`, and the first `equals` tokens whose bits equal it. The loop
    // has no branches, because they would be mispredicted.
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
    double parts[8] = {};  // eight independent sums hide the latency of additions
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (size_t j = 0; j < 8; ++j) parts[j] += values[i + j];
    for (; i < count; ++i) parts[0] += values[i];
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

// Keeps the most likely tokens (ties: lower id first) until their count, or with `by_weight` their summed weight,
// reaches `limit`. Radix select in three passes over 11, 10 and 10 bits of the weights (the sign bit is 0): each pass
// finds the bucket in which the limit is reached and adds its bits to `found`. After the first pass, tokens in lower
// buckets are dropped.
void cut(Candidates& from, bool by_weight, double limit) {
    // Four interleaved tables: consecutive weights of the same bucket are added to different tables, so that no
    // addition waits for the one before it.
    constexpr size_t kWays = 4;
    static thread_local std::vector<double> table;
    double before = 0.0;  // count or weight of the tokens above the bucket `found`
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
        // Adds up the buckets from the highest down, until the limit is reached.
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
        if (above == 31 && !reached) return;  // the limit exceeds the sum of all weights: keep every token
        // In later passes only rounding can keep the sum below the limit; the lowest bucket is then correct.
        found |= lowest << shift;
        if (above == 31) from.keep(found);
    }
    // Of the tokens whose weight equals the threshold `found`, keep as many as the limit needs, and at least one.
    const double each = by_weight ? float_of_bits(found) : 1.0;
    from.keep(found, std::max<int64_t>(1, static_cast<int64_t>(std::ceil((limit - before) / each))));
}

// Keeps the tokens with the `count` highest logits. Compares logits, because at a high temperature different logits can
// have the same weight. `cut` needs non-negative numbers, the largest for the most likely token. The distance
// `most - logit` is non-negative (abs removes the sign of -0.0) and smallest for that token; subtracting its bits from
// the bits of infinity reverses the order. Afterwards the weights hold logit - most.
void keep_top(Candidates& from, float most, int64_t count) {
    constexpr uint32_t kInfinity = 0x7f800000u;
    float* const values = from.weights.data();
    for (size_t i = 0; i < from.count; ++i)
        values[i] = float_of_bits(kInfinity - bits_of_float(std::abs(most - values[i])));
    cut(from, false, static_cast<double>(count));
    for (size_t i = 0; i < from.count; ++i) values[i] = -float_of_bits(kInfinity - bits_of_float(values[i]));
}

// Keeps the tokens whose surprise, -log p, is closest to the entropy, until their probabilities add up to `mass`, and
// all tokens that are as close as the last one (locally typical sampling, arXiv:2202.00666, as in transformers).
// Tokens of weight 0 are dropped. The search halves the range in which the mass is reached; nth_element moves the
// closer tokens to the front.
void keep_typical(Candidates& from, double mass) {
    struct Token {
        double distance, weight;
    };
    static thread_local std::vector<Token> tokens;
    static thread_local std::vector<double> distances;
    from.keep(0, 0);
    const float* weights = from.weights.data();
    const double total = sum(weights, from.count), log_total = std::log(total);
    distances.resize(from.count);
    double entropy = 0.0;
    for (size_t i = 0; i < from.count; ++i) {
        distances[i] = log_total - std::log(static_cast<double>(weights[i]));
        entropy += weights[i] / total * distances[i];
    }
    tokens.resize(from.count);
    for (size_t i = 0; i < from.count; ++i) {
        distances[i] = std::abs(distances[i] - entropy);
        tokens[i] = {distances[i], weights[i]};
    }
    double before = 0.0;  // weight of the tokens in front of `low`
    size_t low = 0, high = from.count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        const auto begin = tokens.begin();
        std::nth_element(begin + static_cast<std::ptrdiff_t>(low), begin + static_cast<std::ptrdiff_t>(middle),
                         begin + static_cast<std::ptrdiff_t>(high),
                         [](const Token& a, const Token& b) { return a.distance < b.distance; });
        double weight = 0.0;
        for (size_t i = low; i < middle; ++i) weight += tokens[i].weight;
        if (before + weight >= mass * total) {
            high = middle;
        } else {
            low = middle;
            before += weight;
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < from.count; ++i) {
        from.ids[kept] = from.ids[i];
        from.weights[kept] = weights[i];
        kept += distances[i] <= tokens[low].distance;
    }
    from.count = kept;
}

// Returns a lower bound on the logits of tokens that can pass the filters, so that most tokens need not be examined.
// top_k: the top_k-th highest block maximum, because at least top_k logits reach it.
// top_p: the logit whose weight is (1 - top_p) * total / count. The tokens below it weigh less than (1 - top_p) * total
// together, so top_p removes them all.
// min_p: the logit whose weight is min_p.
// With both top_k and top_p, only top_k sets the bound, because top_p needs the weights of all tokens that top_k keeps.
float floor_of(const std::vector<float>& peaks, int64_t count, float most, double total, const puna_sampling& options) {
    static thread_local std::vector<float> sorted;
    float least = -kMaxFloat;
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
        constexpr double kSlack = 0.01;  // subtracted from the exponent to allow for rounding errors
        const double logit = most + options.temperature * (std::log(weight) - kSlack);
        if (logit > least) least = std::nextafter(static_cast<float>(logit), -kMaxFloat);
    }
    return least;
}

// Returns the first token at which the cumulative weight exceeds uniform * total; `uniform` is in [0, 1). Weights are
// summed in blocks, so that only the block that contains the token is read one weight at a time.
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
    size_t last = count - 1;  // reached only after rounding errors: return the last token whose weight is not 0
    while (last > 0 && weights[last] == 0.0f) --last;
    return from.ids[last];
}

// Returns the index of the token that `options` choose from finite logits with the block maxima `peaks`.
int64_t choose(const Kernels& kernels, const float* logits, int64_t count, const std::vector<float>& peaks,
               const puna_sampling& options, double uniform) {
    static thread_local Candidates candidates;
    const auto highest = std::max_element(peaks.begin(), peaks.end());
    const float most = *highest;
    if (options.temperature == 0.0)
        return std::find(logits + (highest - peaks.begin()) * kMaxBlock, logits + count, most) - logits;

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
    if (options.typical_p < 1.0) keep_typical(candidates, options.typical_p);
    return draw(candidates, uniform);
}

// Returns the id of the row's token, or -1 if no token is allowed. `peaks` has the block maxima of the row's logits.
int64_t choose_token(const Kernels& kernels, int64_t vocab, const puna_sample_row& row, std::vector<float>& peaks) {
    static thread_local std::vector<float> changed;
    static thread_local std::vector<int32_t> ids;
    const bool changes = row.bias_count > 0 || row.seen_count > 0;
    if (!changes && row.allowed == nullptr) return choose(kernels, row.logits, vocab, peaks, *row.options, row.uniform);
    changed.assign(row.logits, row.logits + vocab);
    if (changes) change_logits(row, changed.data());
    int64_t count = vocab;
    if (row.allowed != nullptr) {
        ids.resize(static_cast<size_t>(vocab));
        count = take_allowed(row.allowed, vocab, changed.data(), ids.data());
        if (count == 0) return -1;
    }
    find_peaks(kernels, changed.data(), count, peaks);
    const int64_t at = choose(kernels, changed.data(), count, peaks, *row.options, row.uniform);
    return row.allowed != nullptr ? ids[static_cast<size_t>(at)] : at;
}

// Returns the logarithm of the sum of the exponentials of logits; `most` is the highest one.
double log_sum(const Kernels& kernels, const float* logits, int64_t count, float most) {
    static thread_local std::vector<float> weights;
    weights.resize(static_cast<size_t>(count));
    kernels.exponentials(logits, count, most, 1.0, weights.data());
    return most + std::log(sum(weights.data(), weights.size()));
}

// Writes the `row.top_count` highest log-probabilities, and their ids (ties: lower id first). `log_total` is the
// logarithm of the sum of all exponentials.
void write_top(const puna_sample_row& row, int64_t vocab, const std::vector<float>& peaks, double log_total) {
    static thread_local Candidates candidates;
    static thread_local std::vector<int32_t> order;
    puna_sampling only_top_k{};
    only_top_k.top_p = 1.0;
    only_top_k.top_k = row.top_count;
    candidates.ids.resize(static_cast<size_t>(vocab));
    candidates.weights.resize(static_cast<size_t>(vocab));
    candidates.take(row.logits, vocab, peaks, floor_of(peaks, vocab, 0.0f, 0.0, only_top_k));
    order.assign(candidates.ids.begin(), candidates.ids.begin() + static_cast<std::ptrdiff_t>(candidates.count));
    std::partial_sort(order.begin(), order.begin() + row.top_count, order.end(), [&](int32_t a, int32_t b) {
        return row.logits[a] != row.logits[b] ? row.logits[a] > row.logits[b] : a < b;
    });
    for (int32_t i = 0; i < row.top_count; ++i) {
        row.top_ids[i] = order[static_cast<size_t>(i)];
        row.top_logprobs[i] = row.logits[row.top_ids[i]] - log_total;
    }
}

// Returns whether all ids are tokens of the vocabulary.
bool are_tokens(const int32_t* ids, int32_t count, int64_t vocab) {
    bool valid = true;
    for (int32_t i = 0; i < count; ++i) valid &= ids[i] >= 0 && ids[i] < vocab;
    return valid;
}

bool is_between(double value, double low, double high) { return value >= low && value <= high; }  // false for NaN

bool are_in_range(const puna_sampling& options) {
    constexpr double kHighest = std::numeric_limits<double>::max();
    return is_between(options.temperature, 0.0, kHighest) && options.top_k >= 0 &&
           is_between(options.top_p, 0.0, 1.0) && is_between(options.min_p, 0.0, 1.0) &&
           is_between(options.typical_p, 0.0, 1.0) &&
           is_between(options.repetition_penalty, std::numeric_limits<double>::min(), kHighest) &&
           is_between(options.presence_penalty, -kHighest, kHighest) &&
           is_between(options.frequency_penalty, -kHighest, kHighest);
}

}  // namespace

void check_row(int64_t vocab, const puna_sample_row& row) {
    const auto require = [](bool valid, const char* message) {
        if (!valid) throw std::invalid_argument(message);
    };
    require(row.logits && row.options, "a row has no logits or no options");
    require(are_in_range(*row.options), "a sampling option is out of range");
    require(row.uniform >= 0.0 && row.uniform < 1.0, "a random number is out of range");
    require(row.top_count >= -1 && row.top_count <= vocab && row.given >= -1 && row.given < vocab,
            "a token or the number of log-probabilities exceeds the vocabulary");
    require(row.top_count <= 0 || (row.top_ids && row.top_logprobs), "a row has no memory for log-probabilities");
    require(row.seen_count >= 0 && row.bias_count >= 0, "the number of tokens of a row is negative");
    require(row.seen_count == 0 || (row.seen && row.generated && are_tokens(row.seen, row.seen_count, vocab)),
            "a token that was seen is out of range");
    require(row.bias_count == 0 || (row.bias_ids && row.bias && are_tokens(row.bias_ids, row.bias_count, vocab)),
            "a token with a bias is out of range");
    for (int32_t i = 0; i < row.bias_count; ++i) require(std::isfinite(row.bias[i]), "a bias is not finite");
    for (int32_t i = 0; i < row.seen_count; ++i) require(row.generated[i] >= 0, "the count of a token is negative");
}

void sample(const Kernels& kernels, int64_t vocab, puna_sample_row& row) {
    // Reused between calls: page faults of newly allocated memory would take longer than sampling.
    static thread_local std::vector<float> peaks;
    row.status = find_peaks(kernels, row.logits, vocab, peaks) ? PUNA_SAMPLE_OK : PUNA_SAMPLE_NOT_FINITE;
    if (row.status != PUNA_SAMPLE_OK) return;
    double log_total = 0.0;
    if (row.top_count >= 0) {
        log_total = log_sum(kernels, row.logits, vocab, *std::max_element(peaks.begin(), peaks.end()));
        if (row.top_count > 0) write_top(row, vocab, peaks, log_total);
    }
    const int64_t token = row.given >= 0 ? row.given : choose_token(kernels, vocab, row, peaks);
    if (token < 0) {
        row.status = PUNA_SAMPLE_NO_TOKEN;
        return;
    }
    row.token = static_cast<int32_t>(token);
    if (row.top_count >= 0) row.logprob = row.logits[token] - log_total;
}

}  // namespace puna
