// Attention over a paged cache, flash-style: a page of keys and values at a time is read as float32, and for each query
// the highest score, the sum of the exponentials and the mixed values are carried along (Dao et al., arXiv:2205.14135).
// A query's sums do not depend on the queries beside it.

// c = a times b, or c = c * shrink[t] + a times b: `count` rows of a, `vectors` vectors of b, `inner` columns.
template <int kTokens, int kGroup, bool kCarry>
PUNA_INLINE void product_tile(const float* a, int64_t a_stride, const float* b, int64_t b_line, int64_t inner, float* c,
                              int64_t c_stride, const float* shrink) {
    V16 acc[kTokens][kGroup];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g)
            acc[t][g] = kCarry ? load(c + t * c_stride + g * kLanes) * broadcast(shrink[t]) : broadcast(0.0f);
    multiply<kTokens, kGroup>(a, a_stride, b, b_line, kLanes, inner, acc);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) store(c + t * c_stride + g * kLanes, acc[t][g]);
}

template <int kTokens, int kGroup, bool kCarry>
PUNA_INLINE void product_rows(const float* a, int64_t a_stride, const float* b, int64_t b_line, int64_t vectors,
                              int64_t inner, float* c, int64_t c_stride, const float* shrink) {
    int64_t v = 0;
    for (; v + kGroup <= vectors; v += kGroup)
        product_tile<kTokens, kGroup, kCarry>(a, a_stride, b + v * kLanes, b_line, inner, c + v * kLanes, c_stride,
                                              shrink);
    for (; v < vectors; ++v)
        product_tile<kTokens, 1, kCarry>(a, a_stride, b + v * kLanes, b_line, inner, c + v * kLanes, c_stride, shrink);
}

template <bool kCarry>
static void product(const float* a, int64_t a_stride, int64_t count, const float* b, int64_t b_line, int64_t vectors,
                    int64_t inner, float* c, int64_t c_stride, const float* shrink) {
    int64_t t = 0;
    const auto pass = [&](auto tokens, auto group) {
        constexpr int kTokens = decltype(tokens)::kValue, kGroup = decltype(group)::kValue;
        for (; t + kTokens <= count; t += kTokens)
            product_rows<kTokens, kGroup, kCarry>(a + t * a_stride, a_stride, b, b_line, vectors, inner,
                                                  c + t * c_stride, c_stride, kCarry ? shrink + t : nullptr);
    };
#if defined(__AVX512F__)
    pass(Number<8>(), Number<2>());
    pass(Number<4>(), Number<4>());
    pass(Number<1>(), Number<4>());
#elif defined(__AVX2__)
    pass(Number<6>(), Number<1>());
    pass(Number<3>(), Number<2>());
    pass(Number<1>(), Number<4>());
#else
    pass(Number<3>(), Number<1>());
    pass(Number<1>(), Number<2>());
#endif
}

// Numbers of a cache as floats: `count` of them, a multiple of 16.
PUNA_INLINE void widen(const uint8_t* from, CacheType type, int64_t count, float* to) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(from);
    if (type == CacheType::kF16)
        for (int64_t i = 0; i < count; i += kLanes) store(to + i, from_f16(halves + i));
    else if (type == CacheType::kBF16)
        for (int64_t i = 0; i < count; i += kLanes) store(to + i, from_bf16(halves + i));
    else
        for (int64_t i = 0; i < count; i += kLanes) store(to + i, to_floats(from_signed(from + i)));
}

// A page's keys as float32, [head_dim][kPage]: those of the cache itself where they are so already.
PUNA_INLINE const float* read_keys(const HeadCache& cache, int64_t index, float* scratch) {
    const uint8_t* from = cache.keys + cache.pages[index] * cache.key_stride;
    const int64_t width = cache.head_dim, half = width / 2;
    const float* keys = reinterpret_cast<const float*>(from);
    if (cache.type != CacheType::kF32) {
        widen(from, cache.type, width * kPage, scratch);
        keys = scratch;
    }
    if (cache.type == CacheType::kQ8_0) {
        const float* scale = reinterpret_cast<const float*>(from + width * kPage);
        for (int64_t e = 0; e < width; ++e)
            for (int64_t j = 0; j < kPage; j += kLanes) {
                float* at = scratch + e * kPage + j;
                store(at, load(at) * load(scale + e / kBlock * kPage + j));
            }
    }
    if (!cache.cos) return keys;
    const float* cos = cache.cos + index * half * kPage;
    const float* sin = cache.sin + index * half * kPage;
    for (int64_t i = 0; i < half * kPage; i += kLanes) {
        const V16 first = load(keys + i), second = load(keys + half * kPage + i), c = load(cos + i), s = load(sin + i);
        store(scratch + i, first * c - second * s);
        store(scratch + half * kPage + i, second * c + first * s);
    }
    return scratch;
}

// The first `valid` of a page's values as float32, [kPage][padded head_dim].
PUNA_INLINE const float* read_values(const HeadCache& cache, int64_t index, int64_t valid, float* scratch) {
    const uint8_t* from = cache.values + cache.pages[index] * cache.value_stride;
    if (cache.type == CacheType::kF32) return reinterpret_cast<const float*>(from);
    const int64_t wide = padded_width(cache.head_dim);
    widen(from, cache.type, wide * valid, scratch);
    if (cache.type == CacheType::kQ8_0) {
        const int64_t groups = (cache.head_dim + kBlock - 1) / kBlock;
        const float* scale = reinterpret_cast<const float*>(from + wide * kPage);
        for (int64_t j = 0; j < valid; ++j)
            for (int64_t e = 0; e < wide; e += kLanes) {
                float* at = scratch + j * wide + e;
                store(at, load(at) * broadcast(scale[j * groups + e / kBlock]));
            }
    }
    return scratch;
}

// Scores of one query become exponentials; its highest score and total follow. Returns how much what was summed before
// shrinks.
PUNA_INLINE float soften(float* scores, int64_t valid, float& highest, float& total) {
    constexpr int kTiles = kPage / kLanes;
    const V16 masked = broadcast(-__builtin_inff());
    V16 score[kTiles];
    for (int i = 0; i < kTiles; ++i) {
        const int64_t rest = valid - i * kLanes;
        score[i] = rest <= 0 ? masked : load(scores + i * kLanes);
        if (rest > 0 && rest < kLanes) {
            float lane[kLanes];
            store(lane, score[i]);
            for (int64_t j = rest; j < kLanes; ++j) lane[j] = -__builtin_inff();
            score[i] = load(lane);
        }
    }
    V16 most = score[0];
    for (int i = 1; i < kTiles; ++i) most = higher(most, score[i]);
    const float here = highest_of(most), now = here > highest ? here : highest;
    V16 sum = broadcast(0.0f);
    for (int i = 0; i < kTiles; ++i) {
        const V16 weight = exponential(score[i] - broadcast(now));
        store(scores + i * kLanes, weight);
        sum = sum + weight;
    }
    float lane[kLanes];
    store(lane, exponential(broadcast(highest - now)));
    total = total * lane[0] + sum_of(sum);
    highest = now;
    return lane[0];
}

static void attend(const Queries& queries, const HeadCache& cache, int64_t split, float* scratch) {
    const int64_t width = cache.head_dim, wide = padded_width(width), first = split * kSplit;
    float* const keys = scratch;
    float* const values = keys + kPage * width;
    float* const scores = values + kPage * wide;
    int64_t last = 0;
    for (int64_t i = 0; i < queries.count; ++i) {
        last = queries.last[i] > last ? queries.last[i] : last;
        queries.highest[i] = -__builtin_inff();
        queries.total[i] = 0.0f;
    }
    for (int64_t i = 0; i < queries.count * wide; ++i) queries.mixed[i] = 0.0f;
    for (int64_t start = first; start <= last && start < first + kSplit; start += kPage) {
        const int64_t seen = last + 1 - start < kPage ? last + 1 - start : kPage;
        const float* k = read_keys(cache, start / kPage, keys);
        const float* v = read_values(cache, start / kPage, seen, values);
        product<false>(queries.values, width, queries.count, k, kPage, kPage / kLanes, width, scores, kPage, nullptr);
        float shrink[kMaxQueries];
        for (int64_t i = 0; i < queries.count; ++i) {
            const int64_t valid = queries.last[i] + 1 - start;
            if (valid > 0) {
                shrink[i] = soften(scores + i * kPage, valid, queries.highest[i], queries.total[i]);
            } else {
                shrink[i] = 1.0f;
                for (int64_t j = 0; j < kPage; ++j) scores[i * kPage + j] = 0.0f;
            }
        }
        product<true>(scores, kPage, queries.count, v, wide, wide / kLanes, seen, queries.mixed, wide, shrink);
    }
}

static void merge(float* highest, float* total, float* mixed, float later_highest, float later_total,
                  const float* later_mixed, int64_t wide) {
    const float now = later_highest > *highest ? later_highest : *highest;
    float before[kLanes], after[kLanes];
    store(before, exponential(broadcast(*highest - now)));
    store(after, exponential(broadcast(later_highest - now)));
    const V16 a = broadcast(before[0]), b = broadcast(after[0]);
    for (int64_t e = 0; e < wide; e += kLanes) store(mixed + e, madd(load(later_mixed + e), b, load(mixed + e) * a));
    *total = *total * before[0] + later_total * after[0];
    *highest = now;
}

// One token's numbers for a cache of 16-bit or 8-bit numbers; q8_0 rounds like ggml's: largest magnitude / 127 per
// block.
template <typename Put, typename PutScale>
PUNA_INLINE void narrow(const float* from, int64_t width, CacheType type, const Put& put, const PutScale& put_scale) {
    if (type != CacheType::kQ8_0) {
        for (int64_t e = 0; e < width; e += kLanes) {
            uint16_t halves[kLanes];
            const V16 value = load_some(from + e, width - e);
            type == CacheType::kF16 ? to_f16(halves, value) : to_bf16(halves, value);
            for (int64_t i = 0; i < kLanes && e + i < width; ++i) put(e + i, halves[i]);
        }
        return;
    }
    for (int64_t e = 0; e < width; e += kBlock) {
        const int64_t count = width - e < kBlock ? width - e : kBlock;
        float block[kBlock] = {};
        for (int64_t i = 0; i < count; ++i) block[i] = from[e + i];
        ActivationBlock rounded;
        quantize(block, kBlock, &rounded, nullptr);
        for (int64_t i = 0; i < count; ++i) put(e + i, static_cast<uint8_t>(rounded.quants[i]));
        put_scale(e / kBlock, rounded.scale);
    }
}

static void store_key(const float* key, int64_t width, CacheType type, uint8_t* page, int64_t slot) {
    if (type == CacheType::kF32) {
        for (int64_t e = 0; e < width; ++e) reinterpret_cast<float*>(page)[e * kPage + slot] = key[e];
        return;
    }
    float* const scales = reinterpret_cast<float*>(page + width * kPage);
    narrow(
        key, width, type,
        [&](int64_t e, auto value) {
            if (sizeof value == 1)
                page[e * kPage + slot] = static_cast<uint8_t>(value);
            else
                reinterpret_cast<uint16_t*>(page)[e * kPage + slot] = value;
        },
        [&](int64_t group, float scale) { scales[group * kPage + slot] = scale; });
}

static void store_value(const float* value, int64_t width, CacheType type, uint8_t* page, int64_t slot) {
    const int64_t wide = padded_width(width), groups = (width + kBlock - 1) / kBlock;
    if (type == CacheType::kF32) {
        for (int64_t e = 0; e < width; ++e) reinterpret_cast<float*>(page)[slot * wide + e] = value[e];
        return;
    }
    float* const scales = reinterpret_cast<float*>(page + wide * kPage);
    narrow(
        value, width, type,
        [&](int64_t e, auto number) {
            if (sizeof number == 1)
                page[slot * wide + e] = static_cast<uint8_t>(number);
            else
                reinterpret_cast<uint16_t*>(page)[slot * wide + e] = number;
        },
        [&](int64_t group, float scale) { scales[slot * groups + group] = scale; });
}
