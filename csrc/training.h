// Kernels of training for x86. Matrices are row-major bf16; sums are float32.
#ifndef PUNA_TRAINING_H
#define PUNA_TRAINING_H

#include <cstdint>

namespace puna {

// Attention within one document, of the query heads that share a kv head. Rows are tokens; a row of `qkv` has the
// rotated queries of all heads, the rotated keys, and the values, each `width` wide (a multiple of 32, at most 256).
struct TrainAttention {
    const uint16_t* qkv;  // the first row of the document
    int64_t tokens, heads, kv_heads, width;
    uint16_t* out;  // [token][heads * width]
    float* lse;     // [head][token]: the logarithm of the sum of exponentials
    // Only for the backward pass:
    const uint16_t* grad;  // the gradient of `out`
    uint16_t* grad_qkv;
};

constexpr int64_t kMaxBlockValues = 256;

// Decodes one block of a weight format to bf16; null for formats without a decoder.
struct BlockDecoder {
    int64_t bytes, values;
    void (*decode)(const uint8_t* block, uint16_t* out);
};

struct TrainKernels {
    // The first three are null where attention has no kernel.
    // Bytes of scratch memory, aligned to 64, that `attend` and `attend_backward` need for one head.
    int64_t (*scratch)(int64_t tokens, int64_t width);
    // Writes the attention of one query head.
    void (*attend)(const TrainAttention& job, int64_t head, uint8_t* scratch);
    // Writes the gradients of a kv head and of its query heads.
    void (*attend_backward)(const TrainAttention& job, int64_t kv_head, uint8_t* scratch);

    // The following work on rows. out = x / rms(x) * weight.
    void (*norm)(const uint16_t* x, const float* weight, float eps, int64_t cols, uint16_t* out);
    // out = the gradient of x, plus `add`.
    void (*norm_backward)(const uint16_t* grad, const uint16_t* x, const float* weight, float eps, int64_t cols,
                          const uint16_t* add, uint16_t* out);
    // out[i] = silu(gate_up[i]) * gate_up[cols + i].
    void (*gated)(const uint16_t* gate_up, int64_t cols, uint16_t* out);
    // Writes the gradient of gate_up and, again, the result of `gated`.
    void (*gated_backward)(const uint16_t* grad, const uint16_t* gate_up, int64_t cols, uint16_t* out,
                           uint16_t* grad_gate_up);
    // Rotates `heads` heads in place, pairs (i, i + half), by angles with these cosines and `sign` times these sines.
    void (*rotate)(uint16_t* x, int64_t heads, int64_t half, const float* cos, const float* sin, float sign);
    // Returns factor * cross-entropy of the logits; if `train`, replaces them by their gradients. `scratch`: vocab
    // floats, rounded up to 16.
    double (*cross_entropy)(uint16_t* logits, int64_t vocab, int64_t target, float factor, bool train, float* scratch);
    // Returns the decoder of a format of formats.h.
    BlockDecoder (*decoder)(int32_t format);
    // Widens `count` values, a multiple of 16.
    void (*widen)(const uint16_t* x, int64_t count, float* out);
    // Returns the sum of squares of `count` floats, added in float32; for at most some ten thousand values.
    double (*squares)(const float* x, int64_t count);
};

#if defined(__x86_64__) && !defined(PUNA_ONLY_PORTABLE)
extern const TrainKernels kTrainBf16, kTrainAvx2;
#endif

}  // namespace puna

#endif
