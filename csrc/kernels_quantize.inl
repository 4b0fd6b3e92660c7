// Searches scales for the blocks of quantised formats, sixteen blocks at once: lane b of a vector belongs to block b,
// so that no sum runs across lanes. Fused multiply-adds are not used, so that every instruction set rounds identically.

// Rounds to the nearest integer, ties to even; |x| < 2^22. Adding 1.5 * 2^23 pushes the fraction out of the float.
PUNA_INLINE f32x16 round(const f32x16& x) {
    const f32x16 magic = broadcast(kMagic);
    return (x + magic) - magic;
}

// A block whose values are all smaller becomes 0, because the inverse of its scale would overflow.
constexpr float kTiny = 1e-30f;

// The value of largest magnitude of each block, with its sign; ties: the first.
PUNA_INLINE f32x16 signed_abs_max(const Search& block, const float* x) {
    f32x16 found = broadcast(0.0f);
    for (int i = 0; i < block.size; ++i) {
        const f32x16 here = load(x + i * kLanes);
        found = select_gt(abs(here), abs(found), here, found);
    }
    return found;
}

// Sums of weight * level * x and of weight * level^2. The best scale for given levels follows from them.
struct Fit {
    f32x16 lx, ll;
};

// Returns the best scales for levels -n .. n - 1 with x ~ scale * level. Tries 2 * tries + 1 inverse scales around the
// one that maps the largest value to -n, and one that maps it to n - 1. For given levels, the least-squares scale is
// lx / ll, and it lowers the weighted squared error by lx^2 / ll; the largest reduction wins.
template <typename Level>
PUNA_INLINE f32x16 best_scale(const Search& block, const float* x, const float* w, int tries, const Level& level) {
    const f32x16 zero = broadcast(0.0f), maximum = signed_abs_max(block, x);
    f32x16 best = zero, scale = zero;
    for (int step = -tries; step <= tries + 1; ++step) {
        // The last try maps the largest value to n - 1 instead of about -n.
        const f32x16 inverse =
            div(broadcast(step <= tries ? -block.levels + block.step * static_cast<float>(step) : block.levels - 1.0f),
                maximum);
        Fit fit{zero, zero};
        for (int i = 0; i < block.size; ++i) {
            const f32x16 here = load(x + i * kLanes), l = level(here * inverse);
            const f32x16 wl = load(w + i * kLanes) * l;
            fit.lx = fit.lx + wl * here;
            fit.ll = fit.ll + wl * l;
        }
        const f32x16 found = div(fit.lx, select_gt(fit.ll, zero, fit.ll, broadcast(1.0f)));
        const f32x16 gain = found * fit.lx;  // reduction of the squared error
        scale = select_gt(gain, best, found, scale);
        best = max(gain, best);
    }
    return select_gt(abs(maximum), broadcast(kTiny), scale, zero);
}

// Finds the best scales and minimums for levels 0 .. n with x ~ scale * level - offset. `offset` may be negative only
// with block.any_min. Tries steps + 1 inverse scales. For the levels that an inverse scale yields, scale and minimum
// are fitted by weighted offset squares; the pair with the smallest error wins.
PUNA_INLINE void best_affine(const Search& block, const float* x, const float* w, float* scale, float* offset) {
    const f32x16 zero = broadcast(0.0f), one = broadcast(1.0f), top = broadcast(block.levels);
    f32x16 low = block.any_min ? load(x) : zero, high = load(x), sw = zero, sx = zero, sxx = zero;
    // sw, sx, sxx: sums of the weights, of weight * x, and of weight * x^2.
    for (int i = 0; i < block.size; ++i) {
        const f32x16 here = load(x + i * kLanes), weight = load(w + i * kLanes), wx = weight * here;
        low = min(low, here);
        high = max(high, here);
        sw = sw + weight;
        sx = sx + wx;
        sxx = sxx + wx * here;
    }
    const f32x16 span = high - low, some = broadcast(kTiny);
    f32x16 best = broadcast(3e38f), best_scale = div(span, top), best_low = low;
    for (int step = 0; step <= block.steps; ++step) {
        // Levels are relative to the best minimum so far, so that the minimum improves from try to try.
        const f32x16 here_span = high - best_low, spread = select_gt(here_span, some, here_span, one);
        const f32x16 inverse =
            div(broadcast(block.levels + block.first + block.step * static_cast<float>(step)), spread);
        // sl, sll, slx: sums of weight * level, of weight * level^2, and of weight * level * x.
        f32x16 sl = zero, sll = zero, slx = zero;
        for (int i = 0; i < block.size; ++i) {
            const f32x16 here = load(x + i * kLanes);
            const f32x16 l = round(clamp((here - best_low) * inverse, zero, top)), wl = load(w + i * kLanes) * l;
            sl = sl + wl;
            sll = sll + wl * l;
            slx = slx + wl * here;
        }
        // If all levels are equal, no line can be fitted: the determinant is 0 up to rounding errors.
        const f32x16 spread_of_levels = sw * sll, below = spread_of_levels - sl * sl;
        const f32x16 noise = spread_of_levels * broadcast(4e-6f), divisor = select_gt(below, noise, below, one);
        const f32x16 free_low = div(sll * sx - sl * slx, divisor), free_scale = div(sw * slx - sx * sl, divisor);
        // Without block.any_min, a positive minimum is replaced by 0, and the scale alone is fitted.
        const f32x16 bound_scale = div(slx, select_gt(sll, zero, sll, one));
        const f32x16 bound = block.any_min ? broadcast(3e38f) : zero;
        const f32x16 new_scale = select_gt(free_low, bound, bound_scale, free_scale), new_low = min(free_low, bound);
        f32x16 error = sxx - new_scale * slx - new_low * sx;
        error = select_gt(below, noise, error, broadcast(3e38f));
        error = select_gt(new_scale, zero, error, broadcast(3e38f));
        best_scale = select_gt(best, error, new_scale, best_scale);
        best_low = select_gt(best, error, new_low, best_low);
        best = min(best, error);
    }
    store(scale, select_gt(span, some, best_scale, zero));
    store(offset, zero - select_gt(span, some, best_low, low));
}

// The nearest iq4_nl level: starts at the lowest, and each midpoint that x exceeds adds the distance to the next level.
PUNA_INLINE f32x16 nearest_level(const f32x16& x) {
    f32x16 level = broadcast(kIq4Levels[0]);
    const f32x16 zero = broadcast(0.0f);
#pragma GCC unroll 15
    for (int k = 0; k < 15; ++k) {
        const f32x16 middle = broadcast(0.5f * static_cast<float>(kIq4Levels[k] + kIq4Levels[k + 1]));
        const f32x16 step = broadcast(static_cast<float>(kIq4Levels[k + 1] - kIq4Levels[k]));
        level = level + select_gt(x, middle, step, zero);
    }
    return level;
}

static void search(const Search& block, const float* x, const float* w, float* scale, float* offset) {
    switch (block.kind) {
        case SearchKind::kAbsMax:
        case SearchKind::kSignedAbsMax:
        case SearchKind::kMinMax:
            return;  // `block_min_max` is sufficient
        case SearchKind::kBestScale: {
            const f32x16 low = broadcast(-block.levels), high = broadcast(block.levels - 1.0f);
            return store(scale, best_scale(block, x, w, block.steps,
                                           [&](const f32x16& at) PUNA_INLINED { return clamp(round(at), low, high); }));
        }
        case SearchKind::kBestAffine:
            return best_affine(block, x, w, scale, offset);
        case SearchKind::kTable:
            return store(scale, best_scale(block, x, w, block.steps, nearest_level));
    }
}

// Levels of sixteen blocks, as bytes: (x + offset) * inverse rounded to the nearest integer, plus `zero`, clamped to
// 0 .. top. Rounds as ggml does: adds 0.5 and truncates, so halves round up.
static void quantize_levels(const float* x, int size, const float* offset, const float* inverse, int zero, int top,
                            uint8_t* out) {
    const f32x16 add = load(offset), times = load(inverse), half = broadcast(static_cast<float>(zero) + 0.5f);
    const f32x16 low = broadcast(0.0f), high = broadcast(static_cast<float>(top));
    for (int i = 0; i < size; ++i) {
        const f32x16 at = clamp((load(x + i * kLanes) + add) * times + half, low, high);
        int32_t whole[kLanes];
        PUNA_EACH_REG* reinterpret_cast<i32_mem*>(whole + i_ * kWidth) = __builtin_convertvector(at.reg[i_], i32_reg);
        for (int b = 0; b < kLanes; ++b) out[i * kLanes + b] = static_cast<uint8_t>(whole[b]);
    }
}

// Minimum and maximum of each of `blocks` consecutive blocks of 32 values.
static void block_min_max(const float* x, int64_t blocks, float* low, float* high) {
    const f32x16 zero = broadcast(0.0f);
    for (int64_t b = 0; b < blocks; ++b) {
        const f32x16 one = load(x + 2 * b * kLanes), other = load(x + (2 * b + 1) * kLanes);
        high[b] = reduce_max(max(one, other));
        low[b] = -reduce_max(zero - min(one, other));
    }
}

// Like quantize_levels, for consecutive blocks of 32 values.
static void quantize_block_levels(const float* x, int64_t blocks, const float* offset, const float* inverse, int zero,
                                  int top, uint8_t* out) {
    const f32x16 half = broadcast(static_cast<float>(zero) + 0.5f);
    const f32x16 low = broadcast(0.0f), high = broadcast(static_cast<float>(top));
    for (int64_t i = 0; i < 2 * blocks; ++i) {
        const f32x16 add = broadcast(offset[i / 2]), times = broadcast(inverse[i / 2]);
        const f32x16 at = clamp((load(x + i * kLanes) + add) * times + half, low, high);
        PUNA_EACH_REG* reinterpret_cast<u8_mem*>(out + i * kLanes + i_ * kWidth) =
            __builtin_convertvector(__builtin_convertvector(at.reg[i_], i32_reg), u8_mem);
    }
}

// Weighted squared error of sixteen blocks when each value is replaced by its nearest level l * step - offset, with l
// from -zero to top - zero.
static void squared_error(const float* x, const float* w, int size, const float* offset, const float* step, int zero,
                          int top, float* out) {
    const f32x16 none = broadcast(0.0f), add = load(offset), by = load(step);
    const f32x16 inverse = select_gt(abs(by), none, div(broadcast(1.0f), by), none);
    const f32x16 low = broadcast(static_cast<float>(-zero)), high = broadcast(static_cast<float>(top - zero));
    f32x16 error = none;
    for (int i = 0; i < size; ++i) {
        const f32x16 here = load(x + i * kLanes) + add;
        const f32x16 off = round(clamp(here * inverse, low, high)) * by - here;
        error = error + load(w + i * kLanes) * (off * off);
    }
    store(out, error);
}

// Indices of the nearest iq4_nl levels, stored like the levels of quantize_levels.
static void quantize_table_levels(const float* x, int size, const float* inverse, uint8_t* out) {
    const f32x16 times = load(inverse), one = broadcast(1.0f), zero = broadcast(0.0f);
    for (int i = 0; i < size; ++i) {
        const f32x16 at = load(x + i * kLanes) * times;
        f32x16 number = zero;
#pragma GCC unroll 15
        for (int k = 0; k < 15; ++k)
            number = number +
                     select_gt(at, broadcast(0.5f * static_cast<float>(kIq4Levels[k] + kIq4Levels[k + 1])), one, zero);
        float lane[kLanes];
        store(lane, number);
        for (int b = 0; b < kLanes; ++b) out[i * kLanes + b] = static_cast<uint8_t>(lane[b]);
    }
}

// Converts `count` values to float. Returns their largest magnitude, or NaN if one is not finite.
static float read_floats(Planes type, const uint8_t* from, int64_t count, float* out) {
    f32x16 faults = broadcast(0.0f), maximum = faults;  // `faults` stays 0 if all are finite: infinity * 0 is NaN
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        f32x16 here;
        if (type == Planes::kF32)
            here = load(reinterpret_cast<const float*>(from + 4 * i));
        else if (type == Planes::kF16)
            here = f16_to_f32(reinterpret_cast<const uint16_t*>(from + 2 * i));
        else
            here = as_f32(shift_right(widen_u16(reinterpret_cast<const uint16_t*>(from + 2 * i)), -16));
        store(out + i, here);
        faults = faults + here * broadcast(0.0f);
        maximum = max(maximum, abs(here));
    }
    return reduce_max(maximum) + reduce_add(faults);
}
