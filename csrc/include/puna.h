/* The C ABI of puna's native library: the only header that both C++ and Python know.
 *
 * Rules: plain C types; no exception leaves a function; nothing here keeps a pointer it was given after it returns,
 * unless it says so. A change that breaks callers raises PUNA_ABI_VERSION, which `puna.native` checks when it loads
 * the library.
 */
#ifndef PUNA_H
#define PUNA_H

#include <stdint.h>

#if defined(_WIN32)
#define PUNA_API __declspec(dllexport)
#else
#define PUNA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define PUNA_ABI_VERSION 4

/* Bits of puna_cpu_features(). A bit is set when the processor has the instructions and the system saves their
 * registers. */
#define PUNA_CPU_AVX2 (1u << 0)
#define PUNA_CPU_FMA (1u << 1)
#define PUNA_CPU_F16C (1u << 2)
#define PUNA_CPU_AVX512 (1u << 3) /* F, BW, DQ and VL together */
#define PUNA_CPU_AVX512_VNNI (1u << 4)
#define PUNA_CPU_AVX512_BF16 (1u << 5)
#define PUNA_CPU_NEON (1u << 6)
#define PUNA_CPU_DOTPROD (1u << 7)

/* The PUNA_ABI_VERSION the library was built with. */
PUNA_API uint32_t puna_abi_version(void);

/* What this processor can run, as PUNA_CPU_* bits. */
PUNA_API uint32_t puna_cpu_features(void);

/* Logical processors this process may run on: its affinity mask, within its control group's quota; 1 or more. */
PUNA_API int32_t puna_logical_cores(void);

/* Physical cores behind those processors; 1 or more. Two busy threads on one core share its vector units, so this is
 * the default number of threads. */
PUNA_API int32_t puna_physical_cores(void);

/* ---- Models. Functions return 0, or another number after writing a message that puna_error() returns. ---- */

typedef struct puna_model puna_model;

typedef struct puna_shape {
    int32_t vocab_size;
    int32_t hidden_size;
    int32_t intermediate_size;
    int32_t layers;
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
    float rms_norm_eps;
    int32_t cache;          /* type of cached keys and values: f32 0, f16 1, q8_0 8, bf16 30 (ggml's numbers) */
    int32_t unrotated_keys; /* 1: keys are cached unrotated, for frequencies that depend on the length */
} puna_shape;

/* A tensor as a file packs it. */
typedef struct puna_tensor {
    const uint8_t* data;  /* rows, one after another */
    const int64_t* order; /* the stored row of each row; NULL: the same */
    int64_t rows;
    int64_t cols;
    int32_t format;   /* ggml's number of the type; vectors are f32 */
    int32_t quantize; /* ggml's number of the type to round to (q8_0, q4_0, q4_K); -1: none */
} puna_tensor;

/* Kinds of tensors, under Hugging Face's names. Vectors (norms and biases) have one row. */
enum {
    PUNA_EMBEDDING = 0,
    PUNA_NORM = 1,
    PUNA_HEAD = 2, /* left out: the head is the embedding */
    PUNA_ATTENTION_NORM = 3,
    PUNA_MLP_NORM = 4,
    PUNA_Q = 5,
    PUNA_K = 6,
    PUNA_V = 7,
    PUNA_O = 8,
    PUNA_GATE = 9,
    PUNA_UP = 10,
    PUNA_DOWN = 11,
    PUNA_Q_BIAS = 12,
    PUNA_K_BIAS = 13,
    PUNA_V_BIAS = 14,
    PUNA_O_BIAS = 15,
    PUNA_GATE_BIAS = 16,
    PUNA_UP_BIAS = 17,
    PUNA_DOWN_BIAS = 18
};

/* Tokens in a page of the cache. */
#define PUNA_PAGE 64

/* Consecutive tokens of one sequence; see puna.backend.Chunk. */
typedef struct puna_chunk {
    const int64_t* tokens;
    const int32_t* pages; /* page n holds positions n * PUNA_PAGE and on */
    int32_t count;        /* of tokens */
    int32_t page_count;
    int32_t start;         /* position of the first token */
    int32_t logits;        /* how many of the last tokens want logits */
    const float* inv_freq; /* head_dim / 2 frequencies of the rotation */
    float rope_scale;      /* factor on its cosines and sines */
} puna_chunk;

/* Results of functions. */
#define PUNA_OK 0
#define PUNA_FAILED 1
#define PUNA_STOPPED 2

/* Where the time of a forward pass goes; see puna_model_profile. */
enum {
    PUNA_PHASE_EMBEDDING = 0,
    PUNA_PHASE_NORM = 1,
    PUNA_PHASE_QKV = 2,
    PUNA_PHASE_ROPE = 3,
    PUNA_PHASE_ATTENTION = 4,
    PUNA_PHASE_O = 5,
    PUNA_PHASE_GATE_UP = 6,
    PUNA_PHASE_ACTIVATION = 7,
    PUNA_PHASE_DOWN = 8,
    PUNA_PHASE_HEAD = 9,
    PUNA_PHASES = 10
};

/* What went wrong in this thread's last call that failed. */
PUNA_API const char* puna_error(void);

/* Instruction sets this library can run here, best first, separated by spaces. */
PUNA_API const char* puna_kernels(void);

/* A model without weights. `kernels` is a name of puna_kernels(). NULL on failure. */
PUNA_API puna_model* puna_model_new(const puna_shape* shape, int32_t threads, const char* kernels);

PUNA_API void puna_model_free(puna_model* model);

/* Packs a tensor, which may be released afterwards. `layer` is -1 for kinds without one. */
PUNA_API int32_t puna_model_load(puna_model* model, int32_t kind, int32_t layer, const puna_tensor* tensor);

/* Bytes that a tensor takes once packed; -1 when the format is unknown, rows are no whole blocks, or it is empty. */
PUNA_API int64_t puna_packed_bytes(int32_t format, int64_t rows, int64_t cols);

/* Reads a matrix back as it was packed, [rows][cols]. */
PUNA_API int32_t puna_model_read(const puna_model* model, int32_t kind, int32_t layer, float* out);

/* Checks that every tensor is there and makes room for `pages` pages of cache; memory is taken when they are used. */
PUNA_API int32_t puna_model_ready(puna_model* model, int32_t pages);

/* Bytes of keys and values that one token takes in the cache of every layer. */
PUNA_API int64_t puna_cache_bytes(const puna_shape* shape);

/* Bytes of packed matrices that a token reads in each phase, PUNA_PHASES numbers; 1 when they are integers. */
PUNA_API void puna_model_weight_bytes(const puna_model* model, int64_t* bytes);
PUNA_API int32_t puna_model_integers(const puna_model* model);

/* Extends the caches by the chunks' tokens and writes logits, [sum of `logits`][vocab_size], in the chunks' order.
 * `interruptible`: a SIGINT that somebody handles ends the pass between two layers with PUNA_STOPPED, after that
 * handler was called; for the thread that receives signals. The caches then hold what they held before each chunk's
 * start. */
PUNA_API int32_t puna_forward(puna_model* model, const puna_chunk* chunks, int32_t count, int32_t interruptible,
                              float* logits);

/* From now on forward passes add to `squares` the squares of what matrices read, summed over tokens: for each layer the
 * columns of q (and k and v), o, gate (and up) and down, one after the other, and behind the layers those of the head
 * (of tokens that want logits). The array is kept until the next call; NULL ends it. */
PUNA_API void puna_model_observe(puna_model* model, double* squares);

/* Seconds spent in each phase since the last call: PUNA_PHASES numbers. */
PUNA_API void puna_model_profile(puna_model* model, double* seconds);

/* How a token is chosen; see puna.engine.Sampling. */
typedef struct puna_sampling {
    double temperature; /* 0: the likeliest token */
    double top_p;
    double min_p;
    float repetition_penalty;
    int32_t top_k; /* 0: all */
} puna_sampling;

/* The id of the next token from `count` logits; `seen` has a byte per token, not 0 for those of the sequence; `uniform`
 * is a random number in [0, 1). Of the tokens that the filters leave, in order of their ids, the one is drawn at which
 * the cumulative probability first exceeds it. -1 when a logit is not finite, -2 on other failures: see puna_error().
 */
PUNA_API int64_t puna_sample(const char* kernels, const float* logits, int64_t count, const uint8_t* seen,
                             const puna_sampling* options, double uniform);

/* Rounds a tensor of f32, f16 or bf16 (`format`, ggml's number), [rows][cols], to blocks of another format `to`.
 * `importance`: how much an error in each column matters, [cols], not negative; NULL: as ggml weighs where nobody says.
 * A row becomes the same bytes whatever the threads and the instruction set. */
PUNA_API int32_t puna_quantize(const char* kernels, int32_t threads, const uint8_t* data, int32_t format, int64_t rows,
                               int64_t cols, int32_t to, const float* importance, uint8_t* out);

/* What the machine can do, all threads together. */
typedef struct puna_machine {
    double bytes_per_second;            /* memory read in sequence, from huge pages */
    double integer_products_per_second; /* multiply-accumulates of bytes */
    double float_products_per_second;   /* of bf16 where there are such instructions, else of f32 */
    double share_of_one_thread;         /* a thread's integer speed beside the others, over that of one alone */
} puna_machine;

/* Measures for about half a second. */
PUNA_API int32_t puna_measure(const char* kernels, int32_t threads, puna_machine* machine);

#ifdef __cplusplus
}
#endif

#endif
