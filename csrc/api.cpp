// The C ABI of models, sampling, quantising and measuring. No exception leaves these functions.

#include <atomic>
#include <csignal>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "measure.h"
#include "model.h"
#include "quantize.h"
#include "sampling.h"

struct puna_model {
    puna::Model model;
};

namespace {

thread_local std::string last_error;

// Runs `body`; turns an exception into a return code and stores its message for puna_error().
template <typename Body>
int32_t guarded(const Body& body) {
    try {
        body();
        return PUNA_OK;
    } catch (const puna::Stopped& stopped) {
        last_error = stopped.what();
        return PUNA_STOPPED;
    } catch (const puna::OutOfMemory& refused) {
        last_error = refused.what();
    } catch (const std::bad_alloc&) {
        last_error = "the system refused memory; free memory or raise the limit of this process (ulimit -v)";
    } catch (const std::exception& error) {
        last_error = error.what();
    }
    return PUNA_FAILED;
}

// Whether this processor has the instructions of a kernel build.
bool is_supported(const puna::Kernels& kernels) {
#if defined(PUNA_X86_KERNELS)
    const uint32_t have = puna_cpu_features();
    const uint32_t avx2 = PUNA_CPU_AVX2 | PUNA_CPU_FMA | PUNA_CPU_F16C;
#if defined(PUNA_AVX512_KERNELS)
    const uint32_t avx512 = avx2 | PUNA_CPU_AVX512 | PUNA_CPU_AVX512_VNNI;
    const uint32_t bf16 = avx512 | PUNA_CPU_AVX512_BF16;
    if (&kernels == &puna::kAvx512Bf16) return (have & bf16) == bf16;
    if (&kernels == &puna::kAvx512) return (have & avx512) == avx512;
#endif
#if defined(PUNA_AVX_VNNI)
    const uint32_t vnni = avx2 | PUNA_CPU_AVX_VNNI;
    if (&kernels == &puna::kAvxVnni) return (have & vnni) == vnni;
#endif
    if (&kernels == &puna::kAvx2) return (have & avx2) == avx2;
#elif defined(__aarch64__)
    if (&kernels == &puna::kNeonDotprod) return puna_cpu_features() & PUNA_CPU_DOTPROD;
#endif
    return &kernels == &puna::kPortable;
}

// All kernel builds, best first.
const puna::Kernels* const kAll[] = {
#if defined(PUNA_X86_KERNELS)
#if defined(PUNA_AVX512_KERNELS)
    &puna::kAvx512Bf16, &puna::kAvx512,
#endif
#if defined(PUNA_AVX_VNNI)
    &puna::kAvxVnni,
#endif
    &puna::kAvx2,
#elif defined(__aarch64__)
    &puna::kNeonDotprod,
#endif
    &puna::kPortable};

const puna::Kernels& find_kernels(const char* name) {
    for (const puna::Kernels* one : kAll)
        if (one->name == std::string(name) && is_supported(*one)) return *one;
    throw std::invalid_argument("this processor has no such kernels: " + std::string(name));
}

void check_shape(const puna_shape& s) {
    for (const int32_t size :
         {s.vocab_size, s.hidden_size, s.intermediate_size, s.layers, s.heads, s.kv_heads, s.head_dim})
        if (size < 1 || size > (1 << 28)) throw std::invalid_argument("a size of the model is out of range");
    if (s.heads % s.kv_heads || s.head_dim % 2)
        throw std::invalid_argument("heads must be a multiple of kv_heads, and head_dim must be even");
    if (s.cache != puna::kF32 && s.cache != puna::kF16 && s.cache != puna::kQ8_0 && s.cache != puna::kBF16)
        throw std::invalid_argument("the cache type is unknown");
}

void check_threads(int32_t threads) {
    if (threads < 1 || threads > PUNA_MAX_THREADS)
        throw std::invalid_argument("threads is " + std::to_string(threads) + "; it must be from 1 to " +
                                    std::to_string(PUNA_MAX_THREADS));
}

// While an object of this class exists, SIGINT is counted in interrupts() and then runs the handler that was installed
// before. If the previous action is the default one, SIG_IGN or a handler with SA_SIGINFO, it stays in place, and
// SIGINT is not counted. Passes of several threads share the handler: the first installs it, and the last restores the
// previous one, unless the program has replaced it meanwhile.
class Interruptible {
  public:
    explicit Interruptible(bool requested) : active_(requested && install()), start_(interrupts_) {}
    ~Interruptible() {
        if (active_) uninstall();
    }
    Interruptible(const Interruptible&) = delete;
    Interruptible& operator=(const Interruptible&) = delete;

    puna::Interrupts interrupts() const { return {active_ ? &interrupts_ : nullptr, start_}; }

  private:
    static void handle(int number) {
        ++interrupts_;
        previous_.load()(number);
    }

    static bool install() {
        const std::lock_guard<std::mutex> lock(mutex_);
        struct sigaction current{};
        if (sigaction(SIGINT, nullptr, &current) != 0) return false;
        if (current.sa_handler != handle) {
            if ((current.sa_flags & SA_SIGINFO) || current.sa_handler == SIG_DFL || current.sa_handler == SIG_IGN)
                return false;
            before_ = current;
            previous_ = current.sa_handler;
            current.sa_handler = handle;  // keeps the flags and the mask of the previous handler
            if (sigaction(SIGINT, &current, nullptr) != 0) return false;
        }
        ++passes_;
        return true;
    }

    static void uninstall() {
        const std::lock_guard<std::mutex> lock(mutex_);
        struct sigaction current{};
        if (--passes_ == 0 && sigaction(SIGINT, nullptr, &current) == 0 && current.sa_handler == handle)
            sigaction(SIGINT, &before_, nullptr);
    }

    static inline std::mutex mutex_;  // guards before_ and passes_
    static inline struct sigaction before_{};
    static inline int passes_ = 0;
    static inline std::atomic<void (*)(int)> previous_{nullptr};
    static inline std::atomic<uint32_t> interrupts_{0};
    static_assert(std::atomic<void (*)(int)>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free,
                  "a signal handler must not wait for a lock");

    bool active_;
    uint32_t start_;
};

void check_rows(int64_t vocab, const puna_sample_row* rows, int32_t count) {
    if (vocab < 1 || vocab > INT32_MAX) throw std::invalid_argument("the number of logits is out of range");
    if (count < 0) throw std::invalid_argument("the number of rows is negative");
    for (int32_t i = 0; i < count; ++i) puna::check_row(vocab, rows[i]);
}

}  // namespace

extern "C" {

const char* puna_error(void) { return last_error.c_str(); }

const char* puna_kernels(void) {
    static const std::string names = [] {
        std::string all;
        for (const puna::Kernels* kernels : kAll)
            if (is_supported(*kernels)) all += (all.empty() ? "" : " ") + std::string(kernels->name);
        return all;
    }();
    return names.c_str();
}

puna_model* puna_model_new(const puna_shape* shape, int32_t threads, const char* kernels) {
    std::unique_ptr<puna_model> model;
    guarded([&] {
        check_shape(*shape);
        check_threads(threads);
        model.reset(new puna_model{puna::Model(*shape, threads, find_kernels(kernels))});
    });
    return model.release();
}

void puna_model_free(puna_model* model) { delete model; }

int32_t puna_model_load(puna_model* model, int32_t kind, int32_t layer, const puna_tensor* tensor) {
    return guarded([&] { model->model.load(kind, layer, *tensor); });
}

int64_t puna_packed_bytes(int32_t format, int64_t rows, int64_t cols) {
    const puna::FormatTraits* traits = puna::find_format(format);
    if (!traits || rows < 1 || cols < 1 || cols % traits->values) return -1;
    const puna::Panels panels = puna::describe(*traits, rows, cols);
    return panels.bytes();
}

int32_t puna_model_read(const puna_model* model, int32_t kind, int32_t layer, float* out) {
    return guarded([&] { model->model.read(kind, layer, out); });
}

int32_t puna_model_ready(puna_model* model, int32_t pages) {
    return guarded([&] {
        model->model.check();
        model->model.limit_pages(pages);
    });
}

int64_t puna_cache_bytes(const puna_shape* shape) {
    const auto type = static_cast<puna::CacheType>(shape->cache);
    const int64_t page = puna::key_page_bytes(type, shape->head_dim) + puna::value_page_bytes(type, shape->head_dim);
    return page * shape->kv_heads * shape->layers / puna::kPage;
}

void puna_model_weight_bytes(const puna_model* model, int64_t* bytes) { model->model.weight_bytes(bytes); }

int32_t puna_model_integers(const puna_model* model) { return model->model.integer_weights(); }

int32_t puna_forward(puna_model* model, const puna_chunk* chunks, int32_t count, int32_t interruptible, float* logits,
                     float* hidden) {
    return guarded([&] {
        const Interruptible guard(interruptible);
        model->model.forward(chunks, count, logits, hidden, guard.interrupts());
    });
}

int32_t puna_adapter_load(puna_model* model, const puna_low_rank* changes, int32_t count, int32_t* number) {
    return guarded([&] { *number = model->model.load_adapter(changes, count); });
}

int32_t puna_adapter_drop(puna_model* model, int32_t number) {
    return guarded([&] { model->model.drop_adapter(number); });
}

int32_t puna_pages_read(const puna_model* model, const int32_t* pages, int32_t count, uint8_t* out) {
    return guarded([&] { model->model.read_pages(pages, count, out); });
}

int32_t puna_pages_write(puna_model* model, const int32_t* pages, int32_t count, const uint8_t* data) {
    return guarded([&] { model->model.write_pages(pages, count, data); });
}

int32_t puna_pages_fill(puna_model* model, const int32_t* pages, int32_t count, int32_t tokens, const float* keys,
                        const float* values) {
    return guarded([&] { model->model.fill_pages(pages, count, tokens, keys, values); });
}

int32_t puna_sample(const char* kernels, int64_t vocab, puna_sample_row* rows, int32_t count) {
    return guarded([&] {
        check_rows(vocab, rows, count);
        for (int32_t i = 0; i < count; ++i) puna::sample(find_kernels(kernels), vocab, rows[i]);
    });
}

int32_t puna_model_sample(puna_model* model, int64_t vocab, puna_sample_row* rows, int32_t count) {
    return guarded([&] {
        check_rows(vocab, rows, count);
        model->model.sample(vocab, rows, count);
    });
}

int32_t puna_measure(const char* kernels, int32_t threads, puna_machine* machine) {
    return guarded([&] {
        check_threads(threads);
        *machine = puna::measure(find_kernels(kernels), threads);
    });
}

void puna_model_observe(puna_model* model, double* squares) { model->model.observe_into(squares); }
void puna_model_record(puna_model* model, float* states) { model->model.record_into(states); }

int32_t puna_quantize(const char* kernels, int32_t threads, const uint8_t* data, int32_t format, int64_t rows,
                      int64_t cols, int32_t to, const float* importance, uint8_t* out) {
    return guarded([&] {
        const puna::FormatTraits *from = puna::find_format(format), *target = puna::find_format(to);
        check_threads(threads);
        if (!from || !target || !puna::can_quantize(*from, *target))
            throw std::invalid_argument("quantising between these formats is not supported");
        if (rows < 1 || cols < 1 || rows > (int64_t{1} << 40) / cols || cols % target->values)
            throw std::invalid_argument(
                "the tensor is empty or too large, or its row length is not a multiple of the block size");
        puna::quantize(find_kernels(kernels), threads, *from, *target, data, rows, cols, importance, out);
    });
}

void puna_model_profile(puna_model* model, double* seconds) { model->model.take_profile(seconds); }

}  // extern "C"
