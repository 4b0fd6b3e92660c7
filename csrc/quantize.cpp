// See quantize.h. q8_0 and q4_0 take the scale from the value of largest magnitude, as ggml does. q4_K searches: for
// each 32 values it tries scales around the obvious one and keeps that whose values, with the best minimum for them,
// lie nearest to the given ones in the weighted least-squares sense.

#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace puna {

namespace {

constexpr int kSuper = 256;

float value_at(const Layout& from, const uint8_t* row, int64_t k) {
    if (from.format == kF32) {
        float value;
        std::memcpy(&value, row + 4 * k, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, row + 2 * k, 2);
    return from.format == kF16 ? from_half(bits) : from_bfloat(bits);
}

void put(uint8_t* to, uint16_t value) { std::memcpy(to, &value, sizeof value); }

int nearest(float value, int low, int high) {
    return std::min(high, std::max(low, static_cast<int>(std::lrint(value))));
}

void block_q8_0(const float* x, uint8_t* out) {
    float most = 0.0f;
    for (int i = 0; i < kBlock; ++i) most = std::max(most, std::fabs(x[i]));
    const float scale = most / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    put(out, to_half(scale));
    for (int i = 0; i < kBlock; ++i) out[2 + i] = static_cast<uint8_t>(nearest(x[i] * inverse, -127, 127));
}

// The value of largest magnitude becomes -8, so that all sixteen levels are used.
void block_q4_0(const float* x, uint8_t* out) {
    float most = 0.0f;
    for (int i = 0; i < kBlock; ++i)
        if (std::fabs(x[i]) > std::fabs(most)) most = x[i];
    const float scale = most / -8.0f, inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    put(out, to_half(scale));
    const auto level = [&](int i) { return nearest(x[i] * inverse + 8.0f, 0, 15); };
    for (int i = 0; i < 16; ++i) out[2 + i] = static_cast<uint8_t>(level(i) | level(i + 16) << 4);
}

struct Line {  // x is about scale * level - least
    float scale, least;
};

// Weighted least squares for given levels; the minimum does not fall below 0.
Line fit(const float* x, const float* weight, const int* level) {
    double w = 0.0, l = 0.0, ll = 0.0, v = 0.0, lv = 0.0;
    for (int i = 0; i < kBlock; ++i) {
        w += weight[i];
        l += weight[i] * level[i];
        ll += weight[i] * level[i] * level[i];
        v += weight[i] * x[i];
        lv += weight[i] * level[i] * x[i];
    }
    const double below = w * ll - l * l;
    if (below <= 0.0) return {0.0f, 0.0f};
    const double scale = (w * lv - l * v) / below, least = (l * lv - ll * v) / below;
    if (least < 0.0) return {static_cast<float>(lv / ll), 0.0f};
    return {static_cast<float>(scale), static_cast<float>(least)};
}

Line best_line(const float* x) {
    float low = 0.0f, high = x[0], weight[kBlock];
    double power = 0.0;
    for (int i = 0; i < kBlock; ++i) {
        low = std::min(low, x[i]);
        high = std::max(high, x[i]);
        power += static_cast<double>(x[i]) * x[i];
    }
    if (high <= low) return {0.0f, -low};
    const float typical = static_cast<float>(std::sqrt(power / kBlock));
    for (int i = 0; i < kBlock; ++i) weight[i] = typical + std::fabs(x[i]);  // large values matter more
    Line best{(high - low) / 15.0f, -low};
    double least_error = HUGE_VAL;
    for (int step = -10; step <= 10; ++step) {
        const float inverse = (15.0f + 0.1f * static_cast<float>(step)) / (high - low);
        int level[kBlock];
        for (int i = 0; i < kBlock; ++i) level[i] = nearest(inverse * (x[i] - low), 0, 15);
        const Line line = fit(x, weight, level);
        if (line.scale <= 0.0f) continue;
        double error = 0.0;
        for (int i = 0; i < kBlock; ++i) {
            const int l = nearest((x[i] + line.least) / line.scale, 0, 15);
            const double off = line.scale * l - line.least - x[i];
            error += weight[i] * off * off;
        }
        if (error < least_error) {
            least_error = error;
            best = line;
        }
    }
    return best;
}

void put_six_bits(const int (&scale)[8], const int (&least)[8], uint8_t* out) {
    for (int b = 0; b < 4; ++b) {
        out[b] = static_cast<uint8_t>(scale[b] | scale[b + 4] >> 4 << 6);
        out[4 + b] = static_cast<uint8_t>(least[b] | least[b + 4] >> 4 << 6);
        out[8 + b] = static_cast<uint8_t>((scale[b + 4] & 15) | (least[b + 4] & 15) << 4);
    }
}

void block_q4_k(const float* x, uint8_t* out) {
    Line line[8];
    float most_scale = 0.0f, most_least = 0.0f;
    for (int b = 0; b < 8; ++b) {
        line[b] = best_line(x + kBlock * b);
        most_scale = std::max(most_scale, line[b].scale);
        most_least = std::max(most_least, line[b].least);
    }
    const uint16_t d = to_half(most_scale / 63.0f), dmin = to_half(most_least / 63.0f);
    const float unit = from_half(d), least_unit = from_half(dmin);
    int scale[8], least[8], level[kSuper];
    for (int b = 0; b < 8; ++b) {
        scale[b] = unit > 0.0f ? nearest(line[b].scale / unit, 0, 63) : 0;
        least[b] = least_unit > 0.0f ? nearest(line[b].least / least_unit, 0, 63) : 0;
        const float step = unit * static_cast<float>(scale[b]), below = least_unit * static_cast<float>(least[b]);
        for (int i = 0; i < kBlock; ++i)
            level[kBlock * b + i] = step > 0.0f ? nearest((x[kBlock * b + i] + below) / step, 0, 15) : 0;
    }
    put(out, d);
    put(out + 2, dmin);
    put_six_bits(scale, least, out + 4);
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < kBlock; ++i)
            out[16 + kBlock * pair + i] =
                static_cast<uint8_t>(level[2 * kBlock * pair + i] | level[2 * kBlock * pair + kBlock + i] << 4);
}

}  // namespace

bool can_quantize(const Layout& from, const Layout& to) {
    const bool floats = from.format == kF32 || from.format == kF16 || from.format == kBF16;
    return floats && (to.format == kQ8_0 || to.format == kQ4_0 || to.format == kQ4_K);
}

bool quantize_row(const Layout& from, const uint8_t* row, const Layout& to, uint8_t* out, int64_t cols) {
    float x[kSuper];
    for (int64_t k = 0; k < cols; k += to.values, out += to.bytes) {
        for (int i = 0; i < to.values; ++i) {
            x[i] = value_at(from, row, k + i);
            if (!std::isfinite(x[i])) return false;
        }
        if (to.format == kQ8_0)
            block_q8_0(x, out);
        else if (to.format == kQ4_0)
            block_q4_0(x, out);
        else
            block_q4_k(x, out);
    }
    return true;
}

}  // namespace puna
