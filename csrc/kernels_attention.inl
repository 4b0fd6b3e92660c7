// Attention over a paged cache with an online softmax (Dao et al., FlashAttention, arXiv:2205.14135). For each page of
// keys and values in turn, each query updates its maximum score, its sum of exponentials and its weighted sum of
// values. The sums of a query do not depend on the other queries of the call.

// The following types read and multiply the lines of a cache matrix. A line holds kRows interleaved rows; 16 columns of
// a line take kBytes bytes. add(line, a, sum) = sum + line * a for a vector of columns, summed over the kRows rows.
struct LineF32 {
    using Element = float;
    using Vector = f32x16;
    static constexpr int kRows = 1, kBytes = 64;
    PUNA_INLINE Vector at(const uint8_t* from) { return load(reinterpret_cast<const float*>(from)); }
    PUNA_INLINE f32x16 add(const Vector& line, const float* a, const f32x16& sum) {
        return fma(line, broadcast(*a), sum);
    }
};
struct LineF16 {
    using Element = float;
    using Vector = f32x16;
    static constexpr int kRows = 1, kBytes = 32;
    PUNA_INLINE Vector at(const uint8_t* from) { return f16_to_f32(reinterpret_cast<const uint16_t*>(from)); }
    PUNA_INLINE f32x16 add(const Vector& line, const float* a, const f32x16& sum) {
        return fma(line, broadcast(*a), sum);
    }
};
// On processors with bf16 instructions, the other factor is rounded to bf16 too.
struct LineBf16 {
    using Vector = u32x16;
    static constexpr int kRows = 2, kBytes = 64;
    PUNA_INLINE Vector at(const uint8_t* from) { return load_u32(from); }
    PUNA_INLINE Vector first_row(const Vector& line) { return line & 0xffffu; }
#if defined(__AVX512BF16__)
    using Element = uint16_t;
    PUNA_INLINE f32x16 add(const Vector& line, const uint16_t* a, const f32x16& sum) {
        const __m512i both = _mm512_set1_epi32(load_i32(reinterpret_cast<const int8_t*>(a)));
        return f32x16{{(f32_reg)_mm512_dpbf16_ps((__m512)sum.reg[0], (__m512bh)line.reg[0], (__m512bh)both)}};
    }
#else
    using Element = float;
    PUNA_INLINE f32x16 add(const Vector& line, const float* a, const f32x16& sum) {
        return fma(as_f32(line & 0xffff0000u), broadcast(a[1]),
                   fma(as_f32(shift_right(line, -16)), broadcast(a[0]), sum));
    }
#endif
};
constexpr bool kMultipliesBf16 = sizeof(LineBf16::Element) == 2;

// A matrix in a cache page, or a float32 copy of one: `rows` rows in lines of `line` bytes. `next` is the matrix that
// will be read after it, or null. Pages are scattered in memory, so the hardware prefetcher cannot predict them: while
// one matrix is multiplied, the next one is prefetched in the order of its addresses.
struct CacheMatrix {
    const uint8_t* from;
    int64_t line;
    int64_t rows;
    const uint8_t* next;
};

// Computes a tile of c = a b, or with kAccumulate of c = correction[t] * c + a b. The tile covers kTokens rows of a and
// kGroup vectors of b, starting with vector v. kPrefetch: also prefetch b.next.
template <typename Line, int kTokens, int kGroup, bool kAccumulate, bool kPrefetch>
PUNA_INLINE void product_tile(const typename Line::Element* a, int64_t a_stride, const CacheMatrix& b, int64_t v,
                              float* c, int64_t c_stride, const float* correction) {
    f32x16 acc[kTokens][kGroup];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g)
            acc[t][g] = kAccumulate ? load(c + t * c_stride + g * kLanes) * broadcast(correction[t]) : broadcast(0.0f);
    const auto step = [&](int64_t k, auto whole) PUNA_INLINED {
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
    const uint8_t* prefetch_at = kPrefetch ? b.next + v * lines * Line::kBytes : b.from;
    int64_t k = 0;
    for (; k < lines; ++k, prefetch_at += kGroup * Line::kBytes) {
#pragma GCC unroll 4
        for (int at = 0; kPrefetch && at < kGroup * Line::kBytes; at += 64)
            __builtin_prefetch(prefetch_at + at, 0, kStreamLevel);
        step(k, Constant<1>());
    }
    // With an odd number of rows, the last line holds only one valid row. The other row may be NaN and is cleared.
    if constexpr (Line::kRows == 2)
        if (b.rows % 2) step(k, Constant<0>());
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) store(c + t * c_stride + g * kLanes, acc[t][g]);
}

// Multiplies kTokens rows of a by all vectors of b.
template <typename Line, int kTokens, int kGroup, bool kAccumulate, bool kPrefetch>
PUNA_INLINE void product_rows(const typename Line::Element* a, int64_t a_stride, const CacheMatrix& b, int64_t vectors,
                              float* c, int64_t c_stride, const float* correction) {
    int64_t v = 0;
    for (; v + kGroup <= vectors; v += kGroup)
        product_tile<Line, kTokens, kGroup, kAccumulate, kPrefetch>(a, a_stride, b, v, c + v * kLanes, c_stride,
                                                                    correction);
    for (; v < vectors; ++v)
        product_tile<Line, kTokens, 1, kAccumulate, kPrefetch>(a, a_stride, b, v, c + v * kLanes, c_stride, correction);
}

// c = a b, or correction[t] * c + a b, for `count` rows of a, in tiles whose sums fit into the registers. Only the
// tiles of the first rows prefetch b.next.
template <typename Line, bool kAccumulate>
static void product(const typename Line::Element* a, int64_t a_stride, int64_t count, const CacheMatrix& b,
                    int64_t vectors, float* c, int64_t c_stride, const float* correction) {
    int64_t t = 0;
    const auto pass = [&](auto tokens, auto group) {
        constexpr int kTokens = decltype(tokens)::kValue, kGroup = decltype(group)::kValue;
        for (; t + kTokens <= count; t += kTokens) {
            const float* const corrections = kAccumulate ? correction + t : nullptr;
            if (t == 0 && b.next)
                product_rows<Line, kTokens, kGroup, kAccumulate, true>(a + t * a_stride, a_stride, b, vectors,
                                                                       c + t * c_stride, c_stride, corrections);
            else
                product_rows<Line, kTokens, kGroup, kAccumulate, false>(a + t * a_stride, a_stride, b, vectors,
                                                                        c + t * c_stride, c_stride, corrections);
        }
    };
    // Sizes that fit into the registers. Zen 3, AVX2: tiles of 3 x 2 need 17 registers and take half as long again as
    // 3 x 1; the others, and those of AVX-512, were not compared with neighbours.
#if defined(__AVX512F__)
    pass(Constant<8>(), Constant<2>());
    pass(Constant<4>(), Constant<4>());
    pass(Constant<3>(), Constant<4>());
    pass(Constant<2>(), Constant<4>());
    pass(Constant<1>(), Constant<4>());
#elif defined(__AVX2__)
    if (count % 6 != 2) pass(Constant<6>(), Constant<1>());  // if two rows would remain, tiles of four are faster
    pass(Constant<4>(), Constant<1>());
    pass(Constant<3>(), Constant<1>());
    pass(Constant<2>(), Constant<2>());
    pass(Constant<1>(), Constant<4>());
#else
    pass(Constant<3>(), Constant<1>());
    pass(Constant<1>(), Constant<2>());
#endif
}

// Whether queries and scores are rounded to bf16 before they are multiplied by a cache matrix of this type.
PUNA_INLINE bool rounds_to_bf16(CacheType type) { return kMultipliesBf16 && type == CacheType::kBF16; }

// Calls `product` for a cache type. f16 and bf16 matrices are multiplied in their own type, all others must be f32.
// `rounded`: a as bf16, if it must be rounded.
template <bool kAccumulate>
PUNA_INLINE void product_as(CacheType type, const float* a, const uint16_t* rounded, int64_t a_stride, int64_t count,
                            const CacheMatrix& b, int64_t vectors, float* c, int64_t c_stride,
                            const float* correction) {
    if (type == CacheType::kF16)
        return product<LineF16, kAccumulate>(a, a_stride, count, b, vectors, c, c_stride, correction);
    if (type != CacheType::kBF16)
        return product<LineF32, kAccumulate>(a, a_stride, count, b, vectors, c, c_stride, correction);
    if constexpr (kMultipliesBf16)
        product<LineBf16, kAccumulate>(rounded, a_stride, count, b, vectors, c, c_stride, correction);
    else
        product<LineBf16, kAccumulate>(a, a_stride, count, b, vectors, c, c_stride, correction);
}

// Widens `rows` rows of a cache page to floats. `width`: row length, a multiple of 16. q8_0 values are not multiplied
// by their scales.
PUNA_INLINE void widen_page(const uint8_t* from, CacheType type, int64_t rows, int64_t width, float* to) {
    if (type == CacheType::kBF16) {
        for (int64_t row = 0; row < rows; row += 2)
            for (int64_t i = 0; i < width; i += kLanes) {
                const u32x16 both = load_u32(from + (row / 2 * width + i) * 4);
                store(to + row * width + i, as_f32(shift_right(both, -16)));
                if (row + 1 < rows) store(to + (row + 1) * width + i, as_f32(both & 0xffff0000u));
            }
        return;
    }
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < rows * width; i += kLanes)
        store(to + i, type == CacheType::kF16 ? f16_to_f32(halves + i) : to_f32(widen_i8(from + i)));
}

// Returns a page's keys, rotated, as float32, [head_dim][kPage]. The result points into the cache if the cache holds
// the keys in this form, else to `scratch`.
PUNA_INLINE const float* read_keys(const HeadCache& cache, int64_t index, float* scratch) {
    const uint8_t* from = cache.keys + cache.pages[index] * cache.key_stride;
    const int64_t width = cache.head_dim, half = width / 2;
    const float* keys = reinterpret_cast<const float*>(from);
    if (cache.type != CacheType::kF32) {
        widen_page(from, cache.type, width, kPage, scratch);
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
        const f32x16 first = load(keys + i), second = load(keys + half * kPage + i), c = load(cos + i),
                     s = load(sin + i);
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
    widen_page(from, cache.type, valid, wide, scratch);
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

constexpr float kInitialMax = -3e38f;  // initial maximum score: finite, because -infinity - -infinity would be NaN

// Writes reduce_max or reduce_add of vector(i), for each query i, to out[i]. AVX-512 reduces sixteen vectors at once,
// in the same order.
template <bool kAdd, typename Vector>
PUNA_INLINE void reduce_rows(int64_t count, const Vector& vector, float* out) {
    int64_t i = 0;
#if defined(__AVX512F__) && !defined(PUNA_EMULATE)
    for (; i + 16 <= count; i += 16) {
        __m512i rows[16];
        for (int r = 0; r < 16; ++r) rows[r] = (__m512i)vector(i + r).reg[0];
        const __m512i each = reduce_each(rows, [](__m512i a, __m512i b) PUNA_INLINED {
            return (__m512i)(kAdd ? _mm512_add_ps((__m512)a, (__m512)b) : _mm512_max_ps((__m512)a, (__m512)b));
        });
        _mm512_storeu_ps(out + i, (__m512)each);
    }
#endif
    for (; i < count; ++i) out[i] = kAdd ? reduce_add(vector(i)) : reduce_max(vector(i));
}

// Sets the scores of query i after its first valid[i] keys of a page to -infinity, and computes the maximum of each
// query.
PUNA_INLINE void mask_scores(float* scores, int64_t count, const int64_t* valid, float* max_score) {
    const auto maximum_of = [&](int64_t i) PUNA_INLINED {
        float* const row = scores + i * kPage;
        for (int64_t j = valid[i] > 0 ? valid[i] : 0; j < kPage; ++j) row[j] = -__builtin_inff();
        f32x16 maximum = load(row);
        for (int64_t j = kLanes; j < kPage; j += kLanes) maximum = max(maximum, load(row + j));
        return maximum;
    };
    reduce_rows<false>(count, maximum_of, max_score);
}

// Replaces the scores of a page by exponentials relative to each query's new maximum, and updates maximum and exp_sum.
// correction[i] = exp(old maximum - new maximum): the factor for the query's earlier sums. `correction` must have space
// for kMaxQueries numbers.
PUNA_INLINE void softmax_block(float* scores, int64_t count, const int64_t* valid, float* max_score, float* exp_sum,
                               float* correction) {
    float here[kMaxQueries], sums[kMaxQueries];
    mask_scores(scores, count, valid, here);
    for (int64_t i = 0; i < count; i += kLanes) {
        const f32x16 before = load_partial(max_score + i, count - i),
                     now = max(load_partial(here + i, count - i), before);
        store(correction + i, exp(before - now));
        store(here + i, now);
    }
    const auto sum_of = [&](int64_t i) PUNA_INLINED {
        const f32x16 now = broadcast(here[i]);
        f32x16 sum = broadcast(0.0f);
        for (int64_t j = 0; j < kPage; j += kLanes) {
            float* const at = scores + i * kPage + j;
            const f32x16 weight = exp(load(at) - now);
            store(at, weight);
            sum = sum + weight;
        }
        return sum;
    };
    reduce_rows<true>(count, sum_of, sums);
    for (int64_t i = 0; i < count; ++i) {
        max_score[i] = here[i];
        exp_sum[i] = exp_sum[i] * correction[i] + sums[i];
    }
}

// Whether the cache is multiplied in its own type, without widening it first. Widening a page once for all queries pays
// off with more than eight queries, except for f32, which needs no widening, and for bf16 with bf16 instructions. q8_0
// is always widened. Zen 4: with 3 queries, reading directly took 0.7 instead of 1.8 ms per token of SmolLM2 at 512;
// the limit of eight was not compared with neighbours.
PUNA_INLINE bool multiplies_directly(CacheType type, int64_t queries) {
    if (type == CacheType::kF32 || (type == CacheType::kBF16 && kMultipliesBf16)) return true;
    return type != CacheType::kQ8_0 && queries <= 8;
}

PUNA_INLINE const uint8_t* as_bytes(const float* from) { return reinterpret_cast<const uint8_t*>(from); }

// See Kernels::attend.
static void attend(const Queries& queries, const HeadCache& cache, int64_t split, float* scratch) {
    const int64_t width = cache.head_dim, wide = padded_width(width), first = split * kSplit;
    const int64_t rows = cache.type == CacheType::kBF16 ? 2 : 1;  // rows of keys or values in a line
    const int64_t bytes = cache.type == CacheType::kF32 ? 4 : 2;
    const bool direct = multiplies_directly(cache.type, queries.count), direct_keys = direct && !cache.cos;
    // `scratch` holds a page's keys, then its values; they share this memory so that it stays in L1.
    float* const scores = scratch + kPage * wide;
    uint16_t* const rounded_scores = reinterpret_cast<uint16_t*>(scores + kPage * queries.count);
    uint16_t* const rounded_queries = rounded_scores + kPage * queries.count;
    int64_t last = 0;
    for (int64_t i = 0; i < queries.count; ++i) {
        last = queries.last[i] > last ? queries.last[i] : last;
        queries.max_score[i] = kInitialMax;
        queries.exp_sum[i] = 0.0f;
    }
    // Prefetch the keys of the first page. The keys of later pages are prefetched by the preceding product.
    if (direct_keys)
        for (int64_t at = 0; at < cache.head_dim * kPage * bytes; at += 64)
            __builtin_prefetch(cache.keys + cache.pages[first / kPage] * cache.key_stride + at, 0, kStreamLevel);
    const CacheType key_type = direct_keys ? cache.type : CacheType::kF32;
    const CacheType value_type = direct ? cache.type : CacheType::kF32;
    if (rounds_to_bf16(key_type)) round_to_bf16(queries.values, queries.count * width, rounded_queries);
    for (int64_t i = 0; i < queries.count * wide; ++i) queries.weighted_values[i] = 0.0f;
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
        CacheMatrix keys{page_keys, kPage * rows * bytes, width, page_values};
        if (!direct_keys) keys = {as_bytes(read_keys(cache, index, scratch)), kPage * 4, width, nullptr};
        product_as<false>(key_type, queries.values, rounded_queries, width, queries.count, keys, vectors, scores, kPage,
                          nullptr);
        // scores = exp(scores - max_score); keys after a query's own position get 0
        int64_t valid[kMaxQueries];
        for (int64_t i = 0; i < queries.count; ++i) valid[i] = queries.last[i] + 1 - start;
        float correction[kMaxQueries];
        softmax_block(scores, queries.count, valid, queries.max_score, queries.exp_sum, correction);
        // weighted_values = correction * weighted_values + scores * values
        CacheMatrix values{page_values, wide * rows * bytes, seen, next_keys};
        if (!direct) values = {as_bytes(read_values(cache, index, seen, scratch)), wide * 4, seen, nullptr};
        if (rounds_to_bf16(value_type)) round_to_bf16(scores, queries.count * kPage, rounded_scores);
        product_as<true>(value_type, scores, rounded_scores, kPage, queries.count, values, wide / kLanes,
                         queries.weighted_values, wide, correction);
    }
}

// See Kernels::merge. Both sums are rescaled to the common maximum.
static void merge(float* max_score, float* exp_sum, float* weighted_values, float later_max, float later_sum,
                  const float* later_values, int64_t wide) {
    const float now = later_max > *max_score ? later_max : *max_score;
    float before[kLanes], after[kLanes];
    store(before, exp(broadcast(*max_score - now)));
    store(after, exp(broadcast(later_max - now)));
    const f32x16 a = broadcast(before[0]), b = broadcast(after[0]);
    for (int64_t e = 0; e < wide; e += kLanes)
        store(weighted_values + e, fma(load(later_values + e), b, load(weighted_values + e) * a));
    *exp_sum = *exp_sum * before[0] + later_sum * after[0];
    *max_score = now;
}

// Converts one token's key or value to the type of a 16-bit or 8-bit cache: put(e, number) stores element e, and
// put_scale(group, scale) the scale of a q8_0 block. q8_0 rounds as in ggml: scale = largest magnitude / 127.
template <typename Put, typename PutScale>
PUNA_INLINE void narrow_row(const float* from, int64_t width, CacheType type, const Put& put,
                            const PutScale& put_scale) {
    if (type != CacheType::kQ8_0) {
        for (int64_t e = 0; e < width; e += kLanes) {
            uint16_t halves[kLanes];
            const f32x16 value = load_partial(from + e, width - e);
            type == CacheType::kF16 ? store_f16(halves, value) : store_bf16(halves, value);
            for (int64_t i = 0; i < kLanes && e + i < width; ++i) put(e + i, halves[i]);
        }
        return;
    }
    for (int64_t e = 0; e < width; e += kBlock) {
        const int64_t count = width - e < kBlock ? width - e : kBlock;
        float block[kBlock] = {};
        for (int64_t i = 0; i < count; ++i) block[i] = from[e + i];
        ActivationBlock rounded;
        quantize_blocks<1, false>(block, &rounded);
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
    narrow_row(
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
    narrow_row(
        value, width, type,
        [&](int64_t e, auto number) {
            if (sizeof number == 1)
                page[slot * wide + e] = static_cast<uint8_t>(number);
            else
                halves[type == CacheType::kBF16 ? (slot / 2 * wide + e) * 2 + slot % 2 : slot * wide + e] = number;
        },
        [&](int64_t group, float scale) { scales[slot * groups + group] = scale; });
}
