/* The C ABI of puna's native library: its only interface to Python (`puna.native`).
 *
 * Rules: types are plain C; no function throws; no function keeps a caller's pointer after it returns, except
 * puna_model_observe and puna_model_record. A change that breaks callers increases PUNA_ABI_VERSION, which
 * `puna.native` checks when it loads the library.
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

#define PUNA_ABI_VERSION 7

/* Bits of puna_cpu_features(). A bit is set when the processor has the instructions and the operating system saves
 * their registers. */
#define PUNA_CPU_AVX2 (1u << 0)
#define PUNA_CPU_FMA (1u << 1)
#define PUNA_CPU_F16C (1u << 2)
#define PUNA_CPU_AVX512 (1u << 3) /* F, BW, DQ and VL together */
#define PUNA_CPU_AVX512_VNNI (1u << 4)
#define PUNA_CPU_AVX512_BF16 (1u << 5)
#define PUNA_CPU_NEON (1u << 6)
#define PUNA_CPU_DOTPROD (1u << 7)
#define PUNA_CPU_AVX_VNNI (1u << 8)

/* The PUNA_ABI_VERSION that the library was built with. */
PUNA_API uint32_t puna_abi_version(void);

/* Instruction sets of this processor, as PUNA_CPU_* bits. */
PUNA_API uint32_t puna_cpu_features(void);

/* Logical processors that this process may use: its affinity mask, limited by its control group's quota. At least 1. */
PUNA_API int32_t puna_logical_cores(void);

/* Physical cores of the processors that puna_logical_cores counts, limited by the same quota. At least 1. Two busy
 * threads on one core share its vector units, so the number of cores is the default number of threads. */
PUNA_API int32_t puna_physical_cores(void);

/* ---- Models. The functions of type int32_t below return PUNA_OK, except puna_model_integers. On failure they store a
 * message for puna_error() and return another code. ---- */

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
    int32_t cache;          /* ggml type number of cached keys and values: f32 0, f16 1, q8_0 8, bf16 30 */
    int32_t unrotated_keys; /* 1: keys are cached before RoPE, for rope types whose frequencies depend on the length */
} puna_shape;

/* A tensor in the layout of its file. */
typedef struct puna_tensor {
    const uint8_t* data;  /* rows, one after another */
    const int64_t* order; /* order[r]: index of the stored row that becomes row r; NULL: rows are in order */
    int64_t rows;
    int64_t cols;
    int32_t format;   /* ggml type number; vectors must be f32 */
    int32_t quantize; /* ggml type number to quantise to while packing; -1: none */
} puna_tensor;

/* Kinds of tensors, named as in Hugging Face checkpoints. Vectors (norms and biases) have one row. */
enum {
    PUNA_EMBEDDING = 0,
    PUNA_NORM = 1,
    PUNA_HEAD = 2, /* optional; if it is not loaded, the embedding is used as the head */
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

/* Maximum number of threads of a model or of a function. */
#define PUNA_MAX_THREADS 256

/* Tokens in one page of the KV cache. */
#define PUNA_PAGE 64

/* What puna_forward returns for a chunk: logits, or hidden states after the final norm. */
enum { PUNA_OUTPUT_LOGITS = 0, PUNA_OUTPUT_HIDDEN = 1 };

/* Consecutive tokens of one sequence; see puna.backend.Chunk. */
typedef struct puna_chunk {
    const int32_t* tokens;   /* [count] */
    const float* embeddings; /* NULL, or the inputs of the first layer, [count][hidden_size] */
    const int32_t* pages;    /* pages[n] holds positions n * PUNA_PAGE .. n * PUNA_PAGE + PUNA_PAGE - 1 */
    const float* inv_freq;   /* rotary frequencies, [head_dim / 2] */
    float rope_scale;        /* factor on the cosines and sines */
    int32_t count;           /* number of tokens */
    int32_t page_count;
    int32_t start;   /* position of the first token */
    int32_t rows;    /* number of tokens, counted from the end, whose output is returned */
    int32_t output;  /* PUNA_OUTPUT_* */
    int32_t adapter; /* a number of puna_adapter_load; 0: none */
} puna_chunk;

/* Return codes. PUNA_STOPPED: a signal interrupted the forward pass; see puna_forward. */
#define PUNA_OK 0
#define PUNA_FAILED 1
#define PUNA_STOPPED 2

/* Phases of a forward pass whose time is measured; see puna_model_profile. */
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

/* The message of this thread's last failed call. */
PUNA_API const char* puna_error(void);

/* Names of the kernel builds (one per instruction set) that this processor can run, best first, separated by spaces. */
PUNA_API const char* puna_kernels(void);

/* Returns a model without weights, or NULL on failure. `kernels` is a name from puna_kernels(). */
PUNA_API puna_model* puna_model_new(const puna_shape* shape, int32_t threads, const char* kernels);

PUNA_API void puna_model_free(puna_model* model);

/* Packs a tensor into the model's memory; the caller may release the tensor afterwards. `layer` is -1 for kinds that do
 * not belong to a layer. */
PUNA_API int32_t puna_model_load(puna_model* model, int32_t kind, int32_t layer, const puna_tensor* tensor);

/* Bytes of a tensor after packing; -1 if the format is unknown, the tensor is empty, or `cols` is not a
 * multiple of the format's block size. */
PUNA_API int64_t puna_packed_bytes(int32_t format, int64_t rows, int64_t cols);

/* Dequantises a packed matrix into `out`, [rows][cols]. */
PUNA_API int32_t puna_model_read(const puna_model* model, int32_t kind, int32_t layer, float* out);

/* Checks that all required tensors are loaded, and limits the KV cache to `pages` pages. Memory is reserved when a
 * forward pass first uses a page number, for all pages up to it. */
PUNA_API int32_t puna_model_ready(puna_model* model, int32_t pages);

/* Bytes of keys and values that one token takes in the KV cache, summed over layers. */
PUNA_API int64_t puna_cache_bytes(const puna_shape* shape);

/* Writes the bytes of packed matrices that a forward pass of one token reads in each phase: PUNA_PHASES numbers. */
PUNA_API void puna_model_weight_bytes(const puna_model* model, int64_t* bytes);
/* Returns 1 if the layers' matrices are in an integer format, else 0. Only layer 0's down projection is tested. */
PUNA_API int32_t puna_model_integers(const puna_model* model);

/* Extends the KV caches by the chunks' tokens. Writes logits, [rows of the chunks with logits][vocab_size], and hidden
 * states, [rows of the chunks with hidden states][hidden_size], each in the order of the chunks. With `interruptible`,
 * a SIGINT for which the process has a handler ends the pass at the next layer boundary: the handler is called and the
 * result is PUNA_STOPPED. Pass 1 only in the thread that receives signals. After PUNA_STOPPED, cached positions before
 * each chunk's `start` are unchanged, so the same call can be repeated. */
PUNA_API int32_t puna_forward(puna_model* model, const puna_chunk* chunks, int32_t count, int32_t interruptible,
                              float* logits, float* hidden);

/* An adapter's change of one matrix product: y = row_scale * (w x + b a x) + the model's bias + bias. */
typedef struct puna_low_rank {
    const float* a;         /* [rank][columns of the matrix] */
    const float* b;         /* [rows of the matrix][rank] */
    const float* bias;      /* NULL, or [rows of the matrix] */
    const float* row_scale; /* NULL, or [rows of the matrix] */
    int32_t kind;           /* PUNA_Q to PUNA_DOWN, or PUNA_HEAD; each matrix at most once */
    int32_t layer;          /* ignored for PUNA_HEAD */
    int32_t rank;           /* 0: no product b a x */
} puna_low_rank;

/* Packs an adapter into the model's memory, and writes its number, which is above 0. The matrices must be loaded. */
PUNA_API int32_t puna_adapter_load(puna_model* model, const puna_low_rank* changes, int32_t count, int32_t* number);

/* Frees an adapter. */
PUNA_API int32_t puna_adapter_drop(puna_model* model, int32_t number);

/* Copies pages of the KV cache to `out`, or `data` to pages: PUNA_PAGE * puna_cache_bytes() bytes for each page. Their
 * layout depends on the shape of the model only. */
PUNA_API int32_t puna_pages_read(const puna_model* model, const int32_t* pages, int32_t count, uint8_t* out);
PUNA_API int32_t puna_pages_write(puna_model* model, const int32_t* pages, int32_t count, const uint8_t* data);

/* Stores the keys and values of the first tokens of a sequence, [layers][kv_heads][tokens][head_dim], in its pages.
 * Keys are stored unchanged: rotated, unless the model has unrotated_keys. */
PUNA_API int32_t puna_pages_fill(puna_model* model, const int32_t* pages, int32_t count, int32_t tokens,
                                 const float* keys, const float* values);

/* Starts an observation: each later forward pass squares the elements of every matrix input, sums the squares of each
 * column over the tokens, and adds the sums to `squares`. The array holds, for each layer, the sums for the input
 * of q, k and v [hidden_size], of o [heads * head_dim], of gate and up [hidden_size] and of down [intermediate_size];
 * after the layers, for the input of the head [hidden_size] (only tokens whose logits are returned). The library keeps
 * the pointer until the next call of this function; NULL ends the observation. */
PUNA_API void puna_model_observe(puna_model* model, double* squares);

/* Starts a recording: each later forward pass writes the residual stream of all its tokens before each layer and after
 * the last one to `states`, [layers + 1][tokens][hidden_size]. The library keeps the pointer until the next call of
 * this function; NULL ends the recording. */
PUNA_API void puna_model_record(puna_model* model, float* states);

/* Writes the seconds spent in each phase since the previous call of this function: PUNA_PHASES numbers. */
PUNA_API void puna_model_profile(puna_model* model, double* seconds);

/* How the next token is chosen: the numeric options of puna.config.Sampling, in its order. Each is a double or an
 * int64_t. */
typedef struct puna_sampling {
    double temperature; /* 0: the most likely token */
    int64_t top_k;      /* 0: no limit */
    double top_p;
    double min_p;
    double typical_p; /* 1: off */
    double repetition_penalty;
    double presence_penalty;
    double frequency_penalty;
} puna_sampling;

/* Values of puna_sample_row.status. A row that fails does not affect other rows. */
enum { PUNA_SAMPLE_OK = 0, PUNA_SAMPLE_NOT_FINITE = 1, PUNA_SAMPLE_NO_TOKEN = 2 };

/* The choice of one token. Log-probabilities are those of the model: of the softmax of the logits before any option
 * changes them. */
typedef struct puna_sample_row {
    const float* logits; /* [vocab], not modified; finite, or else the row fails */
    const puna_sampling* options;
    const int32_t* seen;      /* [seen_count]: the distinct tokens of the sequence, needed only for penalties */
    const int32_t* generated; /* [seen_count]: how often each of them is in the answer */
    const int32_t* bias_ids;  /* [bias_count], distinct */
    const double* bias;       /* [bias_count]: added to the logits of bias_ids */
    const uint32_t* allowed;  /* NULL, or a bit per token, lowest bit first: 1 if it may be chosen */
    int32_t* top_ids;         /* [top_count], written: the most likely tokens, ties: the lower id first */
    double* top_logprobs;     /* [top_count], written */
    double uniform;           /* a random number in [0, 1) */
    double logprob;           /* written if top_count >= 0: the log-probability of the token */
    int32_t seen_count;
    int32_t bias_count;
    int32_t top_count; /* -1: no log-probabilities; at most `vocab` */
    int32_t given;     /* -1, or a token that is used instead of a choice */
    int32_t token;     /* written */
    int32_t status;    /* written: PUNA_SAMPLE_* */
} puna_sample_row;

/* Chooses a token for each row. The order is that of transformers: bias, repetition penalty, presence and frequency
 * penalties, allowed tokens, temperature, top-k, top-p, min-p, typical-p. The tokens that remain are ordered by their
 * ids; the first one whose cumulative probability exceeds `uniform` is chosen. A row has the same results in every
 * batch. Numbers that are out of range are an error, and then no row is changed. */
PUNA_API int32_t puna_sample(const char* kernels, int64_t vocab, puna_sample_row* rows, int32_t count);

/* The same, with the kernels and the threads of a model, which no other call may use meanwhile. The results are equal
 * for any number of threads. */
PUNA_API int32_t puna_model_sample(puna_model* model, int64_t vocab, puna_sample_row* rows, int32_t count);

/* Quantises a tensor [rows][cols] of f32, f16 or bf16 (`format`, a ggml type number) to the block format `to`.
 * `importance` [cols], not negative: the weight of an error in each column; NULL: ggml's weights for the format. The
 * bytes of a row depend neither on the number of threads nor on the instruction set. */
PUNA_API int32_t puna_quantize(const char* kernels, int32_t threads, const uint8_t* data, int32_t format, int64_t rows,
                               int64_t cols, int32_t to, const float* importance, uint8_t* out);

/* Measured speeds of the machine, all threads together. */
typedef struct puna_machine {
    double bytes_per_second;            /* memory read sequentially, from huge pages */
    double integer_products_per_second; /* multiply-accumulates of bytes */
    double float_products_per_second;   /* multiply-accumulates of bf16 where the processor has them, else of f32 */
    double share_of_one_thread;         /* integer speed per thread when all threads run / speed of one thread alone */
} puna_machine;

/* Measures the machine; takes about half a second. */
PUNA_API int32_t puna_measure(const char* kernels, int32_t threads, puna_machine* machine);

/* Training. These functions need a processor with AVX-512 BF16, and fail elsewhere. Matrices are row-major bf16; sums
 * are float32. Threads stay alive between calls, and only one call runs at a time. */

/* Runs loops in the threads of an OpenMP library of GNU, whose function GOMP_parallel is given, instead of own threads.
 * Threads of OpenMP keep a processor busy for a millisecond after each of its loops. */
typedef void (*puna_openmp)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
PUNA_API void puna_train_openmp(puna_openmp parallel);
/* Chooses the kernels for AVX-512 BF16, or those for AVX2, which have no attention: the initial choice. */
PUNA_API void puna_train_bf16(int32_t on);

/* Causal attention within documents that follow each other. A row of `qkv` has the rotated queries of all heads, the
 * rotated keys and the values, each `width` wide (a multiple of 16, at most 256). */
typedef struct puna_attention {
    const uint16_t* qkv;
    uint16_t* out;          /* [token][heads * width] */
    float* lse;             /* the logarithm of the sum of exponentials, [head][token] for each document */
    const uint16_t* grad;   /* backward: the gradient of `out` */
    uint16_t* grad_qkv;     /* backward: the gradient of `qkv`, written */
    const int32_t* lengths; /* [documents] tokens of each document */
    int32_t documents;
    int32_t heads;
    int32_t kv_heads;
    int32_t width;
    int32_t threads;
} puna_attention;

PUNA_API int32_t puna_train_attention(const puna_attention* attention);
PUNA_API int32_t puna_train_attention_backward(const puna_attention* attention);

/* out = x / rms(x) * weight, for each row. */
PUNA_API int32_t puna_train_norm(int32_t threads, const uint16_t* x, const float* weight, float eps, int64_t rows,
                                 int64_t cols, uint16_t* out);
/* out = the gradient of x, plus `add` (may be NULL, or `out`). */
PUNA_API int32_t puna_train_norm_backward(int32_t threads, const uint16_t* grad, const uint16_t* x, const float* weight,
                                          float eps, int64_t rows, int64_t cols, const uint16_t* add, uint16_t* out);
/* out = silu(gate) * up; a row of `gate_up` has cols gates and cols factors. */
PUNA_API int32_t puna_train_gated(int32_t threads, const uint16_t* gate_up, int64_t rows, int64_t cols, uint16_t* out);
/* Writes the same result, and the gradient of `gate_up`. */
PUNA_API int32_t puna_train_gated_backward(int32_t threads, const uint16_t* grad, const uint16_t* gate_up, int64_t rows,
                                           int64_t cols, uint16_t* out, uint16_t* grad_gate_up);
/* Rotates the first `heads` heads of rows in place; `stride` is the length of a row, cos and sin are [rows][half]. */
PUNA_API int32_t puna_train_rotate(int32_t threads, uint16_t* x, int64_t stride, int64_t rows, int64_t heads,
                                   int64_t half, const float* cos, const float* sin, float sign);
/* losses[row] = factors[row] * cross-entropy; if `train`, the gradients replace the logits. */
PUNA_API int32_t puna_train_cross_entropy(int32_t threads, uint16_t* logits, int64_t rows, int64_t vocab,
                                          const int64_t* targets, const float* factors, int32_t train, double* losses);
/* Decodes rows of Q4_0, Q4_1, Q8_0, Q4_K, Q5_K or Q6_K blocks to bf16; fails for other formats. If `wide` is not NULL,
   it receives the same values as float32, and `out` is not used. */
PUNA_API int32_t puna_train_decode(int32_t threads, int32_t format, const uint8_t* blocks, int64_t rows, int64_t cols,
                                   uint16_t* out, float* wide);
/* Writes the sum of squares of `count` tensors of floats; it does not depend on the number of threads. */
PUNA_API int32_t puna_train_squares(int32_t threads, const float* const* tensors, const int64_t* counts, int32_t count,
                                    double* sum);

#ifdef __cplusplus
}
#endif

#endif
