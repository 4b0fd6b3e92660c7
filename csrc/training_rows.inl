// The kernels of training.h that work on rows, for every instruction set. Uses vec.h, and the functions widen_part,
// narrow_part and first_lanes of the including file.

PUNA_INLINE f32x16 widen(const uint16_t* from) { return as_f32(shift_right(widen_u16(from), -16)); }
PUNA_INLINE float widen_one(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
}

static void widen_row(const uint16_t* x, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += kLanes) store(out + i, widen(x + i));
}

static float inverse_rms(const uint16_t* x, float eps, int64_t cols) {
    f32x16 sum = broadcast(0.0f);
    for (int64_t i = 0; i < cols; i += kLanes) {
        const f32x16 value = widen_part(x + i, cols - i);
        sum = fma(value, value, sum);
    }
    return 1.0f / __builtin_sqrtf(reduce_add(sum) / static_cast<float>(cols) + eps);
}

static void norm(const uint16_t* x, const float* weight, float eps, int64_t cols, uint16_t* out) {
    const f32x16 scale = broadcast(inverse_rms(x, eps, cols));
    for (int64_t i = 0; i < cols; i += kLanes)
        narrow_part(out + i, widen_part(x + i, cols - i) * scale * load_partial(weight + i, cols - i), cols - i);
}

static void norm_backward(const uint16_t* grad, const uint16_t* x, const float* weight, float eps, int64_t cols,
                          const uint16_t* add, uint16_t* out) {
    const float inverse = inverse_rms(x, eps, cols);
    f32x16 dot = broadcast(0.0f);
    for (int64_t i = 0; i < cols; i += kLanes)
        dot =
            fma(widen_part(grad + i, cols - i) * load_partial(weight + i, cols - i), widen_part(x + i, cols - i), dot);
    const f32x16 scale = broadcast(inverse);
    const f32x16 mean = broadcast(-reduce_add(dot) * inverse * inverse / static_cast<float>(cols));
    for (int64_t i = 0; i < cols; i += kLanes) {
        const int64_t left = cols - i;
        const f32x16 inner = widen_part(grad + i, left) * load_partial(weight + i, left);
        const f32x16 value = fma(widen_part(x + i, left), mean, inner) * scale;
        narrow_part(out + i, add ? value + widen_part(add + i, left) : value, left);
    }
}

static void gated(const uint16_t* gate_up, int64_t cols, uint16_t* out) {
    const f32x16 one = broadcast(1.0f), minus = broadcast(-1.0f);
    for (int64_t i = 0; i < cols; i += kLanes) {
        const f32x16 gate = widen_part(gate_up + i, cols - i), up = widen_part(gate_up + cols + i, cols - i);
        narrow_part(out + i, div(gate, exp(gate * minus) + one) * up, cols - i);
    }
}

static void gated_backward(const uint16_t* grad, const uint16_t* gate_up, int64_t cols, uint16_t* out,
                           uint16_t* grad_gate_up) {
    const f32x16 one = broadcast(1.0f), minus = broadcast(-1.0f);
    for (int64_t i = 0; i < cols; i += kLanes) {
        const int64_t left = cols - i;
        const f32x16 gate = widen_part(gate_up + i, left), up = widen_part(gate_up + cols + i, left);
        const f32x16 g = widen_part(grad + i, left), sigmoid = div(one, exp(gate * minus) + one);
        const f32x16 silu = gate * sigmoid;
        narrow_part(out + i, silu * up, left);
        narrow_part(grad_gate_up + i, g * up * fma(silu, one - sigmoid, sigmoid), left);
        narrow_part(grad_gate_up + cols + i, g * silu, left);
    }
}

static void rotate(uint16_t* x, int64_t heads, int64_t half, const float* cos, const float* sin, float sign) {
    const f32x16 turn = broadcast(sign);
    for (int64_t h = 0; h < heads; ++h, x += 2 * half)
        for (int64_t i = 0; i < half; i += kLanes) {
            const int64_t left = half - i;
            const f32x16 first = widen_part(x + i, left), second = widen_part(x + half + i, left);
            const f32x16 c = load_partial(cos + i, left), s = load_partial(sin + i, left) * turn;
            narrow_part(x + i, first * c - second * s, left);
            narrow_part(x + half + i, fma(second, c, first * s), left);
        }
}

static double cross_entropy(uint16_t* logits, int64_t vocab, int64_t target, float factor, bool train, float* wide) {
    f32x16 most = broadcast(-3.4028235e38f);
    int64_t i = 0;
    for (; i + kLanes <= vocab; i += kLanes) most = max(most, widen(logits + i));
    float high = reduce_max(most);
    for (; i < vocab; ++i) high = widen_one(logits[i]) > high ? widen_one(logits[i]) : high;
    const f32x16 minus = broadcast(high);
    const float chosen = widen_one(logits[target]) - high;
    double sum = 0.0;
    for (int64_t from = 0; from < vocab; from += 4096) {  // sums of parts are exact enough in float32
        const int64_t end = vocab - from < 4096 ? vocab : from + 4096;
        f32x16 total = broadcast(0.0f);
        for (i = from; i < end; i += kLanes) {
            const int64_t left = end - i;
            f32x16 value = exp(widen_part(logits + i, left) - minus);
            if (left < kLanes) value = first_lanes(value, left);
            store(wide + i, value);
            total = total + value;
        }
        sum += static_cast<double>(reduce_add(total));
    }
    if (train) {
        const f32x16 times = broadcast(static_cast<float>(factor / sum));
        for (i = 0; i < vocab; i += kLanes) narrow_part(logits + i, load(wide + i) * times, vocab - i);
        f32x16 hit = broadcast(wide[target] * static_cast<float>(factor / sum) - factor);
        narrow_part(logits + target, hit, 1);
    }
    return static_cast<double>(factor) * (__builtin_log(sum) - static_cast<double>(chosen));
}

static double squares(const float* x, int64_t count) {
    f32x16 sum[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes)
        for (int k = 0; k < 4; ++k) sum[k] = fma(load(x + i + k * kLanes), load(x + i + k * kLanes), sum[k]);
    for (; i < count; i += kLanes) {
        const f32x16 value = load_partial(x + i, count - i);
        sum[0] = fma(value, value, sum[0]);
    }
    return static_cast<double>(reduce_add(sum[0] + sum[1])) + static_cast<double>(reduce_add(sum[2] + sum[3]));
}
