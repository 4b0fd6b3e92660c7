// See model.h. Legend: N tokens of the batch, D hidden_size, I intermediate_size, H heads, K kv heads, E head_dim.
//
//   x_      [N][D]     residual stream        k_, v_      [N][K][E]    keys and values of the new tokens
//   normed_ [N][D]     input of q, k, v and   gate_, up_  [N][I]       gate_ also holds silu(gate) * up
//                      of gate, up, head      attention_  [N][H][E]    attention output, input of o
//   q_      [N][H][E]  queries                cos_, sin_  [N][E / 2]   rotation of each token
//   blocks_, bf16_     the current matrix input in the other forms of Activations
//
// A sum is never split across threads, so results do not depend on which thread computes a piece.

#include "model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "quantize.h"
#include "sampling.h"

namespace puna {

namespace {

constexpr int64_t kFewTokens = 4;  // largest batch whose key slots are prefetched: their cache lines fit into L1
// Approximate number of queries of a kv head in one tile of attention: a page is widened once for 32 queries (Zen 3).
// Other numbers were not recorded.
constexpr int32_t kTileQueries = 32;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A matrix product of a layer, and its bias. The table of these drives loading, checking, observing and measuring.
struct Op {
    int32_t kind, bias;  // PUNA_*
    const char* name;    // of the tensor in a Hugging Face checkpoint
    Matrix Layer::* matrix;
    Width rows, cols;
    Input input;
    int32_t phase;
};

constexpr Op kOps[] = {
    {.kind = PUNA_Q,
     .bias = PUNA_Q_BIAS,
     .name = "self_attn.q_proj",
     .matrix = &Layer::q,
     .rows = Width::kQuery,
     .cols = Width::kHidden,
     .input = Input::kAttentionNorm,
     .phase = PUNA_PHASE_QKV},
    {.kind = PUNA_K,
     .bias = PUNA_K_BIAS,
     .name = "self_attn.k_proj",
     .matrix = &Layer::k,
     .rows = Width::kKeyValue,
     .cols = Width::kHidden,
     .input = Input::kAttentionNorm,
     .phase = PUNA_PHASE_QKV},
    {.kind = PUNA_V,
     .bias = PUNA_V_BIAS,
     .name = "self_attn.v_proj",
     .matrix = &Layer::v,
     .rows = Width::kKeyValue,
     .cols = Width::kHidden,
     .input = Input::kAttentionNorm,
     .phase = PUNA_PHASE_QKV},
    {.kind = PUNA_O,
     .bias = PUNA_O_BIAS,
     .name = "self_attn.o_proj",
     .matrix = &Layer::o,
     .rows = Width::kHidden,
     .cols = Width::kQuery,
     .input = Input::kAttention,
     .phase = PUNA_PHASE_O},
    {.kind = PUNA_GATE,
     .bias = PUNA_GATE_BIAS,
     .name = "mlp.gate_proj",
     .matrix = &Layer::gate,
     .rows = Width::kInner,
     .cols = Width::kHidden,
     .input = Input::kMlpNorm,
     .phase = PUNA_PHASE_GATE_UP},
    {.kind = PUNA_UP,
     .bias = PUNA_UP_BIAS,
     .name = "mlp.up_proj",
     .matrix = &Layer::up,
     .rows = Width::kInner,
     .cols = Width::kHidden,
     .input = Input::kMlpNorm,
     .phase = PUNA_PHASE_GATE_UP},
    {.kind = PUNA_DOWN,
     .bias = PUNA_DOWN_BIAS,
     .name = "mlp.down_proj",
     .matrix = &Layer::down,
     .rows = Width::kHidden,
     .cols = Width::kInner,
     .input = Input::kActivation,
     .phase = PUNA_PHASE_DOWN},
};

struct Norm {
    int32_t kind;  // PUNA_*
    const char* name;
    std::vector<float> Layer::* weight;
};

constexpr Norm kNorms[] = {
    {.kind = PUNA_ATTENTION_NORM, .name = "input_layernorm", .weight = &Layer::attention_norm},
    {.kind = PUNA_MLP_NORM, .name = "post_attention_layernorm", .weight = &Layer::mlp_norm},
};

constexpr Input kInputs[] = {Input::kAttentionNorm, Input::kAttention, Input::kMlpNorm, Input::kActivation};

// The width of an input is the number of columns of the matrices that read it.
constexpr Width width_of(Input input) {
    for (const Op& op : kOps)
        if (op.input == input) return op.cols;
    return Width::kHidden;
}

}  // namespace

Model::Model(const puna_shape& shape, int threads, const Kernels& kernels)
    : shape_(shape),
      kernels_(kernels),
      cache_type_(static_cast<CacheType>(shape.cache)),
      pool_(threads),
      layers_(static_cast<size_t>(shape.layers)) {}

int64_t Model::width(Width width) const {
    switch (width) {
        case Width::kHidden:
            return shape_.hidden_size;
        case Width::kQuery:
            return int64_t{shape_.heads} * shape_.head_dim;
        case Width::kKeyValue:
            return int64_t{shape_.kv_heads} * shape_.head_dim;
        case Width::kInner:
            return shape_.intermediate_size;
    }
    return 0;
}

Model::Target Model::find(int32_t kind, int32_t layer) {
    const int64_t hidden = shape_.hidden_size, vocab = shape_.vocab_size;
    if (kind == PUNA_EMBEDDING) return {.matrix = &embedding_, .rows = vocab, .cols = hidden};
    if (kind == PUNA_HEAD) return {.matrix = &head_, .rows = vocab, .cols = hidden};
    if (kind == PUNA_NORM) return {.vector = &norm_, .cols = hidden};
    if (layer < 0 || layer >= shape_.layers) throw std::invalid_argument("the model has no layer of this number");
    Layer& at = layers_[static_cast<size_t>(layer)];
    for (const Norm& norm : kNorms)
        if (norm.kind == kind) return {.vector = &(at.*norm.weight), .cols = hidden};
    for (const Op& op : kOps) {
        Matrix& matrix = at.*op.matrix;
        if (op.kind == kind) return {.matrix = &matrix, .rows = width(op.rows), .cols = width(op.cols)};
        if (op.bias == kind) return {.vector = &matrix.bias, .biased = &matrix, .cols = width(op.rows)};
    }
    throw std::invalid_argument("the kind of tensor is unknown");
}

// Packs rows of the file into panels, quantising them first if requested.
void Model::pack(Matrix& matrix, const puna_tensor& tensor) {
    const FormatTraits* from = find_format(tensor.format);
    const FormatTraits* to = tensor.quantize < 0 ? from : find_format(tensor.quantize);
    if (!from || !to) throw std::invalid_argument("the format is not supported");
    if (tensor.cols % from->values || tensor.cols % to->values)
        throw std::invalid_argument("its row length is not a multiple of the block size");
    if (from != to && !can_quantize(*from, *to))
        throw std::invalid_argument("it cannot be quantised to the requested format");
    Panels panels = describe(*to, tensor.rows, tensor.cols);
    uint8_t* const data = weights_.take(static_cast<size_t>(panels.bytes()));
    const int64_t row_bytes = tensor.cols / to->values * to->bytes;
    Buffer<uint8_t> rounded(from == to ? 0 : static_cast<size_t>(tensor.rows * row_bytes), false);
    const int64_t file_bytes = tensor.cols / from->values * from->bytes;
    std::atomic<const char*> fault{nullptr};
    std::vector<Quantizer> quantizers;  // one per thread
    for (int i = 0; from != to && i < pool_.threads(); ++i)
        quantizers.emplace_back(kernels_, *from, *to, tensor.cols, nullptr);
    pool_.each(panels.count(), pool_.grain(panels.count()), [&](int64_t begin, int64_t end, int thread) noexcept {
        for (int64_t panel = begin; panel < end; ++panel) {
            for (int64_t row = panel * kPanel; from != to && row < std::min((panel + 1) * kPanel, tensor.rows); ++row) {
                const int64_t source = tensor.order ? tensor.order[row] : row;
                const char* const why = quantizers[static_cast<size_t>(thread)].row(tensor.data + source * file_bytes,
                                                                                    rounded.data() + row * row_bytes);
                if (why) fault = why;
            }
            pack_panel(panels, panel, from == to ? tensor.data : rounded.data(), from == to ? tensor.order : nullptr,
                       data);
        }
    });
    if (fault) throw std::invalid_argument(std::string("it cannot be quantised: ") + fault.load());
    panels.data = data;
    panels.bias = matrix.bias.empty() ? nullptr : matrix.bias.data();
    matrix.panels = panels;
}

void Model::load(int32_t kind, int32_t layer, const puna_tensor& tensor) {
    const Target to = find(kind, layer);
    if (tensor.rows != to.rows || tensor.cols != to.cols)
        throw std::invalid_argument("its shape differs from the configuration");
    if (to.matrix) return pack(*to.matrix, tensor);
    if (tensor.format != kF32) throw std::invalid_argument("a vector must be float32");
    const float* from = reinterpret_cast<const float*>(tensor.data);
    to.vector->assign(from, from + tensor.cols);
    if (to.biased) to.biased->panels.bias = to.vector->data();
}

void Model::read(int32_t kind, int32_t layer, float* out) const {
    const Matrix* const matrix = const_cast<Model*>(this)->find(kind, layer).matrix;
    if (!matrix) throw std::invalid_argument("only matrices can be read");
    if (!matrix->panels.data) throw std::invalid_argument("the tensor is not loaded");
    for (int64_t row = 0; row < matrix->panels.rows; ++row)
        read_row(matrix->panels, row, out + row * matrix->panels.cols);
}

void Model::check() const {
    const auto need = [](bool loaded, const std::string& name) {
        if (!loaded) throw std::invalid_argument("the model lacks " + name);
    };
    need(embedding_.panels.data, "its embedding");
    need(!norm_.empty(), "its final norm");
    for (size_t i = 0; i < layers_.size(); ++i) {
        const std::string layer = " of layer " + std::to_string(i);
        for (const Norm& norm : kNorms) need(!(layers_[i].*norm.weight).empty(), norm.name + layer);
        for (const Op& op : kOps) need((layers_[i].*op.matrix).panels.data, op.name + layer);
    }
}

// Without a head matrix, the embedding counts as the head. With one, the embedding is not counted, because a token
// reads only one of its rows.
void Model::weight_bytes(int64_t* bytes) const {
    std::fill(bytes, bytes + PUNA_PHASES, 0);
    bytes[PUNA_PHASE_HEAD] = head().panels.bytes();
    for (const Layer& layer : layers_)
        for (const Op& op : kOps) bytes[op.phase] += (layer.*op.matrix).panels.bytes();
}

bool Model::integer_weights() const {
    return !layers_.empty() && layers_[0].down.panels.data && layers_[0].down.panels.integer();
}

void Model::limit_pages(int32_t pages) {
    if (pages < reserved_) throw std::invalid_argument("the cache cannot shrink");
    pages_ = pages;
}

// Reserves memory for the cache's first `pages` pages. Doubles the cache where the system allows it, so that a growing
// sequence seldom moves it.
//
// Cache layout: [page][layer][kv head]. All layers of a page are contiguous, so that short sequences waste little of a
// huge page.
void Model::reserve_pages(int32_t pages) {
    if (pages <= reserved_) return;
    const int64_t heads = int64_t{shape_.layers} * shape_.kv_heads;
    const auto grow = [&](int64_t count) {
        keys_.grow(static_cast<size_t>(count * heads * key_page_bytes(cache_type_, shape_.head_dim)));
        values_.grow(static_cast<size_t>(count * heads * value_page_bytes(cache_type_, shape_.head_dim)));
        reserved_ = static_cast<int32_t>(count);
    };
    const int64_t doubled = std::min<int64_t>(pages_, std::max<int64_t>(pages, 2 * int64_t{reserved_}));
    try {
        grow(doubled);
    } catch (const OutOfMemory&) {
        if (doubled == pages) throw;
        grow(pages);
    }
}

// Checks page numbers, and returns 1 + the highest.
int32_t Model::check_pages(const int32_t* pages, int32_t count) const {
    int32_t end = 0;
    if (count < 0) throw std::invalid_argument("the number of pages is negative");
    for (int32_t p = 0; p < count; ++p) {
        if (pages[p] < 0 || pages[p] >= pages_) throw std::invalid_argument("a page number is out of range");
        end = std::max(end, pages[p] + 1);
    }
    return end;
}

// A page in `out` or `data`: the keys of all layers, then the values of all layers.
void Model::read_pages(const int32_t* pages, int32_t count, uint8_t* out) const {
    if (check_pages(pages, count) > reserved_) throw std::invalid_argument("a page has not been written yet");
    const int64_t heads = int64_t{shape_.layers} * shape_.kv_heads;
    const int64_t key_bytes = heads * key_page_bytes(cache_type_, shape_.head_dim);
    const int64_t value_bytes = heads * value_page_bytes(cache_type_, shape_.head_dim);
    for (int32_t p = 0; p < count; ++p) {
        out = std::copy_n(keys_.data() + pages[p] * key_bytes, key_bytes, out);
        out = std::copy_n(values_.data() + pages[p] * value_bytes, value_bytes, out);
    }
}

void Model::write_pages(const int32_t* pages, int32_t count, const uint8_t* data) {
    reserve_pages(check_pages(pages, count));
    const int64_t heads = int64_t{shape_.layers} * shape_.kv_heads;
    const int64_t key_bytes = heads * key_page_bytes(cache_type_, shape_.head_dim);
    const int64_t value_bytes = heads * value_page_bytes(cache_type_, shape_.head_dim);
    for (int32_t p = 0; p < count; ++p, data += key_bytes + value_bytes) {
        std::copy_n(data, key_bytes, keys_.data() + pages[p] * key_bytes);
        std::copy_n(data + key_bytes, value_bytes, values_.data() + pages[p] * value_bytes);
    }
}

void Model::fill_pages(const int32_t* pages, int32_t count, int32_t tokens, const float* keys, const float* values) {
    if (tokens < 0 || tokens > int64_t{count} * kPage)
        throw std::invalid_argument("the tokens do not fit in the pages");
    reserve_pages(check_pages(pages, count));
    const int64_t width = shape_.head_dim, heads = shape_.kv_heads;
    const int64_t key_bytes = key_page_bytes(cache_type_, width), value_bytes = value_page_bytes(cache_type_, width);
    for (int64_t layer = 0; layer < shape_.layers; ++layer)
        for (int64_t head = 0; head < heads; ++head)
            for (int64_t t = 0; t < tokens; ++t, keys += width, values += width) {
                const int64_t at = (int64_t{pages[t / kPage]} * shape_.layers + layer) * heads + head;
                kernels_.store_key(keys, width, cache_type_, keys_.data() + at * key_bytes, t % kPage);
                kernels_.store_value(values, width, cache_type_, values_.data() + at * value_bytes, t % kPage);
            }
}

// Adds the time since the previous call of this function to the time of `phase`.
void Model::add_time(int32_t phase) {
    const double here = now();
    seconds_[static_cast<size_t>(phase)] += here - mark_;
    mark_ = here;
}

void Model::take_profile(double* seconds) {
    std::copy(seconds_.begin(), seconds_.end(), seconds);
    seconds_.fill(0.0);
}

// Checks the chunks and lists their tokens and attention tiles. All checks precede the first write to the cache.
void Model::prepare(const puna_chunk* chunks, int32_t count) {
    tokens_.clear();
    int32_t pages = 0;  // 1 + the highest page number
    if (count < 1) throw std::invalid_argument("a batch must have at least one chunk");
    for (int32_t c = 0; c < count; ++c) {
        const puna_chunk& chunk = chunks[c];
        const int64_t end = int64_t{chunk.start} + chunk.count;
        if (chunk.start < 0 || chunk.count < 1 || chunk.rows < 0 || chunk.rows > chunk.count || end > INT32_MAX ||
            chunk.page_count < (end + kPage - 1) / kPage)
            throw std::invalid_argument("the sizes of a chunk are inconsistent");
        if (!chunk.tokens || !chunk.pages || !chunk.inv_freq || !std::isfinite(chunk.rope_scale))
            throw std::invalid_argument("a chunk has no tokens, pages or frequencies");
        if (chunk.output != PUNA_OUTPUT_LOGITS && chunk.output != PUNA_OUTPUT_HIDDEN)
            throw std::invalid_argument("the output of a chunk is unknown");
        if (chunk.adapter != 0 && !adapters_.count(chunk.adapter))
            throw std::invalid_argument("there is no adapter of this number");
        pages = std::max(pages, check_pages(chunk.pages, chunk.page_count));
        for (int32_t t = 0; t < chunk.count; ++t) {
            if (chunk.tokens[t] < 0 || chunk.tokens[t] >= shape_.vocab_size)
                throw std::invalid_argument("a token id is out of range");
            const float* const embeddings = chunk.embeddings;
            tokens_.push_back({&chunk, c, chunk.tokens[t], chunk.start + t,
                               embeddings ? embeddings + int64_t{t} * shape_.hidden_size : nullptr});
        }
    }
    make_segments();
    make_tiles(chunks, count);
    reserve_pages(pages);
    reserve_buffers();
}

// Splits each chunk into tiles of about kTileQueries queries per kv head. The sums of a query do not depend on its
// tile, so a tile may begin at any token.
void Model::make_tiles(const puna_chunk* chunks, int32_t count) {
    tiles_.clear();
    const int32_t group = shape_.heads / shape_.kv_heads;
    int32_t most = std::max(1, kTileQueries / group);
    while (most * group % 8 && (most + 1) * group <= kMaxQueries) ++most;  // kernels work on eight queries at a time
    int64_t before = 0, offset = 0;
    int32_t at = 0;
    for (int32_t c = 0; c < count; ++c)
        for (int32_t t = 0; t < chunks[c].count; t += most) {
            const int32_t size = std::min(most, chunks[c].count - t), last = chunks[c].start + t + size - 1;
            const int32_t splits = last / kSplit + 1;
            tiles_.push_back({&chunks[c], c, at + t, size, splits, before, offset});
            before += int64_t{splits} * shape_.kv_heads;
            offset += int64_t{splits} * size * shape_.heads;
            if (t + most >= chunks[c].count) at += chunks[c].count;
        }
}

void Model::reserve_buffers() {
    const size_t n = tokens_.size(), hidden = static_cast<size_t>(shape_.hidden_size);
    const size_t q = static_cast<size_t>(width(Width::kQuery)), kv = static_cast<size_t>(width(Width::kKeyValue));
    const size_t inner = static_cast<size_t>(shape_.intermediate_size), widest = std::max({hidden, q, inner});
    for (Buffer<float>* buffer : {&x_, &normed_}) buffer->grow_discarding(n * hidden);
    for (Buffer<float>* buffer : {&q_, &attention_}) buffer->grow_discarding(n * q);
    for (Buffer<float>* buffer : {&k_, &v_}) buffer->grow_discarding(n * kv);
    for (Buffer<float>* buffer : {&gate_, &up_}) buffer->grow_discarding(n * inner);
    for (Buffer<float>* buffer : {&cos_, &sin_}) buffer->grow_discarding(n * static_cast<size_t>(shape_.head_dim / 2));
    blocks_.grow_discarding(n * static_cast<size_t>(block_stride(static_cast<int64_t>(widest))));
    if (kernels_.uses_bf16) bf16_.grow_discarding(n * static_cast<size_t>(bf16_stride(static_cast<int64_t>(widest))));
    const Tile& last = tiles_.back();
    const int64_t queries = last.offset + int64_t{last.splits} * last.count * shape_.heads;  // summed over splits
    sums_.grow_discarding(static_cast<size_t>(queries * padded_width(shape_.head_dim)));
    totals_.grow_discarding(static_cast<size_t>(2 * queries));
    int64_t most = 0;  // queries of a kv head in the largest tile
    for (const Tile& tile : tiles_)
        most = std::max<int64_t>(most, int64_t{tile.count} * shape_.heads / shape_.kv_heads);
    // Whole cache lines, so that threads do not share any.
    scratch_stride_ = (attend_floats(most, shape_.head_dim) + most * shape_.head_dim + 15) / 16 * 16;
    last_stride_ = (most + 15) / 16 * 16;
    scratch_.grow_discarding(static_cast<size_t>(pool_.threads() * scratch_stride_));
    last_.grow_discarding(static_cast<size_t>(pool_.threads() * last_stride_));
}

void Model::embed() {
    const int64_t n = static_cast<int64_t>(tokens_.size()), hidden = shape_.hidden_size;
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end, int) noexcept {
        for (int64_t t = begin; t < end; ++t) {
            const Token& token = tokens_[static_cast<size_t>(t)];
            if (token.embedding)
                std::copy_n(token.embedding, hidden, x_.data() + t * hidden);
            else
                read_row(embedding_.panels, token.id, x_.data() + t * hidden);
        }
    });
}

// As in the PyTorch model, the angle is a float32 product of position and frequency, and its cosine and sine are
// rounded to float32 once.
void Model::fill_angles(const puna_chunk* chunks, int32_t count) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), half = shape_.head_dim / 2;
    const auto turn = [](const puna_chunk& chunk, int64_t position, int64_t i, float* cos, float* sin) {
        const double angle = static_cast<double>(static_cast<float>(position) * chunk.inv_freq[i]);
        *cos = static_cast<float>(std::cos(angle)) * chunk.rope_scale;
        *sin = static_cast<float>(std::sin(angle)) * chunk.rope_scale;
    };
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end, int) noexcept {
        for (int64_t t = begin; t < end; ++t) {
            const Token& token = tokens_[static_cast<size_t>(t)];
            for (int64_t i = 0; i < half; ++i)
                turn(*token.chunk, token.position, i, cos_.data() + t * half + i, sin_.data() + t * half + i);
        }
    });
    if (!shape_.unrotated_keys) return;
    // For each chunk, extend the table of its frequencies to the pages that the chunk reads.
    for (Angles& angles : angles_) angles.used = false;
    chunk_angles_.clear();
    for (int32_t c = 0; c < count; ++c) {
        const size_t found = find_angles(chunks[c]);
        Angles& angles = angles_[found];
        const auto first = static_cast<int64_t>(angles.cos.size()) / (half * kPage);
        const int64_t last = std::max(first, (int64_t{chunks[c].start} + chunks[c].count + kPage - 1) / kPage);
        for (std::vector<float>* values : {&angles.cos, &angles.sin})
            values->resize(static_cast<size_t>(last * half * kPage));
        pool_.each(last - first, 1, [&](int64_t begin, int64_t end, int) noexcept {
            for (int64_t at = (first + begin) * half * kPage; at < (first + end) * half * kPage; ++at)
                turn(chunks[c], at / (half * kPage) * kPage + at % kPage, at / kPage % half, angles.cos.data() + at,
                     angles.sin.data() + at);
        });
        chunk_angles_.push_back(found);
    }
}

// Returns the index in angles_ of the table of a chunk's frequencies. If there is no such table, clears one that no
// chunk of this pass uses, or adds a new one.
size_t Model::find_angles(const puna_chunk& chunk) {
    const std::vector<float> inv_freq(chunk.inv_freq, chunk.inv_freq + shape_.head_dim / 2);
    size_t at = 0;
    while (at < angles_.size() && (angles_[at].inv_freq != inv_freq || angles_[at].scale != chunk.rope_scale)) ++at;
    if (at == angles_.size()) {
        at = 0;
        while (at < angles_.size() && angles_[at].used) ++at;
        // Keep at least two tables: longrope alternates between two sets of frequencies.
        if (at == angles_.size() || angles_.size() < 2) {
            at = angles_.size();
            angles_.emplace_back();
        }
        angles_[at].inv_freq = inv_freq;
        angles_[at].scale = chunk.rope_scale;
        angles_[at].cos.clear();
        angles_[at].sin.clear();
    }
    angles_[at].used = true;
    return at;
}

// Sets which forms of their input the matrices read in addition to float32: quantised blocks, of which `per_scale`
// share a scale (0: none are read), and `bf16`.
void Model::input_forms(std::initializer_list<const Matrix*> readers, int& per_scale, bool& bf16) const {
    per_scale = 0;
    bf16 = false;
    for (const Matrix* matrix : readers) {
        if (matrix->panels.integer()) per_scale = std::max(per_scale, scale_blocks(matrix->panels.traits->scales));
        bf16 |= kernels_.uses_bf16 && matrix->panels.traits->planes == Planes::kBf16;
    }
}

// Converts one token's row to the other forms that the next matrices read.
void Model::convert_row(const float* x, int64_t cols, int64_t token, int per_scale, bool bf16) {
    const int64_t blocks = block_stride(cols);
    if (per_scale) kernels_.quantize(x, cols, per_scale, blocks_.data() + token * blocks);
    if (bf16) kernels_.to_bf16(x, cols, bf16_.data() + token * bf16_stride(cols));
}

Activations Model::activations(const float* x, int64_t cols) { return {x, bf16_.data(), blocks_.data(), cols}; }

// normed_ = RMSNorm(x_) * weight, in the forms that `readers` read.
void Model::normalise(const std::vector<float>& weight, std::initializer_list<const Matrix*> readers) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), hidden = shape_.hidden_size;
    int per_scale;
    bool bf16;
    input_forms(readers, per_scale, bf16);
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end, int) noexcept {
        for (int64_t t = begin; t < end; ++t) {
            float* const to = normed_.data() + t * hidden;
            kernels_.rms_norm(x_.data() + t * hidden, weight.data(), shape_.rms_norm_eps, hidden, to);
            convert_row(to, hidden, t, per_scale, bf16);
        }
    });
    add_time(PUNA_PHASE_NORM);
}

// Multiplies several matrices by the same tokens in one parallel loop over the work units of all of them, for one block
// of tokens after the other, and applies the adapters' changes to matrices of a layer (-1: to the head). With `add`,
// adds the results to `out`.
void Model::project(std::initializer_list<Projection> outs, int32_t layer, const Activations& x, int64_t tokens,
                    bool add) {
    int64_t total = 0;
    for (const Projection& out : outs) total += work_units(out.matrix->panels, tokens);
    plan_products(outs, layer);
    const bool adapted = !products_.empty();
    // The sum w x + b a x is complete before it is added, since an adapter may scale it.
    const bool separate = add && adapted;
    if (separate) added_.grow_discarding(static_cast<size_t>(tokens * outs.begin()->stride));
    const Division& by = kernels_.division;
    const int64_t size = adapted ? tokens : token_block(tokens, by.tokens), blocks = (tokens + size - 1) / size;
    // One token: pieces of pairs of half strips.
    constexpr int64_t kPieces = 16;  // its neighbours were not recorded
    const int64_t pieces = (tokens > 1 ? by.pieces : kPieces) * pool_.threads();
    const int64_t unit = tokens > 1 && (by.panels < 2 || total >= 3 * kPieces * pool_.threads()) ? by.panels : 2;
    const int64_t grain = ((blocks * total + pieces - 1) / pieces + unit - 1) / unit * unit;
    pool_.each(blocks * total, grain, [&](int64_t begin, int64_t end, int) noexcept {
        if (adapted) multiply_inner(x);
        for (int64_t block = begin / total; block * total < end; ++block) {
            const int64_t token = block * size, count = std::min(size, tokens - token);
            const Activations from = rows_from(x, token);
            int64_t before = block * total;
            size_t index = 0;
            for (const Projection& out : outs) {
                const int64_t units = work_units(out.matrix->panels, tokens);
                const int64_t first = std::max<int64_t>(begin - before, 0), last = std::min(end - before, units);
                const Projection to{out.matrix, separate ? added_.data() : out.out, out.stride, out.kind};
                if (first < last) {
                    if (adapted) prefetch_products(out.matrix->panels, index, first, last, tokens);
                    kernels_.matmul({.w = out.matrix->panels,
                                     .x = from,
                                     .first = first,
                                     .last = last,
                                     .tokens = count,
                                     .out = to.out + token * to.stride,
                                     .out_stride = to.stride,
                                     .add = add && !separate});
                    if (adapted) add_products(to, index, first, last, tokens);
                    if (separate) add_rows(to, out.out, first, last, tokens);
                }
                before += units;
                ++index;
            }
        }
    });
}

// Rotates queries and keys, scales the queries by 1 / sqrt(E), and writes keys and values into the cache.
void Model::store_keys_values(int32_t layer) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), width = shape_.head_dim, half = width / 2;
    const int64_t key_bytes = key_page_bytes(cache_type_, width), value_bytes = value_page_bytes(cache_type_, width);
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end, int) noexcept {
        for (int64_t t = begin; t < end; ++t) {
            const Token& token = tokens_[static_cast<size_t>(t)];
            const float* cos = cos_.data() + t * half;
            const float* sin = sin_.data() + t * half;
            for (int64_t h = 0; h < shape_.heads; ++h) {
                float* q = q_.data() + (t * shape_.heads + h) * width;
                kernels_.rotate(q, cos, sin, half);
                for (int64_t e = 0; e < width; ++e) q[e] *= scale;
            }
            const int64_t page = token.chunk->pages[token.position / kPage];
            const int64_t slot = token.position % kPage;
            for (int64_t h = 0; h < shape_.kv_heads; ++h) {
                float* k = k_.data() + (t * shape_.kv_heads + h) * width;
                if (!shape_.unrotated_keys) kernels_.rotate(k, cos, sin, half);
                const int64_t at = (page * shape_.layers + layer) * shape_.kv_heads + h;
                kernels_.store_key(k, width, cache_type_, keys_.data() + at * key_bytes, slot);
                kernels_.store_value(v_.data() + (t * shape_.kv_heads + h) * width, width, cache_type_,
                                     values_.data() + at * value_bytes, slot);
            }
        }
    });
    add_time(PUNA_PHASE_ROPE);
}

// Returns the partial sums of a tile's queries over one split. Order in memory: [tile][kv head][split][query].
Model::Partial Model::partial(const Tile& tile, int64_t head, int64_t split) {
    const int64_t group = shape_.heads / shape_.kv_heads, queries = tile.count * group;
    const int64_t before = tile.offset + (head * tile.splits + split) * queries;
    return {totals_.data() + 2 * before, totals_.data() + 2 * before + queries,
            sums_.data() + before * padded_width(shape_.head_dim)};
}

// Computes the attention of a tile's queries of one kv head over one split. Queries are gathered as [token][head of the
// group][E].
void Model::attend_split(int32_t layer, const Tile& tile, int64_t head, int64_t split, int thread) {
    const int64_t width = shape_.head_dim, group = shape_.heads / shape_.kv_heads, count = tile.count * group;
    const int64_t key_bytes = key_page_bytes(cache_type_, width), value_bytes = value_page_bytes(cache_type_, width);
    const int64_t at = int64_t{layer} * shape_.kv_heads + head, stride = int64_t{shape_.layers} * shape_.kv_heads;
    float* const scratch = scratch_.data() + thread * scratch_stride_;
    float* const queries = scratch + attend_floats(count, width);
    int32_t* const last = last_.data() + thread * last_stride_;
    for (int64_t t = 0; t < tile.count; ++t)
        for (int64_t g = 0; g < group; ++g) {
            const int64_t token = tile.first + t;
            std::memcpy(queries + (t * group + g) * width,
                        q_.data() + (token * shape_.heads + head * group + g) * width,
                        static_cast<size_t>(width) * sizeof(float));
            last[t * group + g] = tokens_[static_cast<size_t>(token)].position;
        }
    const bool unrotated = shape_.unrotated_keys;
    const Angles* angles = unrotated ? &angles_[chunk_angles_[static_cast<size_t>(tile.chunk_index)]] : nullptr;
    const HeadCache cache{keys_.data() + at * key_bytes,
                          values_.data() + at * value_bytes,
                          tile.chunk->pages,
                          stride * key_bytes,
                          stride * value_bytes,
                          cache_type_,
                          width,
                          unrotated ? angles->cos.data() : nullptr,
                          unrotated ? angles->sin.data() : nullptr};
    const Partial to = partial(tile, head, split);
    const int64_t wide = padded_width(width);
    for (int64_t first = 0; first < count; first += kMaxQueries)
        kernels_.attend({queries + first * width, last + first, std::min<int64_t>(kMaxQueries, count - first),
                         to.max_score + first, to.exp_sum + first, to.weighted_values + first * wide},
                        cache, split, scratch);
}

// Computes the attention of all tiles. A work item is one split of one kv head of one tile.
void Model::attend(int32_t layer) {
    const int64_t heads = shape_.kv_heads;
    const int64_t items = tiles_.empty() ? 0 : tiles_.back().before + int64_t{tiles_.back().splits} * heads;
    // Items of single tokens are short, so four are taken at once; an item of a prompt's tile is long.
    const int64_t several = tiles_.size() == tokens_.size() ? 4 : kernels_.division.tiles;
    pool_.each(items, items > 64 * pool_.threads() ? several : 1, [&](int64_t begin, int64_t end, int thread) noexcept {
        for (int64_t item = begin; item < end; ++item) {
            // Items are processed in descending order: the last tiles of a prompt attend to the most keys, and starting
            // with them shortens the tail of the loop.
            const int64_t reversed = items - 1 - item;
            const auto after = std::upper_bound(tiles_.begin(), tiles_.end(), reversed,
                                                [](int64_t value, const Tile& tile) { return value < tile.before; });
            const Tile& tile = *(after - 1);
            const int64_t inside = reversed - tile.before;
            attend_split(layer, tile, inside / tile.splits, inside % tile.splits, thread);
        }
    });
    add_time(PUNA_PHASE_ATTENTION);
}

// Merges the splits of a tile's queries of one kv head in ascending order, and divides by the totals.
void Model::merge_head(const Tile& tile, int64_t head) {
    const int64_t width = shape_.head_dim, wide = padded_width(width), group = shape_.heads / shape_.kv_heads;
    const Partial first = partial(tile, head, 0);
    for (int64_t t = 0; t < tile.count; ++t)
        for (int64_t g = 0; g < group; ++g) {
            const int64_t i = t * group + g, token = tile.first + t;
            float* const values = first.weighted_values + i * wide;
            // A query uses only the splits up to its own position; the tile may have more.
            const int64_t splits = tokens_[static_cast<size_t>(token)].position / kSplit + 1;
            for (int64_t s = 1; s < splits; ++s) {
                const Partial later = partial(tile, head, s);
                kernels_.merge(first.max_score + i, first.exp_sum + i, values, later.max_score[i], later.exp_sum[i],
                               later.weighted_values + i * wide, wide);
            }
            float* const out = attention_.data() + (token * shape_.heads + head * group + g) * width;
            for (int64_t e = 0; e < width; ++e) out[e] = values[e] / first.exp_sum[i];
        }
}

// attention_ = attention output of all tokens, in the forms that `readers` read.
void Model::merge_splits(std::initializer_list<const Matrix*> readers) {
    const int64_t tiles = static_cast<int64_t>(tiles_.size()), cols = width(Width::kQuery);
    int per_scale;
    bool bf16;
    input_forms(readers, per_scale, bf16);
    pool_.each(tiles, pool_.grain(tiles), [&](int64_t begin, int64_t end, int) noexcept {
        for (int64_t i = begin; i < end; ++i) {
            const Tile& tile = tiles_[static_cast<size_t>(i)];
            for (int64_t head = 0; head < shape_.kv_heads; ++head) merge_head(tile, head);
            for (int64_t t = tile.first; t < tile.first + tile.count; ++t)
                convert_row(attention_.data() + t * cols, cols, t, per_scale, bf16);
        }
    });
    add_time(PUNA_PHASE_ATTENTION);
}

// gate_ = silu(gate_) * up_, in the forms that `readers` read.
void Model::activate(std::initializer_list<const Matrix*> readers) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), inner = shape_.intermediate_size;
    int per_scale;
    bool bf16;
    input_forms(readers, per_scale, bf16);
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end, int) noexcept {
        for (int64_t t = begin; t < end; ++t) {
            float* const gate = gate_.data() + t * inner;
            kernels_.silu_mul(gate, up_.data() + t * inner, inner);
            convert_row(gate, inner, t, per_scale, bf16);
        }
    });
    add_time(PUNA_PHASE_ACTIVATION);
}

// Returns the index of a matrix input in the array of puna_model_observe. The input of the head follows the last layer.
int64_t Model::input_offset(int64_t layer, Input input) const {
    int64_t before = 0, all = 0;
    for (const Input other : kInputs) {
        if (other < input) before += width(width_of(other));
        all += width(width_of(other));
    }
    return layer * all + before;
}

// Sums the squares of column c of a matrix input over the tokens, and adds the sum to squares_[offset + c].
void Model::observe(const float* x, int64_t cols, int64_t offset) {
    if (!squares_) return;
    const size_t tokens = tokens_.size();
    pool_.each(cols, pool_.grain(cols), [&](int64_t begin, int64_t end, int) noexcept {
        for (size_t t = 0; t < tokens; ++t)
            for (int64_t c = begin; c < end; ++c) {
                const double value = x[static_cast<int64_t>(t) * cols + c];
                squares_[offset + c] += value * value;
            }
    });
}

// Copies x_, the input of a layer or the output of the last one, to states_.
void Model::record(int32_t layer) {
    if (!states_) return;
    const int64_t n = static_cast<int64_t>(tokens_.size()), hidden = shape_.hidden_size;
    pool_.each(n, pool_.grain(n), [&](int64_t begin, int64_t end, int) noexcept {
        std::copy_n(x_.data() + begin * hidden, (end - begin) * hidden, states_ + (layer * n + begin) * hidden);
    });
}

// Prefetches the cache lines that store_key will write.
void Model::prefetch_keys(int32_t layer) const {
    const int64_t key_bytes = key_page_bytes(cache_type_, shape_.head_dim);
    for (const Token& token : tokens_) {
        const int64_t page = int64_t{token.chunk->pages[token.position / kPage]} * shape_.layers + layer;
        for (int64_t head = 0; head < shape_.kv_heads; ++head) {
            const uint8_t* const keys = keys_.data() + (page * shape_.kv_heads + head) * key_bytes;
            for_each_key_line(cache_type_, shape_.head_dim, token.position % kPage,
                              [&](int64_t offset) { __builtin_prefetch(keys + offset, 1); });
        }
    }
}

// Runs one transformer layer: x_ += o(attention(norm(x_))); x_ += down(silu(gate(norm(x_))) * up(norm(x_))).
void Model::run_layer(Layer& layer, int32_t index) {
    const int64_t n = static_cast<int64_t>(tokens_.size()), hidden = shape_.hidden_size;
    const int64_t inner = shape_.intermediate_size, q = width(Width::kQuery), kv = width(Width::kKeyValue);
    if (n <= kFewTokens) prefetch_keys(index);
    normalise(layer.attention_norm, {&layer.q, &layer.k, &layer.v});
    observe(normed_.data(), hidden, input_offset(index, Input::kAttentionNorm));
    project({{&layer.q, q_.data(), q, PUNA_Q}, {&layer.k, k_.data(), kv, PUNA_K}, {&layer.v, v_.data(), kv, PUNA_V}},
            index, activations(normed_.data(), hidden), n, false);
    add_time(PUNA_PHASE_QKV);
    store_keys_values(index);
    attend(index);
    merge_splits({&layer.o});
    observe(attention_.data(), q, input_offset(index, Input::kAttention));
    project({{&layer.o, x_.data(), hidden, PUNA_O}}, index, activations(attention_.data(), q), n, true);
    add_time(PUNA_PHASE_O);
    normalise(layer.mlp_norm, {&layer.gate, &layer.up});
    observe(normed_.data(), hidden, input_offset(index, Input::kMlpNorm));
    project({{&layer.gate, gate_.data(), inner, PUNA_GATE}, {&layer.up, up_.data(), inner, PUNA_UP}}, index,
            activations(normed_.data(), hidden), n, false);
    add_time(PUNA_PHASE_GATE_UP);
    activate({&layer.down});
    observe(gate_.data(), inner, input_offset(index, Input::kActivation));
    project({{&layer.down, x_.data(), hidden, PUNA_DOWN}}, index, activations(gate_.data(), inner), n, true);
    add_time(PUNA_PHASE_DOWN);
}

// Applies the final norm to the tokens whose outputs are requested, and the head to those of them whose logits are.
void Model::run_head(const puna_chunk* chunks, int32_t count, float* logits, float* hidden) {
    const int64_t width = shape_.hidden_size;
    // Rows of logits are moved to the front of x_ and tokens_, in the order of the chunks. The rows of hidden states
    // are normalised and copied before.
    int64_t rows = 0, at = 0;
    for (int32_t c = 0; c < count; at += chunks[c++].count)
        for (int64_t t = at + chunks[c].count - chunks[c].rows; t < at + chunks[c].count; ++t) {
            if (chunks[c].output == PUNA_OUTPUT_HIDDEN) {
                kernels_.rms_norm(x_.data() + t * width, norm_.data(), shape_.rms_norm_eps, width, hidden);
                hidden += width;
            } else {
                tokens_[static_cast<size_t>(rows)] = tokens_[static_cast<size_t>(t)];
                std::memmove(x_.data() + rows++ * width, x_.data() + t * width,
                             static_cast<size_t>(width) * sizeof(float));
            }
        }
    if (rows == 0) return;
    tokens_.resize(static_cast<size_t>(rows));
    if (!segments_.empty()) make_segments();
    normalise(norm_, {&head()});
    observe(normed_.data(), width, input_offset(shape_.layers, Input::kAttentionNorm));
    project({{&head(), logits, shape_.vocab_size, PUNA_HEAD}}, -1, activations(normed_.data(), width), rows, false);
    add_time(PUNA_PHASE_HEAD);
}

void Model::forward(const puna_chunk* chunks, int32_t count, float* logits, float* hidden,
                    const Interrupts& interrupts) {
    mark_ = now();
    prepare(chunks, count);
    embed();
    add_time(PUNA_PHASE_EMBEDDING);
    fill_angles(chunks, count);
    add_time(PUNA_PHASE_ROPE);
    for (int32_t layer = 0; layer < shape_.layers; ++layer) {
        if (interrupts.any()) throw Stopped();
        record(layer);
        run_layer(layers_[static_cast<size_t>(layer)], layer);
    }
    record(shape_.layers);
    if (interrupts.any()) throw Stopped();
    run_head(chunks, count, logits, hidden);
}

void Model::sample(int64_t vocab, puna_sample_row* rows, int32_t count) {
    std::atomic<bool> failed{false};
    pool_.each(count, 1, [&](int64_t begin, int64_t end, int) noexcept {
        try {
            for (int64_t i = begin; i < end; ++i) puna::sample(kernels_, vocab, rows[i]);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    });
    if (failed) throw std::bad_alloc();
}

}  // namespace puna
