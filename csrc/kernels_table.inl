// All kernels of one instruction set. Included by each kernels_*.cpp inside its own namespace. Standard library
// templates are not used: the linker keeps one copy of an instance, which could be compiled for the wrong instruction
// set.
//
// A build can define PUNA_INTEGER_MATMUL as the `matmul` of another build whose integer kernels are the same. These
// kernels take most of the time to compile.

// clang-format off: the order matters
#include "vec.h"
#include "kernels_products.inl"
#include "kernels_matrices.inl"
#include "kernels_activations.inl"
#if !defined(PUNA_INTEGER_MATMUL)
#include "kernels_integer.inl"
#endif
#include "kernels_float.inl"
#include "kernels_attention.inl"
#include "kernels_quantize.inl"
// clang-format on

#if defined(__AVX512BF16__)
constexpr bool kUsesBf16 = true;
#else
constexpr bool kUsesBf16 = false;
#endif
#include "kernels_measure.inl"

using Matmul = void (*)(const MatmulJob&);

static Matmul kernel_of(const FormatTraits& traits) {
    switch (traits.planes) {
        case Planes::kF32:
            return float_matmul<F32Format>;
        case Planes::kF16:
            return float_matmul<F16Format>;
        case Planes::kBf16:
#if defined(__AVX512BF16__)
            return bf16_matmul;
#else
            return float_matmul<Bf16Format>;
#endif
        default:
#if defined(PUNA_INTEGER_MATMUL)
            return PUNA_INTEGER_MATMUL;
#else
            return integer_matmul_of(traits);
#endif
    }
}

static void matmul(const MatmulJob& job) { kernel_of (*job.w.traits)(job); }

static void rms_norm(const float* x, const float* weight, float eps, int64_t size, float* out) {
    double part[8] = {};  // eight independent sums hide the latency of additions
    int64_t i = 0;
    for (; i + 8 <= size; i += 8)
        for (int j = 0; j < 8; ++j) part[j] += static_cast<double>(x[i + j]) * x[i + j];
    for (; i < size; ++i) part[i % 8] += static_cast<double>(x[i]) * x[i];
    const double sum = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
    const float scale = static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(size) + eps));
    for (i = 0; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

static void silu_mul(float* gate, const float* up, int64_t size) {
    const f32x16 minus = broadcast(-1.0f), one = broadcast(1.0f);
    for (int64_t i = 0; i < size; i += kLanes) {
        const f32x16 x = load_partial(gate + i, size - i);
        const f32x16 below = exp(x * minus) + one;  // 1 + e^-x
        f32x16 y;
        PUNA_EACH_REG y.reg[i_] = x.reg[i_] / below.reg[i_];
        store_partial(gate + i, y * load_partial(up + i, size - i), size - i);
    }
}

static void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

static bool block_max(const float* x, int64_t count, float* out) {
    f32x16 faults = broadcast(0.0f);  // stays 0 if all values are finite: infinity * 0 is NaN
    for (int64_t from = 0; from < count; from += kMaxBlock) {
        const int64_t end = count - from < kMaxBlock ? count : from + kMaxBlock;
        f32x16 maximum = broadcast(x[from]);
        int64_t i = from;
        for (; i + kLanes <= end; i += kLanes) {
            const f32x16 here = load(x + i);
            faults = fma(here, broadcast(0.0f), faults);
            maximum = max(here, maximum);
        }
        float highest = reduce_max(maximum);
        for (; i < end; ++i) {
            faults = faults + broadcast(x[i] * 0.0f);
            highest = x[i] > highest ? x[i] : highest;
        }
        out[from / kMaxBlock] = highest;
    }
    return reduce_add(faults) == 0.0f;
}

static void exponentials(const float* x, int64_t count, float maximum, double temperature, float* out) {
    // The inverse of a tiny temperature could overflow. 1e30 is large enough to give weight 0 to all but the most
    // likely tokens.
    const float inverse = static_cast<float>(temperature < 1e-30 ? 1e30 : 1.0 / temperature);
    // Clamp differences to finite values: -infinity * 0 would be NaN.
    const f32x16 times = broadcast(inverse), from = broadcast(maximum), lowest = broadcast(-3e38f);
    for (int64_t i = 0; i < count; i += kLanes)
        store_partial(out + i, exp(max(load_partial(x + i, count - i) - from, lowest) * times), count - i);
}

static constexpr Kernels table(const char* name) {
    return {
        .name = name,
        .division = kDivision,
        .uses_bf16 = kUsesBf16,
        .matmul = matmul,
        .quantize = quantize,
        .to_bf16 = round_to_bf16,
        .rms_norm = rms_norm,
        .silu_mul = silu_mul,
        .rotate = rotate,
        .store_key = store_key,
        .store_value = store_value,
        .attend = attend,
        .merge = merge,
        .block_max = block_max,
        .exponentials = exponentials,
        .integer_work = integer_work,
        .float_work = float_work,
        .read_work = read_work,
        .search = search,
        .block_min_max = block_min_max,
        .quantize_levels = quantize_levels,
        .quantize_block_levels = quantize_block_levels,
        .squared_error = squared_error,
        .quantize_table_levels = quantize_table_levels,
        .read_floats = read_floats,
    };
}
