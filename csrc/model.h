// The forward pass: packed weights, a paged KV cache, and one call for a ragged batch.
#ifndef PUNA_MODEL_H
#define PUNA_MODEL_H

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "adapter.h"
#include "kernels.h"
#include "memory.h"
#include "puna.h"
#include "threads.h"

namespace puna {

// A weight matrix and its bias.
struct Matrix {
    std::vector<float> bias;
    Panels panels;
};

struct Layer {
    std::vector<float> attention_norm, mlp_norm;
    Matrix q, k, v, o, gate, up, down;
};

// Sizes of rows and columns that the shape of a model determines.
enum class Width : int8_t { kHidden, kQuery, kKeyValue, kInner };

// Inputs of the matrices of a layer, in the order of a forward pass.
enum class Input : int8_t { kAttentionNorm, kAttention, kMlpNorm, kActivation };

// Counts interrupts. A forward pass ends at the next layer boundary once `count` differs from `start`.
struct Interrupts {
    const std::atomic<uint32_t>* count = nullptr;  // null: the pass cannot be interrupted
    uint32_t start = 0;
    bool any() const { return count && *count != start; }
};

// Thrown by a forward pass that was interrupted.
struct Stopped : std::runtime_error {
    Stopped() : std::runtime_error("the forward pass was stopped") {}
};

class Model {
  public:
    Model(const puna_shape& shape, int threads, const Kernels& kernels);

    // Packs a tensor of a file. Throws std::invalid_argument if the shape of the tensor differs from the configuration.
    void load(int32_t kind, int32_t layer, const puna_tensor& tensor);
    // Dequantises a packed matrix into `out`, [rows][cols].
    void read(int32_t kind, int32_t layer, float* out) const;
    // Checks that all tensors are loaded. Throws std::invalid_argument, whose message names the first missing tensor.
    void check() const;
    // Limits the KV cache to `pages` pages of kPage tokens.
    void limit_pages(int32_t pages);
    // See puna_forward.
    void forward(const puna_chunk* chunks, int32_t count, float* logits, float* hidden, const Interrupts& interrupts);

    // See puna_model_sample; the rows were checked. A row is one piece of the loop.
    void sample(int64_t vocab, puna_sample_row* rows, int32_t count);

    // See puna_adapter_load and puna_adapter_drop.
    int32_t load_adapter(const puna_low_rank* changes, int32_t count);
    void drop_adapter(int32_t number);

    // See puna_pages_read, puna_pages_write and puna_pages_fill.
    void read_pages(const int32_t* pages, int32_t count, uint8_t* out) const;
    void write_pages(const int32_t* pages, int32_t count, const uint8_t* data);
    void fill_pages(const int32_t* pages, int32_t count, int32_t tokens, const float* keys, const float* values);

    // See puna_model_weight_bytes and puna_model_integers.
    void weight_bytes(int64_t* bytes) const;
    bool integer_weights() const;
    // See puna_model_observe.
    void observe_into(double* squares) { squares_ = squares; }
    // See puna_model_record.
    void record_into(float* states) { states_ = states; }
    // Writes the seconds spent in each PUNA_PHASE since the previous call.
    void take_profile(double* seconds);

  private:
    struct Token {
        const puna_chunk* chunk;
        int32_t chunk_index;
        int32_t id;
        int32_t position;
        const float* embedding;  // input of the first layer; null: the embedding of `id`
    };
    struct Projection {
        const Matrix* matrix;
        float* out;
        int64_t stride;
        int32_t kind;  // PUNA_*
    };
    // Consecutive tokens with the same adapter.
    struct Segment {
        const Adapter* adapter;
        int64_t first, count;  // tokens
    };
    // The change of one product for the tokens of a segment.
    struct Product {
        const LowRank* change;
        const Segment* segment;
        size_t index;           // of the product among those of the loop
        int64_t first_item;     // index of its first item of a x
        size_t floats, halves;  // index of its first value in inner_ and in inner_bf16_
    };
    // Consecutive tokens of one chunk whose attention is computed together.
    struct Tile {
        const puna_chunk* chunk;
        int32_t chunk_index;
        int32_t first;  // index into tokens_
        int32_t count;
        int32_t splits;  // number of splits (kSplit positions each) up to the tile's last token
        int64_t before;  // sum over earlier tiles of splits * kv heads: index of the tile's first work item
        int64_t offset;  // sum over earlier tiles of splits * queries: index of the tile's first partial sum
    };
    // Cosines and sines of every position, [page][pair][token], used when keys are cached unrotated. Chunks with the
    // same frequencies share a table, and tables persist between passes.
    struct Angles {
        std::vector<float> inv_freq, cos, sin;
        float scale;
        bool used;  // a chunk of this pass uses this table
    };
    struct Partial {  // online-softmax sums of a tile's queries over one split; see Queries
        float* max_score;
        float* exp_sum;
        float* weighted_values;
    };

    // A tensor of the model: a matrix, or a vector. `biased`: the matrix to which a bias belongs.
    struct Target {
        Matrix* matrix = nullptr;
        std::vector<float>* vector = nullptr;
        Matrix* biased = nullptr;
        int64_t rows = 1;
        int64_t cols = 0;
    };

    Target find(int32_t kind, int32_t layer);
    int64_t width(Width width) const;
    int64_t input_offset(int64_t layer, Input input) const;
    void pack(Matrix& matrix, const puna_tensor& tensor);
    void prepare(const puna_chunk* chunks, int32_t count);
    void reserve_pages(int32_t pages);
    int32_t check_pages(const int32_t* pages, int32_t count) const;
    void reserve_buffers();
    void make_tiles(const puna_chunk* chunks, int32_t count);
    void embed();
    size_t find_angles(const puna_chunk& chunk);
    void fill_angles(const puna_chunk* chunks, int32_t count);
    void run_layer(Layer& layer, int32_t index);
    void normalise(const std::vector<float>& weight, std::initializer_list<const Matrix*> readers);
    void convert_row(const float* x, int64_t cols, int64_t token, int per_scale, bool bf16);
    Activations activations(const float* x, int64_t cols);
    void project(std::initializer_list<Projection> outs, int32_t layer, const Activations& x, int64_t tokens, bool add);
    void make_segments();
    const Matrix& head() const { return head_.panels.data ? head_ : embedding_; }
    void plan_products(std::initializer_list<Projection> outs, int32_t layer);
    void multiply_inner(const Activations& x);
    void prefetch_products(const Panels& w, size_t index, int64_t first, int64_t last, int64_t tokens) const;
    void add_products(const Projection& out, size_t index, int64_t first, int64_t last, int64_t tokens);
    void add_rows(const Projection& from, float* out, int64_t first, int64_t last, int64_t tokens) const;
    const FormatTraits& format_of_a(const Panels& w) const;
    const FormatTraits& format_of_b(const Panels& w) const;
    void observe(const float* x, int64_t cols, int64_t offset);
    void record(int32_t layer);
    void prefetch_keys(int32_t layer) const;
    void store_keys_values(int32_t layer);
    void attend(int32_t layer);
    void attend_split(int32_t layer, const Tile& tile, int64_t head, int64_t split, int thread);
    Partial partial(const Tile& tile, int64_t head, int64_t split);
    void merge_splits(std::initializer_list<const Matrix*> readers);
    void merge_head(const Tile& tile, int64_t head);
    void activate(std::initializer_list<const Matrix*> readers);
    void run_head(const puna_chunk* chunks, int32_t count, float* logits, float* hidden);
    void input_forms(std::initializer_list<const Matrix*> readers, int& per_scale, bool& bf16) const;
    void add_time(int32_t phase);

    puna_shape shape_;
    const Kernels& kernels_;
    CacheType cache_type_;
    Pool pool_;
    Arena weights_;  // the panels of all matrices
    Matrix embedding_, head_;
    std::vector<float> norm_;
    std::vector<Layer> layers_;
    std::map<int32_t, std::unique_ptr<Adapter>> adapters_;  // by number
    int32_t last_adapter_ = 0;

    int32_t pages_ = 0;     // limit of the cache
    int32_t reserved_ = 0;  // pages that keys_ and values_ have memory for
    Buffer<uint8_t> keys_, values_;

    std::vector<Token> tokens_;
    std::vector<Tile> tiles_;
    std::vector<Angles> angles_;
    std::vector<size_t> chunk_angles_;  // chunk_angles_[c]: index in angles_ of the table of chunk c
    Buffer<float> x_, normed_, q_, k_, v_, attention_, gate_, up_, cos_, sin_;
    Buffer<float> sums_, totals_;  // partial attention sums: mixed values; maximum scores and totals
    Buffer<ActivationBlock> blocks_;
    Buffer<float> scratch_;  // [threads][scratch_stride_]: scratch of `attend` and gathered queries
    Buffer<int32_t> last_;   // [threads][last_stride_]: positions of the gathered queries
    int64_t scratch_stride_ = 0, last_stride_ = 0;
    Buffer<uint16_t> bf16_;

    std::vector<Segment> segments_;
    std::vector<Product> products_;  // of the current loop, in the order of their items
    Buffer<float> inner_, added_;    // a x, [tokens][rank] per product; w x + b a x of products that are added to x_
    Buffer<uint16_t> inner_bf16_;    // [tokens][bf16_stride(rank)] per product
    int64_t items_ = 0;              // of a x, in the current loop
    // In separate cache lines, because threads change them while they read other members.
    alignas(64) std::atomic<int64_t> next_item_{0};
    alignas(64) std::atomic<int64_t> items_done_{0};

    alignas(64) double* squares_ = nullptr;  // see puna_model_observe
    float* states_ = nullptr;                // see puna_model_record
    std::array<double, PUNA_PHASES> seconds_{};
    double mark_ = 0.0;
};

}  // namespace puna

#endif
