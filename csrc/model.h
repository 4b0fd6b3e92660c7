// The forward pass: packed weights, a paged cache, and one call for a ragged batch.
#ifndef PUNA_MODEL_H
#define PUNA_MODEL_H

#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "puna.h"
#include "threads.h"

namespace puna {

// A weight matrix (or a norm's vector, as one row) and its panels.
struct Matrix {
    Buffer<float> values;
    std::vector<float> bias;
    Panels panels;
};

struct Layer {
    std::vector<float> attention_norm, mlp_norm;
    Matrix q, k, v, o, gate, up, down;
};

class Model {
  public:
    Model(const puna_shape& shape, const float* inv_freq, int threads, const Kernels& kernels);

    // Packs a float32 tensor. Throws std::invalid_argument when its sizes are not those of the shape.
    void load(int32_t kind, int32_t layer, const float* data, int64_t rows, int64_t cols);
    // Checks that every tensor is there. Throws std::invalid_argument naming the first that is not.
    void check() const;
    // Makes room for `pages` pages of kPage tokens.
    void reserve_pages(int32_t pages);
    // See puna_forward.
    void forward(const puna_chunk* chunks, int32_t count, float* logits);

    const Kernels& kernels() const { return kernels_; }

  private:
    struct Token {
        const puna_chunk* chunk;
        int32_t id;
        int32_t position;
    };
    struct Projection {
        const Matrix* matrix;
        float* out;
        int64_t stride;
    };

    void pack(Matrix& matrix, const float* data, int64_t rows, int64_t cols);
    void collect(const puna_chunk* chunks, int32_t count);
    void embed();
    void fill_angles();
    void run_layer(Layer& layer, int32_t index);
    void normalise(const std::vector<float>& weight);
    void project(const std::vector<Projection>& outs, const float* x, int64_t x_stride, int64_t tokens, bool add);
    void store_keys_values(int32_t layer);
    void attend(int32_t layer);
    void heads(const puna_chunk* chunks, int32_t count, float* logits);
    int64_t layer_offset(int32_t layer, int64_t head_floats) const;

    puna_shape shape_;
    const Kernels& kernels_;
    Pool pool_;
    std::vector<float> inv_freq_;
    Matrix embedding_, head_;
    std::vector<float> norm_;
    std::vector<Layer> layers_;

    int32_t pages_ = 0;
    Buffer<float> keys_, values_;

    std::vector<Token> tokens_;
    Buffer<float> x_, normed_, q_, k_, v_, mixed_, gate_, up_, cos_, sin_;
};

}  // namespace puna

#endif
