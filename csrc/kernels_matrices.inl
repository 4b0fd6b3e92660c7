// The order in which kernels of all formats read the panels of a matrix, and the output of a product.

// Tokens per loop over the panels; their activations stay in L2. Zen 4: other sizes are within the noise.
constexpr int kTokenBlock = 128;

// AVX2, Zen 3: see benchmarks/NOTES.md. AVX-VNNI has the same division, which was not measured there. For the other
// instruction sets, no other numbers of pieces, blocks of tokens or items were measured.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr Division kDivision{.pieces = 64, .panels = 1, .tokens = 64, .tiles = 1};
#else
constexpr Division kDivision{.pieces = 16, .panels = 6, .tokens = 0, .tiles = 4};
#endif

// Completes one token's sums of a panel's rows: adds the bias, then stores them or adds them to the output. Rows beyond
// the matrix are skipped.
PUNA_INLINE void store_rows(const f32x16& value, const MatmulJob& job, int64_t panel, int64_t token) {
    const int64_t row = panel * kPanel, valid = job.w.rows - row < kPanel ? job.w.rows - row : kPanel;
    float* const to = job.out + token * job.out_stride + row;
    f32x16 result = value;
    if (job.w.bias) result = result + load_partial(job.w.bias + row, valid);
    if (job.add) result = load_partial(to, valid) + result;
    store_partial(to, result, valid);
}

// Processes the half strips [job.first, job.last). Half 2 s consists of panels s and s + strips(), half 2 s + 1 of the
// other two panels of strip s, if they exist. Calls body(Constant<n>(), panel, panel_stride) for the n panels `panel`,
// `panel` + panel_stride, ... If both halves of a strip are to be processed, one call handles its four panels.
template <typename Body>
PUNA_INLINE void for_each_strip(const MatmulJob& job, const Body& body) {
    const int64_t first = job.first, last = job.last, count = job.w.count(), panel_stride = job.w.strips();
    for (int64_t half = first; half < last; ++half) {
        const int64_t panel = half / 2 + half % 2 * 2 * panel_stride,
                      left = (count - panel + panel_stride - 1) / panel_stride;
        if (half % 2 == 0 && half + 1 < last && left >= kStrip) {
            body(Constant<kStrip>(), panel, panel_stride);
            ++half;
        } else if (left >= 2) {
            body(Constant<2>(), panel, panel_stride);
        } else if (left == 1) {
            body(Constant<1>(), panel, panel_stride);
        }
    }
}
