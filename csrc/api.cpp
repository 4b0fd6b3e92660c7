// The C ABI of models: no exception leaves it.

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "model.h"

struct puna_model {
    puna::Model model;
};

namespace {

thread_local std::string last_error;

template <typename Body>
int32_t guarded(const Body& body) {
    try {
        body();
        return 0;
    } catch (const std::bad_alloc&) {
        last_error = "the system has not enough memory";
    } catch (const std::exception& error) {
        last_error = error.what();
    }
    return 1;
}

bool runs(const puna::Kernels& kernels) {
#if defined(__x86_64__)
    const uint32_t have = puna_cpu_features();
    const uint32_t avx2 = PUNA_CPU_AVX2 | PUNA_CPU_FMA;
    if (&kernels == &puna::kAvx512) return (have & PUNA_CPU_AVX512) && (have & avx2) == avx2;
    if (&kernels == &puna::kAvx2) return (have & avx2) == avx2;
#endif
    return &kernels == &puna::kPortable;
}

const puna::Kernels* const kAll[] = {
#if defined(__x86_64__)
    &puna::kAvx512, &puna::kAvx2,
#endif
    &puna::kPortable};

void check_shape(const puna_shape& s) {
    for (const int32_t size :
         {s.vocab_size, s.hidden_size, s.intermediate_size, s.layers, s.heads, s.kv_heads, s.head_dim})
        if (size < 1 || size > (1 << 28)) throw std::invalid_argument("a size of the model is out of range");
    if (s.heads % s.kv_heads || s.head_dim % 2) throw std::invalid_argument("the heads do not divide");
}

}  // namespace

extern "C" {

const char* puna_error(void) { return last_error.c_str(); }

const char* puna_kernels(void) {
    static const std::string names = [] {
        std::string all;
        for (const puna::Kernels* kernels : kAll)
            if (runs(*kernels)) all += (all.empty() ? "" : " ") + std::string(kernels->name);
        return all;
    }();
    return names.c_str();
}

puna_model* puna_model_new(const puna_shape* shape, const float* inv_freq, int32_t threads, const char* kernels) {
    std::unique_ptr<puna_model> made;
    guarded([&] {
        check_shape(*shape);
        if (threads < 1 || threads > 1024) throw std::invalid_argument("threads are out of range");
        for (const puna::Kernels* one : kAll)
            if (one->name == std::string(kernels) && runs(*one))
                made.reset(new puna_model{puna::Model(*shape, inv_freq, threads, *one)});
        if (!made) throw std::invalid_argument("no such kernels here: " + std::string(kernels));
    });
    return made.release();
}

void puna_model_free(puna_model* model) { delete model; }

int32_t puna_model_load(puna_model* model, int32_t kind, int32_t layer, const float* data, int64_t rows, int64_t cols) {
    return guarded([&] { model->model.load(kind, layer, data, rows, cols); });
}

int32_t puna_model_ready(puna_model* model, int32_t pages) {
    return guarded([&] {
        model->model.check();
        model->model.reserve_pages(pages);
    });
}

int32_t puna_forward(puna_model* model, const puna_chunk* chunks, int32_t count, float* logits) {
    return guarded([&] { model->model.forward(chunks, count, logits); });
}

}  // extern "C"
