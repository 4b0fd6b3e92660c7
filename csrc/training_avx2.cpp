// The kernels of training.h that work on rows, for processors with AVX2. They have no attention.

#include <immintrin.h>

#include "formats.h"
#include "half.h"
#include "kernels.h"
#include "training.h"

namespace puna {
namespace train_avx2 {
#include "vec.h"

PUNA_INLINE f32x16 widen_part(const uint16_t* from, int64_t count) {
    uint16_t values[kLanes] = {};
    if (count < kLanes) {
        for (int64_t i = 0; i < count; ++i) values[i] = from[i];
        from = values;
    }
    return as_f32(shift_right(widen_u16(from), -16));
}
PUNA_INLINE void narrow_part(uint16_t* to, const f32x16& value, int64_t count) {
    if (count >= kLanes) return store_bf16(to, value);
    uint16_t values[kLanes];
    store_bf16(values, value);
    for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}
// The first `count` lanes, at most 16; the others become 0.
PUNA_INLINE f32x16 first_lanes(const f32x16& value, int64_t count) {
    float lanes[kLanes];
    store(lanes, value);
    return load_partial(lanes, count);
}
PUNA_INLINE f32x16 from_bytes(__m128i bytes) {
    uint8_t values[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(values), bytes);
    return to_f32(widen_u8(values));
}

#include "training_blocks.inl"
#include "training_rows.inl"

}  // namespace train_avx2

extern const TrainKernels kTrainAvx2 = {
    .scratch = nullptr,
    .attend = nullptr,
    .attend_backward = nullptr,
    .norm = train_avx2::norm,
    .norm_backward = train_avx2::norm_backward,
    .gated = train_avx2::gated,
    .gated_backward = train_avx2::gated_backward,
    .rotate = train_avx2::rotate,
    .cross_entropy = train_avx2::cross_entropy,
    .decoder = train_avx2::decoder,
    .widen = train_avx2::widen_row,
    .squares = train_avx2::squares,
};

}  // namespace puna
