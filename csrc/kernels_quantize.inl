// Searches scales for the blocks of quantised formats, sixteen blocks at once: lane b of a vector belongs to block b,
// so that no sum runs across lanes. Fused multiply-adds are not used, so that every instruction set rounds identically.

// Rounds to the nearest integer, ties to even; |x| < 2^22. Adding 1.5 * 2^23 pushes the fraction out of the float.
PUNA_INLINE V16 rounded(const V16& x) {
    const V16 magic = broadcast(12582912.0f);
    return (x + magic) - magic;
}

// Lane-wise minimum.
PUNA_INLINE V16 lower(const V16& a, const V16& b) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] < b.part[i_] ? a.part[i_] : b.part[i_];
    return out;
}

// Lane-wise a > b ? yes : no.
PUNA_INLINE V16 where_above(const V16& a, const V16& b, const V16& yes, const V16& no) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] > b.part[i_] ? yes.part[i_] : no.part[i_];
    return out;
}

// Lane-wise a / b.
PUNA_INLINE V16 over(const V16& a, const V16& b) {
    V16 out;
    PUNA_EACH out.part[i_] = a.part[i_] / b.part[i_];
    return out;
}

// Lane-wise |a|.
PUNA_INLINE V16 magnitude(const V16& a) { return higher(a, broadcast(0.0f) - a); }

// Lane-wise clamp.
PUNA_INLINE V16 limited(const V16& x, const V16& low, const V16& high) { return lower(higher(x, low), high); }

// A block whose values are all smaller becomes 0, because the inverse of its scale would overflow.
constexpr float kTiny = 1e-30f;

// The value of largest magnitude of each block, with its sign; ties: the first.
PUNA_INLINE V16 largest(const Search& block, const float* x) {
    V16 found = broadcast(0.0f);
    for (int i = 0; i < block.size; ++i) {
        const V16 here = load(x + i * kLanes);
        found = where_above(magnitude(here), magnitude(found), here, found);
    }
    return found;
}

// Sums of weight * level * x and of weight * level^2. The best scale for given levels follows from them.
struct Fit {
    V16 lx, ll;
};

// Returns the best scales for levels -n .. n - 1 with x ~ scale * level. Tries 2 * tries + 1 inverse scales around the
// one that maps the largest value to -n, and one that maps it to n - 1. For given levels, the least-squares scale is
// lx / ll, and it lowers the weighted squared error by lx^2 / ll; the largest reduction wins.
template <typename Level>
PUNA_INLINE V16 best_scale(const Search& block, const float* x, const float* w, int tries, const Level& level) {
    const V16 zero = broadcast(0.0f), most = largest(block, x);
    V16 best = zero, scale = zero;
    for (int step = -tries; step <= tries + 1; ++step) {
        // The last try maps the largest value to n - 1 instead of about -n.
        const V16 inverse = over(broadcast(step <= tries ? -block.levels + block.step * static_cast<float>(step)
                                                          : block.levels - 1.0f),
                                 most);
        Fit fit{zero, zero};
        for (int i = 0; i < block.size; ++i) {
            const V16 here = load(x + i * kLanes), l = level(here * inverse);
            const V16 wl = load(w + i * kLanes) * l;
            fit.lx = fit.lx + wl * here;
            fit.ll = fit.ll + wl * l;
        }
        const V16 found = over(fit.lx, where_above(fit.ll, zero, fit.ll, broadcast(1.0f)));
        const V16 gain = found * fit.lx;  // reduction of the squared error
        scale = where_above(gain, best, found, scale);
        best = higher(gain, best);
    }
    return where_above(magnitude(most), broadcast(kTiny), scale, zero);
}

// Finds the best scales and minimums for levels 0 .. n with x ~ scale * level - least. `least` may be negative only
// with block.free. Tries steps + 1 inverse scales. For the levels that an inverse scale yields, scale and minimum are
// fitted by weighted least squares; the pair with the smallest error wins.
PUNA_INLINE void best_line(const Search& block, const float* x, const float* w, float* scale, float* least) {
    const V16 zero = broadcast(0.0f), one = broadcast(1.0f), top = broadcast(block.levels);
    V16 low = block.free ? load(x) : zero, high = load(x), sw = zero, sx = zero, sxx = zero;
    // sw, sx, sxx: sums of the weights, of weight * x, and of weight * x^2.
    for (int i = 0; i < block.size; ++i) {
        const V16 here = load(x + i * kLanes), weight = load(w + i * kLanes), wx = weight * here;
        low = lower(low, here);
        high = higher(high, here);
        sw = sw + weight;
        sx = sx + wx;
        sxx = sxx + wx * here;
    }
    const V16 span = high - low, some = broadcast(kTiny);
    V16 best = broadcast(3e38f), best_scale = over(span, top), best_low = low;
    for (int step = 0; step <= block.steps; ++step) {
        // Levels are relative to the best minimum so far, so that the minimum improves from try to try.
        const V16 here_span = high - best_low, spread = where_above(here_span, some, here_span, one);
        const V16 inverse = over(broadcast(block.levels + block.first + block.step * static_cast<float>(step)), spread);
        // sl, sll, slx: sums of weight * level, of weight * level^2, and of weight * level * x.
        V16 sl = zero, sll = zero, slx = zero;
        for (int i = 0; i < block.size; ++i) {
            const V16 here = load(x + i * kLanes);
            const V16 l = rounded(limited((here - best_low) * inverse, zero, top)), wl = load(w + i * kLanes) * l;
            sl = sl + wl;
            sll = sll + wl * l;
            slx = slx + wl * here;
        }
        // If all levels are equal, no line can be fitted: the determinant is 0 up to rounding errors.
        const V16 spread_of_levels = sw * sll, below = spread_of_levels - sl * sl;
        const V16 noise = spread_of_levels * broadcast(4e-6f), divisor = where_above(below, noise, below, one);
        const V16 free_low = over(sll * sx - sl * slx, divisor), free_scale = over(sw * slx - sx * sl, divisor);
        // Without block.free, a positive minimum is replaced by 0, and the scale alone is fitted.
        const V16 bound_scale = over(slx, where_above(sll, zero, sll, one));
        const V16 bound = block.free ? broadcast(3e38f) : zero;
        const V16 new_scale = where_above(free_low, bound, bound_scale, free_scale), new_low = lower(free_low, bound);
        V16 error = sxx - new_scale * slx - new_low * sx;
        error = where_above(below, noise, error, broadcast(3e38f));
        error = where_above(new_scale, zero, error, broadcast(3e38f));
        best_scale = where_above(best, error, new_scale, best_scale);
        best_low = where_above(best, error, new_low, best_low);
        best = lower(best, error);
    }
    store(scale, where_above(span, some, best_scale, zero));
    store(least, zero - where_above(span, some, best_low, low));
}

// The nearest iq4_nl level: starts at the lowest, and each midpoint that x exceeds adds the distance to the next level.
PUNA_INLINE V16 nearest_level(const V16& x) {
    V16 level = broadcast(kIq4Levels[0]);
    const V16 zero = broadcast(0.0f);
#pragma GCC unroll 15
    for (int k = 0; k < 15; ++k) {
        const V16 middle = broadcast(0.5f * static_cast<float>(kIq4Levels[k] + kIq4Levels[k + 1]));
        const V16 step = broadcast(static_cast<float>(kIq4Levels[k + 1] - kIq4Levels[k]));
        level = level + where_above(x, middle, step, zero);
    }
    return level;
}

static void search(const Search& block, const float* x, const float* w, float* scale, float* least) {
    switch (block.kind) {
        case SearchKind::kLargest:
        case SearchKind::kSigned:
        case SearchKind::kSpan:
            return;  // `extremes` is sufficient
        case SearchKind::kBestScale: {
            const V16 low = broadcast(-block.levels), high = broadcast(block.levels - 1.0f);
            return store(scale, best_scale(block, x, w, block.steps, [&](const V16& at) __attribute__((always_inline)) {
                             return limited(rounded(at), low, high);
                         }));
        }
        case SearchKind::kBestLine:
            return best_line(block, x, w, scale, least);
        case SearchKind::kTable:
            return store(scale, best_scale(block, x, w, block.steps, nearest_level));
    }
}

// Levels of sixteen blocks, as bytes: (x + least) * inverse rounded to the nearest integer, plus `zero`, clamped to
// 0 .. top. Rounds as ggml does: adds 0.5 and truncates, so halves round up.
static void take_levels(const float* x, int size, const float* least, const float* inverse, int zero, int top,
                        uint8_t* out) {
    const V16 add = load(least), times = load(inverse), half = broadcast(static_cast<float>(zero) + 0.5f);
    const V16 low = broadcast(0.0f), high = broadcast(static_cast<float>(top));
    for (int i = 0; i < size; ++i) {
        const V16 at = limited((load(x + i * kLanes) + add) * times + half, low, high);
        int32_t whole[kLanes];
        PUNA_EACH* reinterpret_cast<IntPart*>(whole + i_ * kWidth) = __builtin_convertvector(at.part[i_], IntReg);
        for (int b = 0; b < kLanes; ++b) out[i * kLanes + b] = static_cast<uint8_t>(whole[b]);
    }
}

// Minimum and maximum of each of `blocks` consecutive blocks of 32 values.
static void extremes(const float* x, int64_t blocks, float* low, float* high) {
    const V16 zero = broadcast(0.0f);
    for (int64_t b = 0; b < blocks; ++b) {
        const V16 one = load(x + 2 * b * kLanes), other = load(x + (2 * b + 1) * kLanes);
        high[b] = highest_of(higher(one, other));
        low[b] = -highest_of(zero - lower(one, other));
    }
}

// Like take_levels, for consecutive blocks of 32 values.
static void take_block_levels(const float* x, int64_t blocks, const float* least, const float* inverse, int zero,
                              int top, uint8_t* out) {
    const V16 half = broadcast(static_cast<float>(zero) + 0.5f);
    const V16 low = broadcast(0.0f), high = broadcast(static_cast<float>(top));
    for (int64_t i = 0; i < 2 * blocks; ++i) {
        const V16 add = broadcast(least[i / 2]), times = broadcast(inverse[i / 2]);
        const V16 at = limited((load(x + i * kLanes) + add) * times + half, low, high);
        PUNA_EACH* reinterpret_cast<BytePart*>(out + i * kLanes + i_ * kWidth) =
            __builtin_convertvector(__builtin_convertvector(at.part[i_], IntReg), BytePart);
    }
}

// Weighted squared error of sixteen blocks when each value is replaced by its nearest level l * step - least, with l
// from -zero to top - zero.
static void measure_error(const float* x, const float* w, int size, const float* least, const float* step, int zero,
                          int top, float* out) {
    const V16 none = broadcast(0.0f), add = load(least), by = load(step);
    const V16 inverse = where_above(magnitude(by), none, over(broadcast(1.0f), by), none);
    const V16 low = broadcast(static_cast<float>(-zero)), high = broadcast(static_cast<float>(top - zero));
    V16 error = none;
    for (int i = 0; i < size; ++i) {
        const V16 here = load(x + i * kLanes) + add;
        const V16 off = rounded(limited(here * inverse, low, high)) * by - here;
        error = error + load(w + i * kLanes) * (off * off);
    }
    store(out, error);
}

// Indices of the nearest iq4_nl levels, stored like the levels of take_levels.
static void take_table_levels(const float* x, int size, const float* inverse, uint8_t* out) {
    const V16 times = load(inverse), one = broadcast(1.0f), zero = broadcast(0.0f);
    for (int i = 0; i < size; ++i) {
        const V16 at = load(x + i * kLanes) * times;
        V16 number = zero;
#pragma GCC unroll 15
        for (int k = 0; k < 15; ++k)
            number = number + where_above(at, broadcast(0.5f * static_cast<float>(kIq4Levels[k] + kIq4Levels[k + 1])),
                                          one, zero);
        float lane[kLanes];
        store(lane, number);
        for (int b = 0; b < kLanes; ++b) out[i * kLanes + b] = static_cast<uint8_t>(lane[b]);
    }
}

// Converts `count` values to float. Returns their largest magnitude, or NaN if one is not finite.
static float read_floats(int32_t format, const uint8_t* from, int64_t count, float* out) {
    V16 faults = broadcast(0.0f), most = faults;  // `faults` stays 0 if all are finite: infinity * 0 is NaN
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        V16 here;
        if (format == kF32)
            here = load(reinterpret_cast<const float*>(from + 4 * i));
        else if (format == kF16)
            here = from_f16(reinterpret_cast<const uint16_t*>(from + 2 * i));
        else
            here = as_floats(shifted(from_halves(reinterpret_cast<const uint16_t*>(from + 2 * i)), -16));
        store(out + i, here);
        faults = faults + here * broadcast(0.0f);
        most = higher(most, magnitude(here));
    }
    return highest_of(most) + sum_of(faults);
}
