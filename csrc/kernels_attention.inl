// Attention over a paged cache with an online softmax (Dao et al., FlashAttention, arXiv:2205.14135). For each page of
// keys and values in turn, each query updates its maximum score, its sum of exponentials and its weighted sum of
// values. The sums of a query do not depend on the other queries of the call.

// The following types read and multiply the lines of a cache matrix. A line holds kRows interleaved rows; 16 columns of
// a line take kBytes bytes. add(line, a, sum) = sum + line * a for a vector of columns, summed over the kRows rows.
struct LineF32 {
    using Number = float;
    using Vector = V16;
    static constexpr int kRows = 1, kBytes = 64;
    PUNA_INLINE Vector at(const uint8_t* from) { return load(reinterpret_cast<const float*>(from)); }
    PUNA_INLINE V16 add(const Vector& line, const float* a, const V16& sum) { return madd(line, broadcast(*a), sum); }
};
struct LineF16 {
    using Number = float;
    using Vector = V16;
    static constexpr int kRows = 1, kBytes = 32;
    PUNA_INLINE Vector at(const uint8_t* from) { return from_f16(reinterpret_cast<const uint16_t*>(from)); }
    PUNA_INLINE V16 add(const Vector& line, const float* a, const V16& sum) { return madd(line, broadcast(*a), sum); }
};
// On processors with bf16 instructions, the other factor is rounded to bf16 too.
struct LineBf16 {
    using Vector = U16;
    static constexpr int kRows = 2, kBytes = 64;
    PUNA_INLINE Vector at(const uint8_t* from) { return load_words(from); }
    PUNA_INLINE Vector first_row(const Vector& line) { return line & 0xffffu; }
#if defined(__AVX512BF16__)
    using Number = uint16_t;
    PUNA_INLINE V16 add(const Vector& line, const uint16_t* a, const V16& sum) {
        const __m512i both = _mm512_set1_epi32(four_quants(reinterpret_cast<const int8_t*>(a)));
        return V16{{(Reg)_mm512_dpbf16_ps((__m512)sum.part[0], (__m512bh)line.part[0], (__m512bh)both)}};
    }
#else
    using Number = float;
    PUNA_INLINE V16 add(const Vector& line, const float* a, const V16& sum) {
        return madd(as_floats(line & 0xffff0000u), broadcast(a[1]),
                    madd(as_floats(shifted(line, -16)), broadcast(a[0]), sum));
    }
#endif
};
constexpr bool kRoundsFactors = sizeof(LineBf16::Number) == 2;

// A matrix in a cache page, or a float32 copy of one: `rows` rows in lines of `line` bytes. `next` is the matrix that
// will be read after it, or null. Pages are scattered in memory, so the hardware prefetcher cannot predict them: while
// one matrix is multiplied, the next one is prefetched in the order of its addresses.
struct Lines {
    const uint8_t* from;
    int64_t line;
    int64_t rows;
    const uint8_t* next;
};

// Computes a tile of c = a b, or with kCarry of c = shrink[t] * c + a b. The tile covers kTokens rows of a and kGroup
// vectors of b, starting with vector v. kAsks: also prefetch b.next.
template <typename Line, int kTokens, int kGroup, bool kCarry, bool kAsks>
PUNA_INLINE void product_tile(const typename Line::Number* a, int64_t a_stride, const Lines& b, int64_t v, float* c,
                              int64_t c_stride, const float* shrink) {
    V16 acc[kTokens][kGroup];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g)
            acc[t][g] = kCarry ? load(c + t * c_stride + g * kLanes) * broadcast(shrink[t]) : broadcast(0.0f);
    const auto step = [&](int64_t k, auto whole) __attribute__((always_inline)) {
        typename Line::Vector line[kGroup];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
            line[g] = Line::at(b.from + k * b.line + (v + g) * Line::kBytes);
            if constexpr (!decltype(whole)::kValue) line[g] = Line::first_row(line[g]);
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
            for (int g = 0; g < kGroup; ++g)
                acc[t][g] = Line::add(line[g], a + t * a_stride + k * Line::kRows, acc[t][g]);
    };
    const int64_t lines = b.rows / Line::kRows;
    // The share of b.next that this tile prefetches: as many bytes as the tile reads of b.
    const uint8_t* soon = kAsks ? b.next + v * lines * Line::kBytes : b.from;
    int64_t k = 0;
    for (; k < lines; ++k, soon += kGroup * Line::kBytes) {
#pragma GCC unroll 4
        for (int at = 0; kAsks && at < kGroup * Line::kBytes; at += 64)
            __builtin_prefetch(soon + at, 0, kStreamCache);
        step(k, Number<1>());
    }
    // With an odd number of rows, the last line holds only one valid row. The other row may be NaN and is cleared.
    if constexpr (Line::kRows == 2)
        if (b.rows % 2) step(k, Number<0>());
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) store(c + t * c_stride + g * kLanes, acc[t][g]);
}

// Multiplies kTokens rows of a by all vectors of b.
template <typename Line, int kTokens, int kGroup, bool kCarry, bool kAsks>
PUNA_INLINE void product_rows(const typename Line::Number* a, int64_t a_stride, const Lines& b, int64_t vectors,
                              float* c, int64_t c_stride, const float* shrink) {
    int64_t v = 0;
    for (; v + kGroup <= vectors; v += kGroup)
        product_tile<Line, kTokens, kGroup, kCarry, kAsks>(a, a_stride, b, v, c + v * kLanes, c_stride, shrink);
    for (; v < vectors; ++v)
        product_tile<Line, kTokens, 1, kCarry, kAsks>(a, a_stride, b, v, c + v * kLanes, c_stride, shrink);
}

// c = a b, or shrink[t] * c + a b, for `count` rows of a, in tiles whose sums fit into the registers. Only the tiles of
// the first rows prefetch b.next.
template <typename Line, bool kCarry>
static void product(const typename Line::Number* a, int64_t a_stride, int64_t count, const Lines& b, int64_t vectors,
                    float* c, int64_t c_stride, const float* shrink) {
    int64_t t = 0;
    const auto pass = [&](auto tokens, auto group) {
        constexpr int kTokens = decltype(tokens)::kValue, kGroup = decltype(group)::kValue;
        for (; t + kTokens <= count; t += kTokens) {
            const float* const shrinks = kCarry ? shrink + t : nullptr;
            if (t == 0 && b.next)
                product_rows<Line, kTokens, kGroup, kCarry, true>(a + t * a_stride, a_stride, b, vectors,
                                                                  c + t * c_stride, c_stride, shrinks);
            else
                product_rows<Line, kTokens, kGroup, kCarry, false>(a + t * a_stride, a_stride, b, vectors,
                                                                   c + t * c_stride, c_stride, shrinks);
        }
    };
#if defined(__AVX512F__)
    pass(Number<8>(), Number<2>());
    pass(Number<4>(), Number<4>());
    pass(Number<3>(), Number<4>());
    pass(Number<2>(), Number<4>());
    pass(Number<1>(), Number<4>());
#elif defined(__AVX2__)
    if (count % 6 != 2) pass(Number<6>(), Number<1>());  // if two rows would remain, tiles of four are faster
    pass(Number<4>(), Number<1>());
    pass(Number<3>(), Number<1>());
    pass(Number<2>(), Number<2>());
    pass(Number<1>(), Number<4>());
#else
    pass(Number<3>(), Number<1>());
    pass(Number<1>(), Number<2>());
#endif
}

// Calls `product` for a cache type. f16 and bf16 matrices are multiplied in their own type, all others must be f32.
// `rounded` has room for count * a_stride bf16 values.
template <bool kCarry>
PUNA_INLINE void product_of(CacheType type, const float* a, int64_t a_stride, int64_t count, const Lines& b,
                            int64_t vectors, float* c, int64_t c_stride, const float* shrink, uint16_t* rounded) {
    if (type == CacheType::kF16) return product<LineF16, kCarry>(a, a_stride, count, b, vectors, c, c_stride, shrink);
    if (type != CacheType::kBF16) return product<LineF32, kCarry>(a, a_stride, count, b, vectors, c, c_stride, shrink);
    if constexpr (kRoundsFactors) {
        round_to_bf16(a, count * a_stride, rounded);
        product<LineBf16, kCarry>(rounded, a_stride, count, b, vectors, c, c_stride, shrink);
    } else {
        product<LineBf16, kCarry>(a, a_stride, count, b, vectors, c, c_stride, shrink);
    }
}

// Widens `rows` rows of a cache page to floats. `width`: row length, a multiple of 16. q8_0 values are not multiplied
// by their scales.
PUNA_INLINE void widen(const uint8_t* from, CacheType type, int64_t rows, int64_t width, float* to) {
    if (type == CacheType::kBF16) {
        for (int64_t row = 0; row < rows; row += 2)
            for (int64_t i = 0; i < width; i += kLanes) {
                const U16 both = load_words(from + (row / 2 * width + i) * 4);
                store(to + row * width + i, as_floats(shifted(both, -16)));
                if (row + 1 < rows) store(to + (row + 1) * width + i, as_floats(both & 0xffff0000u));
            }
        return;
    }
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < rows * width; i += kLanes)
        store(to + i, type == CacheType::kF16 ? from_f16(halves + i) : to_floats(from_signed(from + i)));
}

// Returns a page's keys, rotated, as float32, [head_dim][kPage]. The result points into the cache if the cache holds
// the keys in this form, else to `scratch`.
PUNA_INLINE const float* read_keys(const HeadCache& cache, int64_t index, float* scratch) {
    const uint8_t* from = cache.keys + cache.pages[index] * cache.key_stride;
    const int64_t width = cache.head_dim, half = width / 2;
    const float* keys = reinterpret_cast<const float*>(from);
    if (cache.type != CacheType::kF32) {
        widen(from, cache.type, width, kPage, scratch);
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

// Returns the first `valid` values of a page as float32, [kPage][padded head_dim].
PUNA_INLINE const float* read_values(const HeadCache& cache, int64_t index, int64_t valid, float* scratch) {
    const uint8_t* from = cache.values + cache.pages[index] * cache.value_stride;
    if (cache.type == CacheType::kF32) return reinterpret_cast<const float*>(from);
    const int64_t wide = padded_width(cache.head_dim);
    widen(from, cache.type, valid, wide, scratch);
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

constexpr float kLowest = -3e38f;  // initial maximum score: finite, because -infinity - -infinity would be NaN

// Sets the scores of query i after its first valid[i] keys of a page to -infinity, and computes the maximum of each
// query.
PUNA_INLINE void mask(float* scores, int64_t count, const int64_t* valid, float* highest) {
    for (int64_t i = 0; i < count; ++i) {
        float* const row = scores + i * kPage;
        V16 most = broadcast(-__builtin_inff());
        for (int64_t j = 0; j < kPage; j += kLanes) {
            const int64_t rest = valid[i] - j;
            if (rest < kLanes)
                for (int64_t k = rest > 0 ? rest : 0; k < kLanes; ++k) row[j + k] = -__builtin_inff();
            most = higher(most, load(row + j));
        }
        highest[i] = highest_of(most);
    }
}

// Replaces the scores of a page by exponentials relative to each query's new maximum, and updates maximum and total.
// shrink[i] = exp(old maximum - new maximum): the factor for the query's earlier sums. `shrink` must have space for
// kMaxQueries numbers.
PUNA_INLINE void soften(float* scores, int64_t count, const int64_t* valid, float* highest, float* total,
                        float* shrink) {
    float here[kMaxQueries], sums[kMaxQueries];
    mask(scores, count, valid, here);
    for (int64_t i = 0; i < count; i += kLanes) {
        const V16 before = load_some(highest + i, count - i), now = higher(load_some(here + i, count - i), before);
        store(shrink + i, exponential(before - now));
        store(here + i, now);
    }
    for (int64_t i = 0; i < count; ++i) {
        const V16 now = broadcast(here[i]);
        V16 sum = broadcast(0.0f);
        for (int64_t j = 0; j < kPage; j += kLanes) {
            float* const at = scores + i * kPage + j;
            const V16 weight = exponential(load(at) - now);
            store(at, weight);
            sum = sum + weight;
        }
        sums[i] = sum_of(sum);
        highest[i] = here[i];
        total[i] = total[i] * shrink[i] + sums[i];
    }
}

// Whether the cache is multiplied in its own type, without widening it first. Widening a page once for all queries pays
// off with more than eight queries, except for f32, which needs no widening, and for bf16 with bf16 instructions. q8_0
// is always widened.
PUNA_INLINE bool reads_direct(CacheType type, int64_t queries) {
    if (type == CacheType::kF32 || (type == CacheType::kBF16 && kRoundsFactors)) return true;
    return type != CacheType::kQ8_0 && queries <= 8;
}

PUNA_INLINE const uint8_t* as_bytes(const float* from) { return reinterpret_cast<const uint8_t*>(from); }

// See Kernels::attend.
static void attend(const Queries& queries, const HeadCache& cache, int64_t split, float* scratch) {
    const int64_t width = cache.head_dim, wide = padded_width(width), first = split * kSplit;
    const int64_t rows = cache.type == CacheType::kBF16 ? 2 : 1;  // rows of keys or values in a line
    const int64_t bytes = cache.type == CacheType::kF32 ? 4 : 2;
    const bool direct = reads_direct(cache.type, queries.count), direct_keys = direct && !cache.cos;
    // `scratch` holds a page's keys, then its values; they share this memory so that it stays in L1.
    float* const scores = scratch + kPage * wide;
    uint16_t* const rounded = reinterpret_cast<uint16_t*>(scores + kPage * queries.count);
    int64_t last = 0;
    for (int64_t i = 0; i < queries.count; ++i) {
        last = queries.last[i] > last ? queries.last[i] : last;
        queries.highest[i] = kLowest;
        queries.total[i] = 0.0f;
    }
    // Prefetch the keys of the first page. The keys of later pages are prefetched by the preceding product.
    if (direct_keys)
        for (int64_t at = 0; at < cache.head_dim * kPage * bytes; at += 64)
            __builtin_prefetch(cache.keys + cache.pages[first / kPage] * cache.key_stride + at, 0, kStreamCache);
    for (int64_t i = 0; i < queries.count * wide; ++i) queries.mixed[i] = 0.0f;
    for (int64_t start = first; start <= last && start < first + kSplit; start += kPage) {
        // seen: keys of this page up to the last query's position. vectors: vectors of scores. more: another page
        // follows.
        const int64_t seen = last + 1 - start < kPage ? last + 1 - start : kPage, index = start / kPage;
        const int64_t vectors = (seen + kLanes - 1) / kLanes;
        const bool more = start + kPage <= last && start + kPage < first + kSplit;
        const uint8_t* const next_keys = more ? cache.keys + cache.pages[index + 1] * cache.key_stride : nullptr;
        const uint8_t* const page_keys = cache.keys + cache.pages[index] * cache.key_stride;
        const uint8_t* const page_values = cache.values + cache.pages[index] * cache.value_stride;
        // scores = queries * keys
        Lines keys{page_keys, kPage * rows * bytes, width, page_values};
        if (!direct_keys) keys = {as_bytes(read_keys(cache, index, scratch)), kPage * 4, width, nullptr};
        product_of<false>(direct_keys ? cache.type : CacheType::kF32, queries.values, width, queries.count, keys,
                          vectors, scores, kPage, nullptr, rounded);
        // scores = exp(scores - highest); keys after a query's own position get 0
        int64_t valid[kMaxQueries];
        for (int64_t i = 0; i < queries.count; ++i) valid[i] = queries.last[i] + 1 - start;
        float shrink[kMaxQueries];
        soften(scores, queries.count, valid, queries.highest, queries.total, shrink);
        // mixed = shrink * mixed + scores * values
        Lines values{page_values, wide * rows * bytes, seen, next_keys};
        if (!direct) values = {as_bytes(read_values(cache, index, seen, scratch)), wide * 4, seen, nullptr};
        product_of<true>(direct ? cache.type : CacheType::kF32, scores, kPage, queries.count, values, wide / kLanes,
                         queries.mixed, wide, shrink, rounded);
    }
}

// See Kernels::merge. Both sums are rescaled to the common maximum.
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

// Converts one token's key or value to the type of a 16-bit or 8-bit cache: put(e, number) stores element e, and
// put_scale(group, scale) the scale of a q8_0 block. q8_0 rounds as in ggml: scale = largest magnitude / 127.
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
        quantize(block, kBlock, &rounded);
        for (int64_t i = 0; i < count; ++i) put(e + i, static_cast<uint8_t>(rounded.quants[i]));
        put_scale(e / kBlock, rounded.scale);
    }
}

// See Kernels::store_key. Keys are transposed: element e of slot j is number e * kPage + j of the page.
static void store_key(const float* key, int64_t width, CacheType type, uint8_t* page, int64_t slot) {
    if (type == CacheType::kF32) {
        for (int64_t e = 0; e < width; ++e) reinterpret_cast<float*>(page)[e * kPage + slot] = key[e];
        return;
    }
    float* const scales = reinterpret_cast<float*>(page + width * kPage);
    uint16_t* const halves = reinterpret_cast<uint16_t*>(page);
    narrow(
        key, width, type,
        [&](int64_t e, auto value) {
            if (sizeof value == 1)
                page[e * kPage + slot] = static_cast<uint8_t>(value);
            else
                halves[type == CacheType::kBF16 ? (e / 2 * kPage + slot) * 2 + e % 2 : e * kPage + slot] = value;
        },
        [&](int64_t group, float scale) { scales[group * kPage + slot] = scale; });
}

// See Kernels::store_value.
static void store_value(const float* value, int64_t width, CacheType type, uint8_t* page, int64_t slot) {
    const int64_t wide = padded_width(width), groups = (width + kBlock - 1) / kBlock;
    if (type == CacheType::kF32) {
        for (int64_t e = 0; e < width; ++e) reinterpret_cast<float*>(page)[slot * wide + e] = value[e];
        return;
    }
    float* const scales = reinterpret_cast<float*>(page + wide * kPage);
    uint16_t* const halves = reinterpret_cast<uint16_t*>(page);
    narrow(
        value, width, type,
        [&](int64_t e, auto number) {
            if (sizeof number == 1)
                page[slot * wide + e] = static_cast<uint8_t>(number);
            else
                halves[type == CacheType::kBF16 ? (slot / 2 * wide + e) * 2 + slot % 2 : slot * wide + e] = number;
        },
        [&](int64_t group, float scale) { scales[slot * groups + group] = scale; });
}
