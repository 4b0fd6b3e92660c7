// The forward pass: packed weights, a paged cache, and one call for a ragged batch.
#ifndef PUNA_MODEL_H
#define PUNA_MODEL_H

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "puna.h"
#include "threads.h"

namespace puna {

// A weight matrix and its bias.
struct Matrix {
    Buffer<uint8_t> values;
    std::vector<float> bias;
    Panels panels;
};

struct Layer {
    std::vector<float> attention_norm, mlp_norm;
    Matrix q, k, v, o, gate, up, down;
};

// Thrown when stop() was called during a forward pass.
struct Stopped : std::runtime_error {
    Stopped() : std::runtime_error("the forward pass was stopped") {}
};

class Model {
  public:
    Model(const puna_shape& shape, int threads, const Kernels& kernels);

    // Packs a tensor of a file. Throws std::invalid_argument when its sizes are not those of the shape.
    void load(int32_t kind, int32_t layer, const puna_tensor& tensor);
    // Reads a matrix back as the panels hold it, [rows][cols].
    void read(int32_t kind, int32_t layer, float* out) const;
    // Checks that every tensor is there. Throws std::invalid_argument naming the first that is not.
    void check() const;
    // Makes room for `pages` pages of kPage tokens.
    void reserve_pages(int32_t pages);
    // See puna_forward.
    void forward(const puna_chunk* chunks, int32_t count, float* logits);
    // Makes a forward pass under way end between two layers; may be called by a signal handler.
    void stop() { stopping_ = true; }

    // Bytes of the panels that a token reads, and whether any of them are integers.
    void weight_bytes(int64_t* bytes) const;
    bool integer_weights() const;
    // See puna_model_observe.
    void observe_into(double* squares) { squares_ = squares; }
    // Seconds in each PUNA_PHASE since the last call.
    void take_profile(double* seconds);

  private:
    struct Token {
        const puna_chunk* chunk;
        int32_t chunk_index;
        int32_t id;
        int32_t position;
    };
    struct Projection {
        const Matrix* matrix;
        float* out;
        int64_t stride;
    };
    // Consecutive tokens of one chunk that attend together.
    struct Tile {
        const puna_chunk* chunk;
        int32_t chunk_index;
        int32_t first;  // of tokens_
        int32_t count;
        int32_t splits;
        int64_t before;  // splits of the tiles before it, times kv heads
        int64_t offset;  // of its sums: splits times queries of the tiles before it
    };
    // Cosines and sines of every position, [page][pair][token], where keys are kept unrotated. Chunks of the same
    // frequencies share one, and the next pass finds it.
    struct Angles {
        std::vector<float> inv_freq, cos, sin;
        float scale;
        bool used;  // in this pass
    };
    struct Partial {  // what attention has summed for a tile's queries in one split
        float* highest;
        float* total;
        float* mixed;
    };

    Matrix* find(int32_t kind, int32_t layer);
    void pack(Matrix& matrix, const puna_tensor& tensor);
    void collect(const puna_chunk* chunks, int32_t count);
    void reserve_work();
    void lay_tiles(const puna_chunk* chunks, int32_t count);
    void embed();
    size_t find_angles(const puna_chunk& chunk);
    void fill_angles(const puna_chunk* chunks, int32_t count);
    void run_layer(Layer& layer, int32_t index);
    void normalise(const std::vector<float>& weight, std::initializer_list<const Matrix*> readers);
    void round(const float* x, int64_t cols, int64_t token, bool integers, bool bf16);
    Activations inputs(const float* x, int64_t cols);
    void project(std::initializer_list<Projection> outs, const Activations& x, int64_t tokens, bool add);
    void observe(const float* x, int64_t cols, int64_t tokens, int64_t place);
    void expect_keys(int32_t layer) const;
    void store_keys_values(int32_t layer);
    void attend(int32_t layer);
    void attend_split(int32_t layer, const Tile& tile, int64_t head, int64_t split);
    Partial partial(const Tile& tile, int64_t head, int64_t split);
    void merge_splits(std::initializer_list<const Matrix*> readers);
    void merge_head(const Tile& tile, int64_t head);
    void activate(std::initializer_list<const Matrix*> readers);
    void heads(const puna_chunk* chunks, int32_t count, float* logits);
    void wants(std::initializer_list<const Matrix*> readers, bool& integers, bool& bf16) const;
    void timed(int32_t phase);

    puna_shape shape_;
    const Kernels& kernels_;
    CacheType cache_type_;
    Pool pool_;
    Matrix embedding_, head_;
    std::vector<float> norm_;
    std::vector<Layer> layers_;
    std::atomic<bool> stopping_{false};

    int32_t pages_ = 0;
    Buffer<uint8_t> keys_, values_;

    std::vector<Token> tokens_;
    std::vector<Tile> tiles_;
    std::vector<Angles> angles_;
    std::vector<size_t> chunk_angles_;  // which of them each chunk has
    Buffer<float> x_, normed_, q_, k_, v_, mixed_, gate_, up_, cos_, sin_;
    Buffer<float> sums_, totals_;  // partial attention
    Buffer<ActivationBlock> blocks_;
    Buffer<uint16_t> bf16_;

    double* squares_ = nullptr;  // see puna_model_observe
    std::array<double, PUNA_PHASES> seconds_{};
    double mark_ = 0.0;
};

}  // namespace puna

#endif
