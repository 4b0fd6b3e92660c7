// Checks that the thread pool runs each item of a loop once. Then runs small models through the C ABI in many schedules
// (divisions of the prompts into chunks) and checks that all schedules give the same bits of logits and hidden states,
// also of requests with adapters. `schedules quick` runs fewer schedules. The program is meant for sanitizer builds
// (`make sanitize`), which detect errors of memory and threads; tests/native tests the values of logits.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernels.h"
#include "puna.h"
#include "threads.h"

namespace {

struct Case {
    puna_shape shape;
    int threads;
    int quantize;  // number of the ggml type to which matrices are quantised; -1: they stay float32
};

struct Model {
    puna_model* model;
    ~Model() { puna_model_free(model); }
};

void fail(const char* what) {
    std::fprintf(stderr, "schedules: %s: %s\n", what, puna_error());
    std::exit(1);
}

void load(puna_model* model, int kind, int layer, int64_t rows, int64_t cols, std::mt19937& random, int quantize) {
    std::normal_distribution<float> normal(0.0f, 0.2f);
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& value : values) value = normal(random);
    const bool matrix = rows > 1;
    const puna_tensor tensor{
        reinterpret_cast<const uint8_t*>(values.data()), nullptr, rows, cols, 0, matrix ? quantize : -1};
    if (puna_model_load(model, kind, layer, &tensor)) fail("load");
}

// Loads two adapters with random changes of all products. Their numbers are 1 and 2; only the second scales rows.
void load_adapters(puna_model* model, const puna_shape& s) {
    std::mt19937 random(6);
    std::normal_distribution<float> normal(0.0f, 0.1f);
    const int q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    const int hidden = s.hidden_size, inner = s.intermediate_size;
    const int sizes[][2] = {{q, hidden},     {kv, hidden},    {kv, hidden},   {hidden, q},
                            {inner, hidden}, {inner, hidden}, {hidden, inner}};
    for (int32_t number = 1; number <= 2; ++number) {
        std::vector<std::vector<float>> values;
        std::vector<puna_low_rank> changes;
        const auto next = [&](int count) {
            values.emplace_back(static_cast<size_t>(count));
            for (float& value : values.back()) value = normal(random);
            return values.back().data();
        };
        for (int layer = 0; layer < s.layers; ++layer)
            for (int kind = PUNA_Q; kind <= PUNA_DOWN; ++kind) {
                const int rows = sizes[kind - PUNA_Q][0], cols = sizes[kind - PUNA_Q][1];
                const int rank = number == 1 ? 16 : kind == PUNA_K ? 0 : 19;
                changes.push_back({next(rank * cols), next(rows * rank), kind == PUNA_O ? next(rows) : nullptr,
                                   number == 2 ? next(rows) : nullptr, kind, layer, rank});
            }
        int32_t loaded = 0;
        if (puna_adapter_load(model, changes.data(), static_cast<int32_t>(changes.size()), &loaded) || loaded != number)
            fail("adapter");
    }
}

puna_model* make(const Case& one, const char* kernels, int pages) {
    std::mt19937 random(5);
    const puna_shape& s = one.shape;
    puna_model* model = puna_model_new(&s, one.threads, kernels);
    if (!model) fail("new");
    const int64_t q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
    load(model, PUNA_EMBEDDING, -1, s.vocab_size, s.hidden_size, random, one.quantize);
    load(model, PUNA_NORM, -1, 1, s.hidden_size, random, one.quantize);
    for (int layer = 0; layer < s.layers; ++layer) {
        load(model, PUNA_ATTENTION_NORM, layer, 1, s.hidden_size, random, one.quantize);
        load(model, PUNA_MLP_NORM, layer, 1, s.hidden_size, random, one.quantize);
        load(model, PUNA_Q, layer, q, s.hidden_size, random, one.quantize);
        load(model, PUNA_Q_BIAS, layer, 1, q, random, one.quantize);
        load(model, PUNA_K, layer, kv, s.hidden_size, random, one.quantize);
        load(model, PUNA_V, layer, kv, s.hidden_size, random, one.quantize);
        load(model, PUNA_O, layer, s.hidden_size, q, random, one.quantize);
        load(model, PUNA_GATE, layer, s.intermediate_size, s.hidden_size, random, one.quantize);
        load(model, PUNA_UP, layer, s.intermediate_size, s.hidden_size, random, one.quantize);
        load(model, PUNA_DOWN, layer, s.hidden_size, s.intermediate_size, random, one.quantize);
    }
    if (puna_model_ready(model, pages)) fail("ready");
    load_adapters(model, s);
    return model;
}

// Checks that every item of a loop is run exactly once, for any number of items, and that each thread has its own
// number.
void check_pool() {
    for (const int threads : {1, 2, 3, 8}) {
        puna::Pool pool(threads);
        for (const int64_t grain : {1, 2, 4, 7})
            for (int64_t count = 0; count <= 70; ++count) {
                std::vector<int> done(static_cast<size_t>(count));
                std::vector<int64_t> items(static_cast<size_t>(threads));  // per thread; a data race if shared
                pool.each(count, grain, [&](int64_t begin, int64_t end, int thread) noexcept {
                    for (int64_t i = begin; i < end; ++i) ++done[static_cast<size_t>(i)];
                    items[static_cast<size_t>(thread)] += end - begin;
                });
                if (std::count(done.begin(), done.end(), 1) != count)
                    fail("an item of a loop was left out, or done twice");
                if (std::accumulate(items.begin(), items.end(), int64_t{0}) != count)
                    fail("two threads had the same number");
            }
    }
}

// Checks that a product of several tokens is never divided into blocks of which one has a single token.
void check_blocks() {
    for (const int64_t most : {64, 128})
        for (int64_t tokens = 2; tokens <= 2100; ++tokens) {
            const int64_t size = puna::token_block(tokens, most);
            if (size < 2 || size > most || tokens % size == 1) fail("a block of tokens has the wrong size");
        }
    // One token, and a number that every size from 4 to 64 leaves a single token of.
    for (const int64_t tokens : {1, 2882881})
        if (puna::token_block(tokens, 64) != tokens) fail("an indivisible number of tokens was divided");
}

constexpr int kPages = 8, kLength = 100, kRequests = 4;

// Runs `kRequests` prompts together, in random chunks of up to `largest` tokens. With `adapted`, requests 1 to 3 have
// the adapters 1, 2 and 1; request 3 begins with given embeddings and returns hidden states. Returns all outputs,
// request by request.
std::vector<float> run(puna_model* model, const Case& one, uint32_t seed, int largest, bool adapted) {
    std::mt19937 random(seed);
    const size_t vocab = static_cast<size_t>(one.shape.vocab_size);
    const size_t hidden_size = static_cast<size_t>(one.shape.hidden_size);
    std::vector<float> embeddings(hidden_size * kLength);
    for (size_t i = 0; i < embeddings.size(); ++i) embeddings[i] = 0.1f * static_cast<float>(i % 7);
    std::vector<int32_t> tokens[kRequests];
    std::vector<int32_t> pages[kRequests];
    for (int r = 0; r < kRequests; ++r) {
        for (int t = 0; t < kLength; ++t) tokens[r].push_back((t * 7 + r) % one.shape.vocab_size);
        for (int p = 0; p < kPages / kRequests; ++p)
            pages[r].push_back((p * kRequests + r + static_cast<int>(seed)) % kPages);
    }
    std::vector<float> inv_freq(static_cast<size_t>(one.shape.head_dim / 2));
    for (size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] = 1.0f / static_cast<float>(i + 1);
    const size_t widest = std::max(vocab, hidden_size);
    std::vector<float> all(widest * kLength * kRequests);
    int done[kRequests] = {};
    for (bool busy = true; busy;) {
        std::vector<puna_chunk> chunks;
        std::vector<int> owners;
        for (int r = 0; r < kRequests; ++r) {
            if (done[r] == kLength) continue;
            const int count =
                std::min<int>(kLength - done[r], 1 + static_cast<int>(random() % static_cast<unsigned>(largest)));
            const bool embedded = r == 3 && done[r] < 40;
            chunks.push_back(
                {.tokens = tokens[r].data() + done[r],
                 .embeddings = embedded ? embeddings.data() + static_cast<size_t>(done[r]) * hidden_size : nullptr,
                 .pages = pages[r].data(),
                 .inv_freq = inv_freq.data(),
                 .rope_scale = 1.0f,
                 .count = embedded ? std::min(count, 40 - done[r]) : count,
                 .page_count = kPages / kRequests,
                 .start = done[r],
                 .rows = embedded ? std::min(count, 40 - done[r]) : count,
                 .output = r == 3 ? PUNA_OUTPUT_HIDDEN : PUNA_OUTPUT_LOGITS,
                 .adapter = !adapted ? 0
                            : r % 2  ? 1
                                     : r});
            owners.push_back(r);
        }
        busy = !chunks.empty();
        if (!busy) break;
        size_t rows = 0;
        for (const puna_chunk& chunk : chunks) rows += static_cast<size_t>(chunk.count);
        std::vector<float> logits(rows * vocab), hidden(rows * hidden_size);
        if (puna_forward(model, chunks.data(), static_cast<int32_t>(chunks.size()), 0, logits.data(), hidden.data()))
            fail("forward");
        const float *from = logits.data(), *from_hidden = hidden.data();
        for (size_t c = 0; c < chunks.size(); ++c) {
            const int r = owners[c];
            const bool is_hidden = chunks[c].output == PUNA_OUTPUT_HIDDEN;
            const size_t width = is_hidden ? hidden_size : vocab, size = static_cast<size_t>(chunks[c].count) * width;
            const float*& source = is_hidden ? from_hidden : from;
            std::memcpy(all.data() + static_cast<size_t>(r * kLength) * widest + static_cast<size_t>(done[r]) * width,
                        source, size * sizeof(float));
            source += size;
            done[r] += chunks[c].count;
        }
    }
    return all;
}

}  // namespace

int main(int count, char** arguments) {
    // Odd seeds give short chunks, so that both requests decode in many small batches; even seeds give long chunks, so
    // that one request is prefilled while the other decodes or has ended. Under a sanitizer or an emulator, one seed of
    // each kind suffices: they reach the same code and the same sharing of memory between threads as all 16.
    const uint32_t seeds = count > 1 && std::string(arguments[1]) == "quick" ? 2 : 16;
    check_pool();
    check_blocks();
    // Shape (sizes, eps, cache, unrotated keys), threads, format.
    const Case cases[] = {
        {{67, 40, 52, 2, 4, 2, 10, 1e-5f, 0, 0}, 3, -1},   {{33, 48, 80, 1, 3, 1, 20, 1e-5f, 1, 1}, 2, -1},
        {{101, 64, 96, 2, 4, 4, 16, 1e-5f, 30, 0}, 1, 8},  {{33, 64, 32, 2, 2, 1, 32, 1e-5f, 8, 0}, 3, 2},
        {{40, 256, 256, 1, 4, 2, 64, 1e-5f, 8, 1}, 2, 12},
    };
    std::istringstream names(puna_kernels());
    int runs = 0;
    for (std::string kernels; names >> kernels;)
        for (const Case& one : cases) {
            const Model many{make(one, kernels.c_str(), kPages)};
            const Case single{one.shape, 1, one.quantize};
            const Model alone{make(single, kernels.c_str(), kPages)};
            const std::vector<float> wanted = run(alone.model, single, 0, kLength, true);
            for (uint32_t seed = 1; seed <= seeds; ++seed, ++runs)
                if (run(many.model, one, seed, seed % 2 ? 9 : 90, true) != wanted) fail("a schedule changed the bits");
            // Products without adapters are divided by tokens as well.
            const std::vector<float> plain = run(alone.model, single, 0, kLength, false);
            if (run(many.model, one, 2, 90, false) != plain) fail("a schedule without adapters changed the bits");
            ++runs;
        }
    std::printf("%d schedules, the same bits in all\n", runs);
    return 0;
}
