// Compares every kernel of every instruction set that this processor supports with a slow reference implementation in
// float64 or exact integers. Prints one line per group; the exit status is 1 if an error exceeds its limit. `kernels
// quick` runs fewer cases. The program kernels_emulated tests the AVX-512 kernels on any processor: their instructions
// are emulated in plain C++ (emulate.h).

#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "half.h"
#include "panels.h"
#include "puna.h"
#include "quantize.h"

extern const bool kEmulated;  // defined in emulated.cpp

namespace {

using namespace puna;

int failures = 0;
bool quick = false;  // fewer cases, for sanitizers and emulators
std::mt19937 source(11);

// Draws from a table: the program needs many millions of numbers, which take long to compute in an emulator.
float normal(float spread = 1.0f) {
    static const std::vector<float> table = [] {
        std::normal_distribution<float> distribution;
        std::vector<float> values(1 << 14);
        for (float& value : values) value = distribution(source);
        return values;
    }();
    return spread * table[source() % table.size()];
}
int below(int count) { return static_cast<int>(source() % static_cast<unsigned>(count)); }

void report(const char* kernels, const std::string& group, double worst, double limit) {
    const bool good = worst <= limit;  // false for NaN
    std::printf("%-12s %-28s %9.2e  (limit %.0e)%s\n", kernels, group.c_str(), worst, limit, good ? "" : "  FAILED");
    failures += !good;
}

void demand(const char* kernels, const char* what, bool good) {
    if (good) return;
    std::printf("%-12s %-28s FAILED\n", kernels, what);
    ++failures;
}

// ---- matrices

struct MatrixUnderTest {
    std::vector<uint8_t> panels;
    std::vector<float> bias, values;  // values: as read_row dequantises them
    std::vector<double> sizes;        // |scale * integer| + |minimum| of each value
    Panels described;
};

// Writes an f16 number into a block of a file.
void set_half(uint8_t* block, int at, float value) {
    const uint16_t half = to_half(value);
    std::memcpy(block + at, &half, 2);
}

// Writes random scales of about 0.1 into a block of a file.
void set_scales(const FormatTraits& traits, uint8_t* block) {
    if (traits.scale_at >= 0) set_half(block, traits.scale_at, normal(0.1f));
    if (traits.min_at >= 0) set_half(block, traits.min_at, normal(0.1f));
    if (traits.scales == Scales::kExponent) block[0] = static_cast<uint8_t>(120 + below(8));
    if (traits.format == kIQ1_M) {
        const uint16_t half = to_half(normal(0.1f));
        for (int i = 0; i < 4; ++i) {
            uint8_t& to = block[49 + 2 * i];
            to = static_cast<uint8_t>((to & 15) | (half >> 4 * i & 15) << 4);
        }
    }
}

// Contents of a matrix and its inputs: random by default. To reach the limits of the integer sums, `byte` sets every
// byte of the file except the float scales, and `input` sets every input.
struct Filling {
    int byte = -1;
    float input = 0.0f;
};

std::vector<uint8_t> file_rows(const FormatTraits& traits, int64_t rows, int64_t cols, int filling) {
    std::vector<uint8_t> out(static_cast<size_t>(rows * cols / traits.values * traits.bytes));
    for (uint8_t& byte : out) byte = static_cast<uint8_t>(filling < 0 ? static_cast<int>(source() & 255) : filling);
    if (traits.values == 1) {
        for (int64_t i = 0; i < rows * cols; ++i) {
            const float value = normal();
            const uint32_t bits = bits_of_float(value);
            const uint16_t half = traits.format == kF16 ? to_half(value) : static_cast<uint16_t>(bits >> 16);
            if (traits.format == kF32)
                std::memcpy(out.data() + 4 * i, &value, 4);
            else
                std::memcpy(out.data() + 2 * i, &half, 2);
        }
        return out;
    }
    for (size_t at = 0; at < out.size(); at += static_cast<size_t>(traits.bytes)) set_scales(traits, out.data() + at);
    return out;
}

// Packs the rows and dequantises them again. `out.described` points into `out.panels`.
void pack_rows(const FormatTraits& traits, int64_t rows, int64_t cols, const std::vector<uint8_t>& file,
               MatrixUnderTest& out) {
    out.described = describe(traits, rows, cols);
    out.panels.resize(static_cast<size_t>(out.described.bytes()) + 4096 + 64);
    const size_t lead = 64 - reinterpret_cast<uintptr_t>(out.panels.data()) % 64;
    for (int64_t p = 0; p < out.described.count(); ++p)
        pack_panel(out.described, p, file.data(), nullptr, out.panels.data() + lead);
    out.described.data = out.panels.data() + lead;
    out.values.resize(static_cast<size_t>(rows * cols));
    for (int64_t row = 0; row < rows; ++row) read_row(out.described, row, out.values.data() + row * cols);
}

MatrixUnderTest make_weights(const FormatTraits& traits, int64_t rows, int64_t cols, bool with_bias, int filling) {
    MatrixUnderTest out, scaled;
    std::vector<uint8_t> file = file_rows(traits, rows, cols, filling);
    pack_rows(traits, rows, cols, file, out);
    if (traits.min_at >= 0)  // the same matrix without minimums
        for (size_t at = 0; at < file.size(); at += static_cast<size_t>(traits.bytes))
            set_half(file.data() + at, traits.min_at, 0.0f);
    pack_rows(traits, rows, cols, file, scaled);
    out.sizes.resize(out.values.size());
    for (size_t i = 0; i < out.values.size(); ++i) {
        const double value = out.values[i], without = scaled.values[i];
        out.sizes[i] = std::fabs(without) + std::fabs(value - without);
    }
    out.bias.resize(static_cast<size_t>(rows));
    for (float& value : out.bias) value = normal();
    if (with_bias) out.described.bias = out.bias.data();
    return out;
}

struct Inputs {
    std::vector<float> x, rounded;  // rounded: the inputs as the format's kernel multiplies them
    std::vector<ActivationBlock> blocks;
    std::vector<uint16_t> bf16;
    int64_t cols;
    Activations view(int64_t token) const {
        const int64_t per = block_stride(cols), even = bf16_stride(cols);
        return {x.data() + token * cols, bf16.data() + token * even, blocks.data() + token * per, cols};
    }
};

Inputs make_inputs(const Kernels& kernels, const FormatTraits& traits, int64_t tokens, int64_t cols, float filling) {
    Inputs out;
    out.cols = cols;
    const int64_t per = block_stride(cols), even = bf16_stride(cols);
    out.x.resize(static_cast<size_t>(tokens * cols));
    for (float& value : out.x) value = filling != 0.0f ? filling : normal();
    out.rounded = out.x;
    out.blocks.resize(static_cast<size_t>(tokens * per + 1));
    out.bf16.resize(static_cast<size_t>(tokens * even));
    for (int64_t t = 0; t < tokens; ++t) {
        kernels.to_bf16(out.x.data() + t * cols, cols, out.bf16.data() + t * even);
        if (!is_float(traits.planes))
            kernels.quantize(out.x.data() + t * cols, cols, scale_blocks(traits.scales), out.blocks.data() + t * per);
        for (int64_t k = 0; k < cols; ++k) {
            float& to = out.rounded[static_cast<size_t>(t * cols + k)];
            if (!is_float(traits.planes)) {
                const ActivationBlock& block = out.blocks[static_cast<size_t>(t * per + k / kBlock)];
                to = block.scale * block.quants[k % kBlock];
            } else if (traits.planes == Planes::kBf16 && kernels.uses_bf16) {
                to = from_bfloat(out.bf16[static_cast<size_t>(t * even + k)]);
            }
        }
    }
    return out;
}

// Returns the largest error of a matrix product, relative to the sum of the magnitudes of its terms. Also checks that
// a token gives the same bits alone and among others, and that nothing is written beyond the rows.
double check_matrix(const Kernels& kernels, const FormatTraits& traits, int64_t rows, int64_t cols, int64_t tokens,
                    const Filling& filling = {}) {
    const bool with_bias = below(2), add = below(2);
    const MatrixUnderTest w = make_weights(traits, rows, cols, with_bias, filling.byte);
    const Inputs in = make_inputs(kernels, traits, tokens, cols, filling.input);
    const int64_t stride = rows + 3;
    std::vector<float> start(static_cast<size_t>(tokens * stride)), out, single;
    for (float& value : start) value = normal();
    out = single = start;
    // Splits the work units at a random place, as threads do.
    const int64_t last = work_units(w.described, tokens), cut = below(static_cast<int>(last) + 1);
    const Activations x = in.view(0);
    const MatmulJob job{.w = w.described,
                        .x = x,
                        .first = 0,
                        .last = cut,
                        .tokens = tokens,
                        .out = out.data(),
                        .out_stride = stride,
                        .add = add};
    MatmulJob rest = job;
    rest.first = cut, rest.last = last;
    kernels.matmul(job);
    kernels.matmul(rest);
    double worst = 0.0;
    for (int64_t t = 0; t < tokens; ++t) {
        const Activations token = in.view(t);
        kernels.matmul({.w = w.described,
                        .x = token,
                        .first = 0,
                        .last = work_units(w.described, 1),
                        .tokens = 1,
                        .out = single.data() + t * stride,
                        .out_stride = stride,
                        .add = add});
        for (int64_t row = 0; row < rows; ++row) {
            double sum = 0.0, size = 1e-3;
            for (int64_t k = 0; k < cols; ++k) {
                const size_t weight = static_cast<size_t>(row * cols + k);
                const double x = in.rounded[static_cast<size_t>(t * cols + k)];
                sum += w.values[weight] * x;
                size += w.sizes[weight] * std::fabs(x);  // values may be small differences of large terms
            }
            const size_t at = static_cast<size_t>(t * stride + row);
            if (with_bias) sum += w.bias[static_cast<size_t>(row)];
            if (add) sum += start[at];
            size += 2.0;  // about the magnitude of the bias and of the previous output
            worst = std::max(worst, std::fabs(out[at] - sum) / size);
        }
    }
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = t * stride + rows; i < (t + 1) * stride; ++i)
            demand(kernels.name, "nothing beyond the rows is written",
                   out[static_cast<size_t>(i)] == start[static_cast<size_t>(i)]);
    demand(kernels.name, "one token and many agree", out == single);
    return worst;
}

void check_format(const Kernels& kernels, const FormatTraits& traits) {
    std::vector<int> widths;
    for (const int width : {1, 7, 32, 33, 96, 100, 256, 288, 300, 576, 768})
        if (width % traits.values == 0 && (traits.values > 1 || width % 32 || width == 256)) widths.push_back(width);
    double worst = 0.0;
    for (const int cols : widths)
        for (const int rows : {1, 16, 17, 40, 128, 200})
            for (const int tokens : {1, 2, 3, 5, 7, 13, 65}) {
                if (tokens == 65 && rows != 40) continue;
                if (tokens > 5 && rows > 40) continue;
                if (quick && (rows == 16 || tokens == 2 || tokens == 7 || cols > 300)) continue;
                worst = std::max(worst, check_matrix(kernels, traits, rows, cols, tokens));
            }
    if (!is_float(traits.planes))
        for (const int byte : {0x00, 0x66, 0x7f, 0x80, 0xff})  // 0x66: the iq4_nl level whose digits are largest
            for (const float input : {-1.0f, 1.0f})
                for (const int tokens : {1, 2, 5, 13})
                    worst = std::max(worst, check_matrix(kernels, traits, 17, 256, tokens, {byte, input}));
    report(kernels.name, "matmul of ggml type " + std::to_string(traits.format), worst, 1e-6);
}

void check_matrices(const Kernels& kernels) {
    for (const FormatTraits& traits : all_formats()) {
        demand(kernels.name, "a row has whole pairs of blocks", !head_bytes(traits.scales) || traits.values == 256);
        check_format(kernels, traits);
    }
}

// ---- a format that only this test knows. This descriptor is all that the runtime needs to pack, read, multiply and
// quantise it. A block has 32 values of four bits, value i in the nibble i % 2 of byte i / 2, and then an f16 scale.

int toy_level(const uint8_t* block, int i) { return block[i / 2] >> 4 * (i % 2) & 15; }

void read_toy(const uint8_t* block, int, RowBlock& out) {
    for (int s = 0; s < 4; ++s) {
        out.words[s] = 0;
        for (int i = 0; i < 4; ++i) {
            const int low = toy_level(block, 4 * s + i), high = toy_level(block, 16 + 4 * s + i);
            out.words[s] |= static_cast<uint32_t>(low | high << 4) << 8 * i;
        }
    }
}

void write_toy(const QuantizedBlock& from, uint8_t* block) {
    for (int i = 0; i < 16; ++i) block[i] = static_cast<uint8_t>(from.level[2 * i] | from.level[2 * i + 1] << 4);
    std::memcpy(block + 16, &from.scale, 2);
}

constexpr Quantization kToToy{.plain = {.kind = SearchKind::kSignedAbsMax, .size = 32, .levels = 8},
                              .weights = Weights::kNone,
                              .weighted = {.kind = SearchKind::kSignedAbsMax, .size = 32, .levels = 8},
                              .zero = 8,
                              .top = 15,
                              .write = write_toy};

constexpr FormatTraits kToy{.format = static_cast<Format>(1000),
                            .values = 32,
                            .bytes = 18,
                            .planes = Planes::kFour,
                            .scales = Scales::kHalf,
                            .zero = 8,
                            .scale_at = 16,
                            .read = read_toy,
                            .quantization = &kToToy};

void check_toy_format(const Kernels& kernels) {
    constexpr int64_t kRows = 19, kCols = 96;
    std::vector<float> x(kRows * kCols);
    for (float& value : x) value = normal();
    std::vector<uint8_t> file(static_cast<size_t>(kRows * kCols / kToy.values * kToy.bytes));
    demand(kernels.name, "the toy format can be quantised", can_quantize(*find_format(kF32), kToy));
    quantize(kernels, 2, *find_format(kF32), kToy, reinterpret_cast<const uint8_t*>(x.data()), kRows, kCols, nullptr,
             file.data());
    MatrixUnderTest packed;
    pack_rows(kToy, kRows, kCols, file, packed);
    double worst = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        const uint8_t* const block = file.data() + i / 32 * 18;
        uint16_t half;
        std::memcpy(&half, block + 16, 2);
        const float scale = from_half(half);
        demand(kernels.name, "the toy format is packed and read",
               packed.values[i] == scale * static_cast<float>(toy_level(block, static_cast<int>(i % 32)) - 8));
        // Levels go from -8 to 7: a value near 8 differs by up to one step; the f16 scale differs by 2^-11.
        worst = std::max(worst, std::fabs(packed.values[i] - static_cast<double>(x[i])) / std::fabs(scale));
    }
    report(kernels.name, "quantising to the toy format", worst, 1.01);
    check_format(kernels, kToy);
}

// ---- quantising of activations

void check_quantize(const Kernels& kernels) {
    double worst = 0.0;
    for (int turn = 0; turn < 400; ++turn) {
        // AVX-512 kernels compute sixteen scales at once, and the remaining ones one by one.
        const int count = 1 + turn % 5 + (turn % 3 == 0 ? 32 : 0), per_scale = 1 + turn / 5 % 2;
        std::vector<float> x(static_cast<size_t>(count) * kBlock);
        for (float& value : x)
            value = turn % 7 == 0 ? static_cast<float>(below(9) - 4) : normal(std::exp(normal(3.0f)));
        if (turn % 11 == 0) std::fill(x.begin(), x.begin() + kBlock, 0.0f);
        std::vector<ActivationBlock> blocks(static_cast<size_t>(count));
        kernels.quantize(x.data(), count * kBlock, per_scale, blocks.data());
        for (int b = 0; b < count; ++b) {
            const ActivationBlock& block = blocks[static_cast<size_t>(b)];
            const int first = b / per_scale * per_scale, last = std::min(first + per_scale, count);
            float most = 0.0f;  // the value of largest magnitude; the negative one if both signs occur
            for (int i = first * kBlock; i < last * kBlock; ++i) {
                const float value = x[static_cast<size_t>(i)];
                if (std::fabs(value) > std::fabs(most) || value == -std::fabs(most)) most = value;
            }
            demand(kernels.name, "scale", block.scale == most / -128.0f);
            int sum[2] = {0, 0};
            for (int i = 0; i < kBlock; ++i) {
                const double value = x[static_cast<size_t>(b * kBlock + i)];
                const double exact = most != 0.0f ? std::min(value * -128.0 / most, 127.0) : 0.0;
                worst = std::max(worst, std::fabs(exact - block.quants[i]) - 0.5);
                sum[i / 16] += block.quants[i];
            }
            bool sums = block.neg_sum == -(sum[0] + sum[1]) && block.sum == static_cast<float>(sum[0] + sum[1]);
            for (int h = 0; h < 2; ++h)
                sums = sums && block.neg_half_sum[h] == -sum[h] && block.half_sum[h] == static_cast<float>(sum[h]);
            demand(kernels.name, "sums", sums);
            if (std::string(kernels.name) == "avx2")  // the only kernels that read it
                demand(kernels.name, "start", block.start == kMagicBits - 8 * (sum[0] + sum[1]));
        }
    }
    report(kernels.name, "quantize beyond a half", worst, 2e-5);
    for (const int per_scale : {1, 2})
        for (const int at : {5, kBlock + 5, 2 * kBlock + 5, 33 * kBlock + 5}) {
            constexpr int kBlocks = 35;
            float x[kBlocks * kBlock] = {};
            x[at] = std::numeric_limits<float>::quiet_NaN();
            ActivationBlock blocks[kBlocks];
            kernels.quantize(x, kBlocks * kBlock, per_scale, blocks);
            for (int b = 0; b < kBlocks; ++b)
                demand(kernels.name, "NaN reaches the blocks that share its scale",
                       std::isnan(blocks[b].scale) == (b / per_scale == at / kBlock / per_scale));
        }
}

void check_bf16(const Kernels& kernels) {
    const float special[] = {0.0f,
                             -0.0f,
                             1.0f,
                             1.00390625f,
                             1.01171875f,
                             3.4e38f,
                             -3.4e38f,
                             1e-40f,
                             -1.1754942e-38f,  // the largest subnormal number
                             1.17549435e-38f,  // the smallest normal number
                             HUGE_VALF,
                             -HUGE_VALF,
                             std::numeric_limits<float>::quiet_NaN()};
    constexpr int kSpecials = static_cast<int>(std::size(special));
    for (const int count : {1, 5, 16, 17, 33}) {
        std::vector<float> x(static_cast<size_t>(count));
        for (int i = 0; i < count; ++i)  // the longer arrays contain every special number
            x[static_cast<size_t>(i)] = i < kSpecials && count > kSpecials ? special[i]
                                        : below(3)                         ? normal(std::exp(normal(9.0f)))
                                                                           : special[below(kSpecials)];
        std::vector<uint16_t> out(static_cast<size_t>(count + count % 2), 7);
        kernels.to_bf16(x.data(), count, out.data());
        for (int i = 0; i < count; ++i) {
            const uint32_t bits = bits_of_float(x[static_cast<size_t>(i)]);
            const bool tiny = (bits & 0x7f800000u) == 0u;  // 0 or subnormal: its sign remains
            const uint16_t wanted =
                static_cast<uint16_t>(tiny ? bits >> 16 & 0x8000u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
            const uint16_t found = out[static_cast<size_t>(i)];
            const bool nan = std::isnan(x[static_cast<size_t>(i)]);
            demand(kernels.name, "to_bf16", nan ? std::isnan(from_bfloat(found)) : found == wanted);
        }
        if (count % 2) demand(kernels.name, "to_bf16 pads", out.back() == 0);
    }
}

// ---- vectors

void check_vectors(const Kernels& kernels) {
    double norm = 0.0, silu = 0.0, turn = 0.0;
    for (const int size : {1, 7, 16, 40, 100, 576}) {
        const size_t n = static_cast<size_t>(size);
        std::vector<float> x(n), weight(n), out(n), gate(n), up(n);
        double squares = 0.0;
        for (size_t i = 0; i < n; ++i) {
            x[i] = normal(), weight[i] = normal(), gate[i] = normal(i % 3 ? 3.0f : 60.0f), up[i] = normal();
            squares += static_cast<double>(x[i]) * x[i];
        }
        kernels.rms_norm(x.data(), weight.data(), 1e-5f, size, out.data());
        const std::vector<float> before = gate;
        kernels.silu_mul(gate.data(), up.data(), size);
        for (size_t i = 0; i < n; ++i) {
            const double wanted = x[i] * weight[i] / std::sqrt(squares / size + 1e-5f);
            norm = std::max(norm, std::fabs(out[i] - wanted) / (std::fabs(wanted) + 1e-9));
            const double y = before[i] / (1.0 + std::exp(-static_cast<double>(before[i]))) * up[i];
            silu = std::max(silu, std::fabs(gate[i] - y) / (std::fabs(y) + 1e-6));
        }
    }
    for (const int half : {4, 10, 24, 50, 64}) {
        std::vector<float> x(static_cast<size_t>(2 * half)), cos(static_cast<size_t>(half)), sin = cos;
        for (float& value : x) value = normal();
        for (int i = 0; i < half; ++i)
            cos[static_cast<size_t>(i)] = std::cos(0.3f * i), sin[static_cast<size_t>(i)] = std::sin(0.3f * i);
        const std::vector<float> before = x;
        kernels.rotate(x.data(), cos.data(), sin.data(), half);
        for (int i = 0; i < half; ++i) {
            const size_t a = static_cast<size_t>(i), b = static_cast<size_t>(i + half);
            turn = std::max(turn, std::fabs(x[a] - (static_cast<double>(before[a]) * cos[a] -
                                                    static_cast<double>(before[b]) * sin[a])));
            turn = std::max(turn, std::fabs(x[b] - (static_cast<double>(before[b]) * cos[a] +
                                                    static_cast<double>(before[a]) * sin[a])));
        }
    }
    report(kernels.name, "rms_norm", norm, 1e-6);
    report(kernels.name, "silu_mul", silu, 1e-6);
    report(kernels.name, "rotate", turn, 1e-6);
}

// ---- attention

// A token's key or value after rounding to the cache type.
std::vector<float> as_cached(const std::vector<float>& x, CacheType type) {
    std::vector<float> out = x;
    for (size_t i = 0; i < x.size(); ++i) {
        const uint32_t bits = bits_of_float(x[i]);
        if (type == CacheType::kF16) out[i] = from_half(to_half(x[i]));
        if (type == CacheType::kBF16)
            out[i] = from_bfloat(static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16));
    }
    return out;
}

// Reads a token's q8_0 key or value from a page and checks it. `step`: distance between its elements; `scale_step`:
// between its scales. An element may differ by half a step of its scale, plus four roundings of numbers of up to 127
// steps by a relative 2^-24 each: those of the inverse scale, of the element times the inverse, of the scale, and of
// the product here.
std::vector<float> from_q8(const char* kernels, const std::vector<float>& x, const int8_t* at, int64_t step,
                           const float* scales, int64_t scale_step) {
    std::vector<float> out(x.size());
    for (size_t e = 0; e < x.size(); ++e) {
        const float scale = scales[static_cast<int64_t>(e) / kBlock * scale_step];
        out[e] = scale * at[static_cast<int64_t>(e) * step];
        const double off = std::fabs(static_cast<double>(out[e]) - x[e]) / (scale > 0.0f ? scale : 1.0f);
        demand(kernels, "q8_0 of a cache", off <= 0.5 + 4 * 127 * 0x1p-24);
    }
    return out;
}

struct Case {
    CacheType type;
    int64_t width;
    int64_t count;   // queries
    int64_t length;  // positions
};

// Returns the largest error of attention: relative to the magnitudes of the terms if these are rounded to bf16, else
// absolute. Pages are in reverse order, and unwritten memory is NaN. Also checks that a query gives the same bits
// alone and among others.
double check_attention(const Kernels& kernels, const Case& one) {
    const int64_t width = one.width, wide = padded_width(width), pages = (one.length + kPage - 1) / kPage;
    const int64_t key_bytes = key_page_bytes(one.type, width), value_bytes = value_page_bytes(one.type, width);
    std::vector<float> key_memory(static_cast<size_t>(pages * key_bytes / 4), std::numeric_limits<float>::quiet_NaN());
    std::vector<float> value_memory(static_cast<size_t>(pages * value_bytes / 4), key_memory[0]);
    uint8_t* const keys = reinterpret_cast<uint8_t*>(key_memory.data());
    uint8_t* const values = reinterpret_cast<uint8_t*>(value_memory.data());
    std::vector<int32_t> table(static_cast<size_t>(pages)), last(static_cast<size_t>(one.count));
    for (int64_t p = 0; p < pages; ++p) table[static_cast<size_t>(p)] = static_cast<int32_t>(pages - 1 - p);
    std::vector<std::vector<float>> k, v;
    for (int64_t j = 0; j < one.length; ++j) {
        std::vector<float> a(static_cast<size_t>(width)), b = a;
        for (float& value : a) value = normal();
        for (float& value : b) value = normal();
        const int64_t page = table[static_cast<size_t>(j / kPage)];
        kernels.store_key(a.data(), width, one.type, keys + page * key_bytes, j % kPage);
        kernels.store_value(b.data(), width, one.type, values + page * value_bytes, j % kPage);
        if (one.type == CacheType::kQ8_0) {
            const uint8_t* key = keys + page * key_bytes;
            const uint8_t* value = values + page * value_bytes;
            const int64_t slot = j % kPage, groups = (width + kBlock - 1) / kBlock;
            k.push_back(from_q8(kernels.name, a, reinterpret_cast<const int8_t*>(key) + slot, kPage,
                                reinterpret_cast<const float*>(key + width * kPage) + slot, kPage));
            v.push_back(from_q8(kernels.name, b, reinterpret_cast<const int8_t*>(value) + slot * wide, 1,
                                reinterpret_cast<const float*>(value + wide * kPage) + slot * groups, 1));
        } else {
            k.push_back(as_cached(a, one.type));
            v.push_back(as_cached(b, one.type));
        }
    }
    std::vector<float> q(static_cast<size_t>(one.count * width)), highest(static_cast<size_t>(one.count)),
        total = highest;
    std::vector<float> mixed(static_cast<size_t>(one.count * wide)),
        scratch(static_cast<size_t>(attend_floats(one.count, width)));
    for (float& value : q) value = normal(2.0f / std::sqrt(static_cast<float>(width)));
    // Kernels that multiply bf16 round the queries as well.
    const bool rounds = kernels.uses_bf16 && one.type == CacheType::kBF16;
    const std::vector<float> asked = rounds ? as_cached(q, one.type) : q;
    for (int64_t i = 0; i < one.count; ++i)
        last[static_cast<size_t>(i)] =
            static_cast<int32_t>(i == 0 ? one.length - 1 : below(static_cast<int>(one.length)));
    const HeadCache cache{keys, values, table.data(), key_bytes, value_bytes, one.type, width, nullptr, nullptr};
    std::vector<float> all_highest, all_total, all_mixed;
    for (int64_t split = 0; split * kSplit < one.length; ++split) {
        kernels.attend({q.data(), last.data(), one.count, highest.data(), total.data(), mixed.data()}, cache, split,
                       scratch.data());
        for (int64_t i = 0; i < one.count; ++i) {  // each query alone must give the same bits
            float h, t;
            std::vector<float> m(static_cast<size_t>(wide));
            const size_t at = static_cast<size_t>(i);
            if (last[at] < split * kSplit) continue;
            kernels.attend({q.data() + i * width, last.data() + i, 1, &h, &t, m.data()}, cache, split, scratch.data());
            demand(kernels.name, "one query and many agree",
                   h == highest[at] && t == total[at] &&
                       std::equal(m.begin(), m.begin() + width, mixed.begin() + i * wide));
        }
        if (split == 0) {
            all_highest = highest, all_total = total, all_mixed = mixed;
            continue;
        }
        for (int64_t i = 0; i < one.count; ++i)
            if (last[static_cast<size_t>(i)] >= split * kSplit)
                kernels.merge(all_highest.data() + i, all_total.data() + i, all_mixed.data() + i * wide,
                              highest[static_cast<size_t>(i)], total[static_cast<size_t>(i)], mixed.data() + i * wide,
                              wide);
    }
    double worst = 0.0;
    for (int64_t i = 0; i < one.count; ++i) {
        const size_t seen = static_cast<size_t>(last[static_cast<size_t>(i)]) + 1;
        std::vector<double> score(seen), out(static_cast<size_t>(width)),
            size(static_cast<size_t>(width), rounds ? 0.0 : 1.0);  // magnitude of the rounded terms, which may cancel
        double most = -HUGE_VAL, sum = 0.0;
        for (size_t j = 0; j < seen; ++j) {
            for (int64_t e = 0; e < width; ++e)
                score[j] +=
                    static_cast<double>(asked[static_cast<size_t>(i * width + e)]) * k[j][static_cast<size_t>(e)];
            most = std::max(most, score[j]);
        }
        for (double& value : score) sum += value = std::exp(value - most);
        for (size_t j = 0; j < seen; ++j)
            for (int64_t e = 0; e < width; ++e) {
                const double term = score[j] / sum * v[j][static_cast<size_t>(e)];
                out[static_cast<size_t>(e)] += term;
                if (rounds) size[static_cast<size_t>(e)] += std::fabs(term);
            }
        for (int64_t e = 0; e < width; ++e)
            worst = std::max(
                worst, std::fabs(all_mixed[static_cast<size_t>(i * wide + e)] / all_total[static_cast<size_t>(i)] -
                                 out[static_cast<size_t>(e)]) /
                           size[static_cast<size_t>(e)]);
    }
    return worst;
}

void check_attentions(const Kernels& kernels) {
    for (const CacheType type : {CacheType::kF32, CacheType::kF16, CacheType::kBF16, CacheType::kQ8_0}) {
        double worst = 0.0;
        for (const int64_t width : {8, 20, 48, 64, 80, 100, 128, 256})
            for (const int64_t count : {1, 2, 3, 8, 13, 64}) {
                if (count == 64 && width != 64) continue;
                if (quick && (width % 20 || count == 13)) continue;
                for (const int64_t length : {1, 17, 64, 65, 300, 600})
                    worst = std::max(worst, check_attention(kernels, {type, width, count, length}));
            }
        // Kernels that multiply bf16 round the weights of the values to bf16, with a relative error of at most 2^-8.
        const bool rounds = kernels.uses_bf16 && type == CacheType::kBF16;
        report(kernels.name, "attention, cache type " + std::to_string(static_cast<int>(type)), worst,
               rounds ? 0x1p-8 : 1e-5);
    }
}

// Checks that for_each_key_line lists exactly the cache lines that store_key changes.
void check_key_lines(const Kernels& kernels) {
    for (const CacheType type : {CacheType::kF32, CacheType::kF16, CacheType::kBF16, CacheType::kQ8_0})
        for (const int64_t width : {8, 20, 64, 80, 128})
            for (const int64_t slot : {0, 1, 15, 40, 63}) {
                const size_t lines = static_cast<size_t>(key_page_bytes(type, width) + 63) / 64;
                std::vector<uint8_t> page(lines * 64);
                std::vector<bool> expected(lines), changed(lines);
                kernels.store_key(std::vector<float>(static_cast<size_t>(width), 1.0f).data(), width, type, page.data(),
                                  slot);
                for (size_t i = 0; i < page.size(); ++i)
                    if (page[i]) changed[i / 64] = true;
                for_each_key_line(type, width, slot,
                                  [&](int64_t offset) { expected[static_cast<size_t>(offset) / 64] = true; });
                demand(kernels.name, "the cache lines of a key", expected == changed);
            }
}

// ---- quantisers

// FNV-1a hashes of six quantised rows, without and with importance; every instruction set must produce them.
// tests/native/test_quantize.py measures the quantisation error.
struct Quantised {
    const char* name;
    int32_t format;
    uint32_t plain, weighted;
};

constexpr Quantised kQuantised[] = {
    {"q8_0", 8, 0x65603e5a, 0xd75887ea},  {"q4_0", 2, 0x897d309c, 0xc73e3ae9},  {"q4_1", 3, 0x6d756c2d, 0xb9269749},
    {"q5_0", 6, 0xedd45261, 0x5f9c3de8},  {"q5_1", 7, 0xf5a11c1c, 0x45fad18a},  {"iq4_nl", 20, 0xde9256d2, 0x19b0c425},
    {"q2_K", 10, 0xb0ba0e0a, 0x194c077c}, {"q3_K", 11, 0xfb2c5854, 0x74eff650}, {"q4_K", 12, 0x96d72b0c, 0x75a1d717},
    {"q5_K", 13, 0x1b1d0ac8, 0x73f5049b}, {"q6_K", 14, 0x60c2bb10, 0x5af4d267},
};

uint32_t fnv(const std::vector<uint8_t>& bytes) {
    uint32_t hash = 2166136261u;
    for (const uint8_t byte : bytes) hash = (hash ^ byte) * 16777619u;
    return hash;
}

void check_quantisers(const Kernels& kernels) {
    constexpr int64_t kRows = 6, kCols = 1280;
    uint32_t state = 1;
    const auto uniform = [&] {  // in [-1, 1], the same on every platform
        state = state * 1664525u + 1013904223u;
        return static_cast<float>(static_cast<int32_t>(state) >> 8) * 0x1p-23f;
    };
    std::vector<float> x(kRows * kCols), importance(kCols);
    for (float& value : x) value = uniform() * uniform() * uniform();
    for (float& value : importance) value = 1.5f + uniform();
    for (int64_t i = 0; i < kCols; ++i) x[static_cast<size_t>(i)] = i < 300 ? 0.0f : 0.25f;  // includes constant blocks
    const FormatTraits& from = *find_format(0);
    for (const Quantised& one : kQuantised) {
        const FormatTraits& to = *find_format(one.format);
        for (const bool weighted : {false, true}) {
            std::vector<uint8_t> out(static_cast<size_t>(kRows * kCols / to.values * to.bytes));
            quantize(kernels, 1, from, to, reinterpret_cast<const uint8_t*>(x.data()), kRows, kCols,
                     weighted ? importance.data() : nullptr, out.data());
            const uint32_t hash = fnv(out);
            const bool good = hash == (weighted ? one.weighted : one.plain);
            if (!good) std::printf("%-12s %s: 0x%08x\n", kernels.name, one.name, hash);
            demand(kernels.name, weighted ? "bytes of weighted rows" : "bytes of rows", good);
        }
    }
}

void check(const Kernels& kernels) {
    check_quantisers(kernels);
    check_matrices(kernels);
    check_toy_format(kernels);
    check_quantize(kernels);
    check_bf16(kernels);
    check_vectors(kernels);
    check_attentions(kernels);
    check_key_lines(kernels);
}

}  // namespace

int main(int count, char** arguments) {
    quick = count > 1 && std::string(arguments[1]) == "quick";
    const uint32_t have = puna_cpu_features();
    if (!kEmulated) check(kPortable);
#if defined(PUNA_X86_KERNELS)
    if (!kEmulated && have & PUNA_CPU_AVX2) check(kAvx2);
#if defined(PUNA_AVX_VNNI)
    if (!kEmulated && have & PUNA_CPU_AVX_VNNI) check(kAvxVnni);
#endif
#if defined(PUNA_AVX512_KERNELS)
    const uint32_t avx512 = PUNA_CPU_AVX512 | PUNA_CPU_AVX512_VNNI, bf16 = avx512 | PUNA_CPU_AVX512_BF16;
    if (kEmulated || (have & avx512) == avx512) check(kAvx512);
    if (kEmulated || (have & bf16) == bf16) check(kAvx512Bf16);
#endif
#elif defined(__aarch64__)
    if (have & PUNA_CPU_DOTPROD) check(kNeonDotprod);
#endif
    if (failures) std::printf("%d checks failed\n", failures);
    return failures != 0;
}
