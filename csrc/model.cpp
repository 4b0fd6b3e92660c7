// See model.h. Legend: N tokens of the batch, D hidden, I intermediate, H heads, K kv heads, E head width.

#include "model.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace puna {

namespace {

int64_t padded(int64_t width) { return (width + kPanel - 1) / kPanel * kPanel; }

}  // namespace

Model::Model(const puna_shape& shape, const float* inv_freq, int threads, const Kernels& kernels)
    : shape_(shape),
      kernels_(kernels),
      pool_(threads),
      inv_freq_(inv_freq, inv_freq + shape.head_dim / 2),
      layers_(static_cast<size_t>(shape.layers)) {}

void Model::pack(Matrix& matrix, const float* data, int64_t rows, int64_t cols) {
    const int64_t panels = (rows + kPanel - 1) / kPanel;
    matrix.values = Buffer<float>(static_cast<size_t>(panels * kPanel * cols));
    float* const to = matrix.values.data();
    pool_.each(panels, pool_.grain(panels), [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel)
            for (int64_t r = 0; r < kPanel && panel * kPanel + r < rows; ++r) {
                const float* row = data + (panel * kPanel + r) * cols;
                float* column = to + panel * kPanel * cols + r;
                for (int64_t k = 0; k < cols; ++k) column[k * kPanel] = row[k];
            }
    });
    matrix.panels.data = to;
    matrix.panels.rows = rows;
    matrix.panels.cols = cols;
}

void Model::load(int32_t kind, int32_t layer, const float* data, int64_t rows, int64_t cols) {
    const int64_t hidden = shape_.hidden_size, inner = shape_.intermediate_size;
    const int64_t q = int64_t{shape_.heads} * shape_.head_dim, kv = int64_t{shape_.kv_heads} * shape_.head_dim;
    Layer* at = layer >= 0 && layer < shape_.layers ? &layers_[static_cast<size_t>(layer)] : nullptr;
    if ((kind >= PUNA_ATTENTION_NORM) != (at != nullptr)) throw std::invalid_argument("no such layer");
    const auto vector = [&](std::vector<float>& to, int64_t size) {
        if (rows != 1 || cols != size) throw std::invalid_argument("a vector has the wrong size");
        to.assign(data, data + size);
    };
    const auto matrix = [&](Matrix& to, int64_t wanted_rows, int64_t wanted_cols) {
        if (rows != wanted_rows || cols != wanted_cols) throw std::invalid_argument("a matrix has the wrong shape");
        pack(to, data, rows, cols);
        to.panels.bias = to.bias.empty() ? nullptr : to.bias.data();
    };
    const auto bias = [&](Matrix& to, int64_t size) {
        vector(to.bias, size);
        to.panels.bias = to.bias.data();
    };
    switch (kind) {
        case PUNA_EMBEDDING:
            return matrix(embedding_, shape_.vocab_size, hidden);
        case PUNA_HEAD:
            return matrix(head_, shape_.vocab_size, hidden);
        case PUNA_NORM:
            return vector(norm_, hidden);
        case PUNA_ATTENTION_NORM:
            return vector(at->attention_norm, hidden);
        case PUNA_MLP_NORM:
            return vector(at->mlp_norm, hidden);
        case PUNA_Q:
            return matrix(at->q, q, hidden);
        case PUNA_K:
            return matrix(at->k, kv, hidden);
        case PUNA_V:
            return matrix(at->v, kv, hidden);
        case PUNA_O:
            return matrix(at->o, hidden, q);
        case PUNA_GATE:
            return matrix(at->gate, inner, hidden);
        case PUNA_UP:
            return matrix(at->up, inner, hidden);
        case PUNA_DOWN:
            return matrix(at->down, hidden, inner);
        case PUNA_Q_BIAS:
            return bias(at->q, q);
        case PUNA_K_BIAS:
            return bias(at->k, kv);
        case PUNA_V_BIAS:
            return bias(at->v, kv);
        case PUNA_O_BIAS:
            return bias(at->o, hidden);
        case PUNA_GATE_BIAS:
            return bias(at->gate, inner);
        case PUNA_UP_BIAS:
            return bias(at->up, inner);
        case PUNA_DOWN_BIAS:
            return bias(at->down, hidden);
        default:
            throw std::invalid_argument("no such kind of tensor");
    }
}

void Model::check() const {
    const auto need = [](bool there, const char* name) {
        if (!there) throw std::invalid_argument(std::string("the model lacks ") + name);
    };
    need(embedding_.panels.data, "its embedding");
    need(!norm_.empty(), "its final norm");
    for (const Layer& layer : layers_) {
        need(!layer.attention_norm.empty() && !layer.mlp_norm.empty(), "a layer's norm");
        for (const Matrix* matrix : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
            need(matrix->panels.data, "a layer's matrix");
    }
}

void Model::reserve_pages(int32_t pages) {
    const int64_t heads = int64_t{shape_.layers} * pages * shape_.kv_heads;
    keys_ = Buffer<float>(static_cast<size_t>(heads * kPage * shape_.head_dim), false);
    values_ = Buffer<float>(static_cast<size_t>(heads * kPage * padded(shape_.head_dim)), false);
    pages_ = pages;
}

// Where a layer's pages begin: [layer][page][kv head][head_floats].
int64_t Model::layer_offset(int32_t layer, int64_t head_floats) const {
    return int64_t{layer} * pages_ * shape_.kv_heads * head_floats;
}

void Model::collect(const puna_chunk* chunks, int32_t count) {
    tokens_.clear();
    for (int32_t c = 0; c < count; ++c) {
        const puna_chunk& chunk = chunks[c];
        const int64_t end = int64_t{chunk.start} + chunk.count;
        if (chunk.start < 0 || chunk.count < 1 || chunk.logits < 0 || chunk.logits > chunk.count || end > INT32_MAX ||
            chunk.page_count < (end + kPage - 1) / kPage)
            throw std::invalid_argument("a chunk's sizes do not fit together");
        for (int32_t p = 0; p < chunk.page_count; ++p)
            if (chunk.pages[p] < 0 || chunk.pages[p] >= pages_) throw std::invalid_argument("a page is out of range");
        for (int32_t t = 0; t < chunk.count; ++t) {
            if (chunk.tokens[t] < 0 || chunk.tokens[t] >= shape_.vocab_size)
                throw std::invalid_argument("a token is out of range");
            tokens_.push_back({&chunk, static_cast<int32_t>(chunk.tokens[t]), chunk.start + t});
        }
    }
    const size_t n = tokens_.size(), hidden = static_cast<size_t>(shape_.hidden_size);
    const size_t q = static_cast<size_t>(shape_.heads) * static_cast<size_t>(shape_.head_dim);
    const size_t kv = static_cast<size_t>(shape_.kv_heads) * static_cast<size_t>(shape_.head_dim);
    for (Buffer<float>* buffer : {&x_, &normed_}) buffer->reserve(n * hidden);
    for (Buffer<float>* buffer : {&q_, &mixed_}) buffer->reserve(n * q);
    for (Buffer<float>* buffer : {&k_, &v_}) buffer->reserve(n * kv);
    for (Buffer<float>* buffer : {&gate_, &up_}) buffer->reserve(n * static_cast<size_t>(shape_.intermediate_size));
    for (Buffer<float>* buffer : {&cos_, &sin_}) buffer->reserve(n * inv_freq_.size());
}

void Model::embed() {
    const int64_t hidden = shape_.hidden_size;
    for (size_t n = 0; n < tokens_.size(); ++n) {
        const int64_t id = tokens_[n].id;
        const float* column = embedding_.panels.data + id / kPanel * kPanel * hidden + id % kPanel;
        float* to = x_.data() + static_cast<int64_t>(n) * hidden;
        for (int64_t d = 0; d < hidden; ++d) to[d] = column[d * kPanel];
    }
}

// The angle is a float32 product, as in the PyTorch model; its cosine is rounded once.
void Model::fill_angles() {
    const size_t half = inv_freq_.size();
    for (size_t n = 0; n < tokens_.size(); ++n)
        for (size_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(tokens_[n].position) * inv_freq_[i];
            cos_.data()[n * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * shape_.rope_scale;
            sin_.data()[n * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * shape_.rope_scale;
        }
}

void Model::normalise(const std::vector<float>& weight) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), hidden = shape_.hidden_size;
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            kernels_.rms_norm(x_.data() + t * hidden, weight.data(), shape_.rms_norm_eps, hidden,
                              normed_.data() + t * hidden);
    });
}

// Several matrices times the same tokens in one loop over all their panels.
void Model::project(const std::vector<Projection>& outs, const float* x, int64_t x_stride, int64_t tokens, bool add) {
    int64_t total = 0;
    for (const Projection& out : outs) total += out.matrix->panels.count();
    pool_.each(total, pool_.grain(total), [&](int64_t begin, int64_t end) {
        int64_t before = 0;
        for (const Projection& out : outs) {
            const int64_t count = out.matrix->panels.count();
            const int64_t first = begin > before ? begin - before : 0;
            const int64_t last = end - before < count ? end - before : count;
            if (first < last)
                kernels_.matmul(out.matrix->panels, first, last, x, x_stride, tokens, out.out, out.stride, add);
            before += count;
        }
    });
}

void Model::store_keys_values(int32_t layer) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), width = shape_.head_dim, half = width / 2;
    const int64_t wide = padded(width), key_floats = kPage * width, value_floats = kPage * wide;
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    float* const keys = keys_.data() + layer_offset(layer, key_floats);
    float* const values = values_.data() + layer_offset(layer, value_floats);
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const Token& token = tokens_[static_cast<size_t>(t)];
            const float* cos = cos_.data() + t * half;
            const float* sin = sin_.data() + t * half;
            for (int64_t h = 0; h < shape_.heads; ++h) {
                float* q = q_.data() + (t * shape_.heads + h) * width;
                kernels_.rotate(q, cos, sin, half);
                for (int64_t e = 0; e < width; ++e) q[e] *= scale;
            }
            const int64_t page = token.chunk->pages[token.position / kPage], slot = token.position % kPage;
            for (int64_t h = 0; h < shape_.kv_heads; ++h) {
                float* k = k_.data() + (t * shape_.kv_heads + h) * width;
                const float* v = v_.data() + (t * shape_.kv_heads + h) * width;
                kernels_.rotate(k, cos, sin, half);
                float* key_page = keys + (page * shape_.kv_heads + h) * key_floats;
                for (int64_t e = 0; e < width; ++e) key_page[e * kPage + slot] = k[e];
                std::memcpy(values + (page * shape_.kv_heads + h) * value_floats + slot * wide, v,
                            static_cast<size_t>(width) * sizeof(float));
            }
        }
    });
}

void Model::attend(int32_t layer) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), width = shape_.head_dim, heads = shape_.heads;
    const int64_t group = heads / shape_.kv_heads, key_floats = kPage * width, value_floats = kPage * padded(width);
    const float* const keys = keys_.data() + layer_offset(layer, key_floats);
    const float* const values = values_.data() + layer_offset(layer, value_floats);
    pool_.each(n * heads, pool_.grain(n * heads), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const Token& token = tokens_[static_cast<size_t>(item / heads)];
            const int64_t kv = item % heads / group;
            const HeadCache cache{keys + kv * key_floats, values + kv * value_floats, token.chunk->pages,
                                  shape_.kv_heads * key_floats, shape_.kv_heads * value_floats};
            kernels_.attend(q_.data() + item * width, cache, token.position, width, mixed_.data() + item * width);
        }
    });
}

void Model::run_layer(Layer& layer, int32_t index) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), hidden = shape_.hidden_size;
    const int64_t inner = shape_.intermediate_size;
    const int64_t q = int64_t{shape_.heads} * shape_.head_dim, kv = int64_t{shape_.kv_heads} * shape_.head_dim;
    normalise(layer.attention_norm);
    project({{&layer.q, q_.data(), q}, {&layer.k, k_.data(), kv}, {&layer.v, v_.data(), kv}}, normed_.data(), hidden, n,
            false);
    store_keys_values(index);
    attend(index);
    project({{&layer.o, x_.data(), hidden}}, mixed_.data(), q, n, true);
    normalise(layer.mlp_norm);
    project({{&layer.gate, gate_.data(), inner}, {&layer.up, up_.data(), inner}}, normed_.data(), hidden, n, false);
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            kernels_.silu_mul(gate_.data() + t * inner, up_.data() + t * inner, inner);
    });
    project({{&layer.down, x_.data(), hidden}}, gate_.data(), inner, n, true);
}

// The final norm and the head, for the tokens that want logits; they move to the front of x first.
void Model::heads(const puna_chunk* chunks, int32_t count, float* logits) {
    const int64_t hidden = shape_.hidden_size;
    int64_t rows = 0, at = 0;
    for (int32_t c = 0; c < count; ++c) {
        for (int32_t t = chunks[c].count - chunks[c].logits; t < chunks[c].count; ++t, ++rows)
            std::memmove(x_.data() + rows * hidden, x_.data() + (at + t) * hidden,
                         static_cast<size_t>(hidden) * sizeof(float));
        at += chunks[c].count;
    }
    if (rows == 0) return;
    tokens_.resize(static_cast<size_t>(rows));
    normalise(norm_);
    const Matrix& head = head_.panels.data ? head_ : embedding_;
    project({{&head, logits, shape_.vocab_size}}, normed_.data(), hidden, rows, false);
}

void Model::forward(const puna_chunk* chunks, int32_t count, float* logits) {
    collect(chunks, count);
    embed();
    fill_angles();
    for (int32_t layer = 0; layer < shape_.layers; ++layer) run_layer(layers_[static_cast<size_t>(layer)], layer);
    heads(chunks, count, logits);
}

}  // namespace puna
