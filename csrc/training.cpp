// The C functions of training: loops over documents, heads and rows, shared by the threads of one pool.

#include "training.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "include/puna.h"
#include "threads.h"

namespace {

#if defined(__x86_64__) && !defined(PUNA_ONLY_PORTABLE)

std::mutex lock;
std::unique_ptr<puna::Pool> pool;
puna_openmp openmp = nullptr;

// A loop that the threads of OpenMP share.
template <typename Body>
struct Shared {
    const Body& body;
    int64_t count, grain;
    std::atomic<int64_t> next{0};
    std::atomic<int> threads{0};

    static void work(void* loop) noexcept {
        Shared& shared = *static_cast<Shared*>(loop);
        const int thread = shared.threads++;
        for (;;) {
            const int64_t begin = shared.next.fetch_add(shared.grain);
            if (begin >= shared.count) return;
            shared.body(begin, std::min(begin + shared.grain, shared.count), thread);
        }
    }
};

// Runs body(begin, end, thread) for pieces of [0, count) on `threads` threads, which stay alive for the next call.
template <typename Body>
int32_t parallel(int32_t threads, int64_t count, int64_t grain, const Body& body) {
    try {
        const std::lock_guard<std::mutex> guard(lock);
        if (threads < 1 || threads > PUNA_MAX_THREADS) return PUNA_FAILED;
        if (openmp) {
            Shared<Body> shared{body, count, grain};
            openmp(Shared<Body>::work, &shared, static_cast<unsigned>(threads), 0);
            return PUNA_OK;
        }
        if (!pool || pool->threads() != threads) pool = std::make_unique<puna::Pool>(threads);
        pool->each(count, grain, body);
        return PUNA_OK;
    } catch (const std::exception&) {
        return PUNA_FAILED;
    }
}

// Runs body(row) for all rows, in pieces of at least 16 rows.
template <typename Body>
int32_t each_row(int32_t threads, int64_t rows, const Body& body) {
    const int64_t grain = std::max<int64_t>(16, (rows + 4 * threads - 1) / (4 * threads));
    return parallel(threads, rows, grain, [&](int64_t begin, int64_t end, int) noexcept {
        for (int64_t row = begin; row < end; ++row) body(row);
    });
}

puna::TrainKernels kernels = puna::kTrainAvx2;

struct Memory {
    explicit Memory(int64_t bytes) : data(static_cast<uint8_t*>(::operator new(static_cast<size_t>(bytes), kAlign))) {}
    ~Memory() { ::operator delete(data, kAlign); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    static constexpr std::align_val_t kAlign{64};
    uint8_t* data;
};

// Runs body(job, head, scratch) for `heads` heads of each document.
template <typename Body>
int32_t each_head(const puna_attention& a, int64_t heads, const Body& body) {
    if (!kernels.attend) return PUNA_FAILED;
    try {
        std::vector<puna::TrainAttention> jobs;
        int64_t token = 0, longest = 0;
        for (int32_t d = 0; d < a.documents; ++d) {
            const int64_t qkv = token * (a.heads + 2 * a.kv_heads) * a.width, out = token * a.heads * a.width;
            jobs.push_back({a.qkv + qkv, a.lengths[d], a.heads, a.kv_heads, a.width, a.out + out,
                            a.lse + token * a.heads, a.grad ? a.grad + out : nullptr,
                            a.grad_qkv ? a.grad_qkv + qkv : nullptr});
            token += a.lengths[d];
            longest = std::max<int64_t>(longest, a.lengths[d]);
        }
        const int64_t bytes = kernels.scratch(longest, a.width);
        const Memory scratch(bytes * a.threads);
        return parallel(a.threads, static_cast<int64_t>(jobs.size()) * heads, 1,
                        [&](int64_t begin, int64_t end, int thread) noexcept {
                            for (int64_t i = begin; i < end; ++i)
                                body(jobs[static_cast<size_t>(i / heads)], i % heads, scratch.data + thread * bytes);
                        });
    } catch (const std::exception&) {
        return PUNA_FAILED;
    }
}

#endif

}  // namespace

extern "C" {

#if defined(__x86_64__) && !defined(PUNA_ONLY_PORTABLE)

void puna_train_openmp(puna_openmp parallel) { openmp = parallel; }
void puna_train_bf16(int32_t on) { kernels = on ? puna::kTrainBf16 : puna::kTrainAvx2; }

int32_t puna_train_attention(const puna_attention* a) {
    return each_head(*a, a->heads, [](const auto& job, int64_t head, uint8_t* scratch) noexcept {
        kernels.attend(job, head, scratch);
    });
}

int32_t puna_train_attention_backward(const puna_attention* a) {
    return each_head(*a, a->kv_heads, [](const auto& job, int64_t head, uint8_t* scratch) noexcept {
        kernels.attend_backward(job, head, scratch);
    });
}

int32_t puna_train_norm(int32_t threads, const uint16_t* x, const float* weight, float eps, int64_t rows, int64_t cols,
                        uint16_t* out) {
    return each_row(threads, rows,
                    [=](int64_t r) noexcept { kernels.norm(x + r * cols, weight, eps, cols, out + r * cols); });
}

int32_t puna_train_norm_backward(int32_t threads, const uint16_t* grad, const uint16_t* x, const float* weight,
                                 float eps, int64_t rows, int64_t cols, const uint16_t* add, uint16_t* out) {
    return each_row(threads, rows, [=](int64_t r) noexcept {
        kernels.norm_backward(grad + r * cols, x + r * cols, weight, eps, cols, add ? add + r * cols : nullptr,
                              out + r * cols);
    });
}

int32_t puna_train_gated(int32_t threads, const uint16_t* gate_up, int64_t rows, int64_t cols, uint16_t* out) {
    return each_row(threads, rows,
                    [=](int64_t r) noexcept { kernels.gated(gate_up + r * 2 * cols, cols, out + r * cols); });
}

int32_t puna_train_gated_backward(int32_t threads, const uint16_t* grad, const uint16_t* gate_up, int64_t rows,
                                  int64_t cols, uint16_t* out, uint16_t* grad_gate_up) {
    return each_row(threads, rows, [=](int64_t r) noexcept {
        kernels.gated_backward(grad + r * cols, gate_up + r * 2 * cols, cols, out + r * cols,
                               grad_gate_up + r * 2 * cols);
    });
}

int32_t puna_train_rotate(int32_t threads, uint16_t* x, int64_t stride, int64_t rows, int64_t heads, int64_t half,
                          const float* cos, const float* sin, float sign) {
    return each_row(threads, rows, [=](int64_t r) noexcept {
        kernels.rotate(x + r * stride, heads, half, cos + r * half, sin + r * half, sign);
    });
}

int32_t puna_train_cross_entropy(int32_t threads, uint16_t* logits, int64_t rows, int64_t vocab, const int64_t* targets,
                                 const float* factors, int32_t train, double* losses) {
    try {
        const int64_t bytes = (vocab + 15) / 16 * 64;
        const Memory scratch(bytes * std::max<int32_t>(threads, 1));
        return parallel(threads, rows, 4, [&](int64_t begin, int64_t end, int thread) noexcept {
            for (int64_t r = begin; r < end; ++r)
                losses[r] = kernels.cross_entropy(logits + r * vocab, vocab, targets[r], factors[r], train != 0,
                                                  reinterpret_cast<float*>(scratch.data + thread * bytes));
        });
    } catch (const std::exception&) {
        return PUNA_FAILED;
    }
}

int32_t puna_train_decode(int32_t threads, int32_t format, const uint8_t* blocks, int64_t rows, int64_t cols,
                          uint16_t* out, float* wide) {
    const puna::BlockDecoder decoder = kernels.decoder(format);
    if (!decoder.decode || decoder.values > puna::kMaxBlockValues || cols % decoder.values) return PUNA_FAILED;
    const int64_t count = cols / decoder.values;
    return each_row(threads, rows, [=](int64_t r) noexcept {
        uint16_t values[puna::kMaxBlockValues];
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t* block = blocks + (r * count + i) * decoder.bytes;
            const int64_t at = r * cols + i * decoder.values;
            decoder.decode(block, wide ? values : out + at);
            if (wide) kernels.widen(values, decoder.values, wide + at);
        }
    });
}

int32_t puna_train_squares(int32_t threads, const float* const* tensors, const int64_t* counts, int32_t count,
                           double* sum) {
    try {
        constexpr int64_t kPiece = 1 << 14;
        struct Piece {
            const float* values;
            int64_t count;
            double sum;
        };
        std::vector<Piece> pieces;
        for (int32_t t = 0; t < count; ++t)
            for (int64_t i = 0; i < counts[t]; i += kPiece)
                pieces.push_back({tensors[t] + i, std::min(kPiece, counts[t] - i), 0.0});
        const int32_t result =
            parallel(threads, static_cast<int64_t>(pieces.size()), 16, [&](int64_t begin, int64_t end, int) noexcept {
                for (int64_t i = begin; i < end; ++i) {
                    Piece& piece = pieces[static_cast<size_t>(i)];
                    piece.sum = kernels.squares(piece.values, piece.count);
                }
            });
        *sum = 0.0;
        for (const Piece& piece : pieces) *sum += piece.sum;  // in an order that does not depend on the threads
        return result;
    } catch (const std::exception&) {
        return PUNA_FAILED;
    }
}

#else

void puna_train_openmp(puna_openmp) {}
void puna_train_bf16(int32_t) {}
int32_t puna_train_decode(int32_t, int32_t, const uint8_t*, int64_t, int64_t, uint16_t*, float*) { return PUNA_FAILED; }
int32_t puna_train_squares(int32_t, const float* const*, const int64_t*, int32_t, double*) { return PUNA_FAILED; }
int32_t puna_train_attention(const puna_attention*) { return PUNA_FAILED; }
int32_t puna_train_attention_backward(const puna_attention*) { return PUNA_FAILED; }
int32_t puna_train_norm(int32_t, const uint16_t*, const float*, float, int64_t, int64_t, uint16_t*) {
    return PUNA_FAILED;
}
int32_t puna_train_norm_backward(int32_t, const uint16_t*, const uint16_t*, const float*, float, int64_t, int64_t,
                                 const uint16_t*, uint16_t*) {
    return PUNA_FAILED;
}
int32_t puna_train_gated(int32_t, const uint16_t*, int64_t, int64_t, uint16_t*) { return PUNA_FAILED; }
int32_t puna_train_gated_backward(int32_t, const uint16_t*, const uint16_t*, int64_t, int64_t, uint16_t*, uint16_t*) {
    return PUNA_FAILED;
}
int32_t puna_train_rotate(int32_t, uint16_t*, int64_t, int64_t, int64_t, int64_t, const float*, const float*, float) {
    return PUNA_FAILED;
}
int32_t puna_train_cross_entropy(int32_t, uint16_t*, int64_t, int64_t, const int64_t*, const float*, int32_t, double*) {
    return PUNA_FAILED;
}

#endif

}  // extern "C"
