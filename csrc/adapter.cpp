// Members of Model that load adapters and add their products. Legend: N tokens of the batch, R rank.
//
// The tokens of a batch that use the same adapter form segments. A segment's product b (a x) runs inside the parallel
// loop of the matrix that it changes: each thread first takes items of a x from a shared counter, then computes its
// rows of w x, and adds its rows of b (a x) once all items are done. A separate loop for a x would make the threads
// wait for each other once more in each product.

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "model.h"
#include "quantize.h"

namespace puna {

namespace {

// Tokens of a part of a segment. Parts of a long prompt keep all threads busy with a x; other sizes were not measured.
constexpr int64_t kPartTokens = 64;

// Panels [first, first + count) of a matrix, without its bias.
Panels rows_of(const Panels& w, int64_t first, int64_t count) {
    Panels part = w;
    part.data += first * w.stride;
    part.rows = std::min(w.rows - first * kPanel, count * kPanel);
    part.bias = nullptr;
    return part;
}

// Calls body(first row, number of rows) for the rows of the work units [first, last).
template <typename Body>
void for_each_rows(const Panels& w, int64_t first, int64_t last, int64_t tokens, const Body& body) {
    const auto panels = [&](int64_t panel, int64_t count) {
        if (panel < w.count()) body(panel * kPanel, std::min(w.rows - panel * kPanel, count * kPanel));
    };
    if (tokens > 1) return panels(first, last - first);
    for (int64_t half = first; half < last; ++half) {  // see work_units
        const int64_t panel = half / 2 + half % 2 * 2 * w.strips();
        panels(panel, 1);
        panels(panel + w.strips(), 1);
    }
}

// Packs a matrix [rows][cols] of float32 in the format of `panels`: float32, bf16 or a block format.
void pack_floats(const Kernels& kernels, const Panels& panels, const float* values, uint8_t* to) {
    const int64_t bytes = panels.cols / panels.traits->values * panels.traits->bytes;
    std::vector<uint8_t> rounded(static_cast<size_t>(panels.rows * bytes + 2));  // to_bf16 writes pairs
    std::optional<Quantizer> quantizer;
    if (panels.integer()) quantizer.emplace(kernels, *find_format(kF32), *panels.traits, panels.cols, nullptr);
    for (int64_t row = 0; row < panels.rows; ++row) {
        const float* const from = values + row * panels.cols;
        uint8_t* const out = rounded.data() + row * bytes;
        if (panels.traits->planes == Planes::kBf16)
            kernels.to_bf16(from, panels.cols, reinterpret_cast<uint16_t*>(out));
        else if (!quantizer)
            std::memcpy(out, from, static_cast<size_t>(bytes));
        else if (const char* const why = quantizer->row(reinterpret_cast<const uint8_t*>(from), out))
            throw std::invalid_argument(std::string("it cannot be quantised: ") + why);
    }
    for (int64_t p = 0; p < panels.count(); ++p) pack_panel(panels, p, rounded.data(), nullptr, to);
}

}  // namespace

// The formats of a and b. Where the kernel of w rounds its inputs, a has the format that reads them in the same form,
// and b has bf16: they are read in half of the time of float32, or less.
const FormatTraits& Model::format_of_a(const Panels& w) const {
    const bool bf16 = kernels_.uses_bf16 && w.traits->planes == Planes::kBf16;
    return *find_format(w.integer() ? kQ8_0 : bf16 ? kBF16 : kF32);
}
const FormatTraits& Model::format_of_b(const Panels& w) const {
    return *find_format(&format_of_a(w) == find_format(kF32) ? kF32 : kBF16);
}

int32_t Model::load_adapter(const puna_low_rank* changes, int32_t count) {
    if (count < 0) throw std::invalid_argument("the number of changes is negative");
    auto adapter = std::make_unique<Adapter>();
    adapter->layers.resize(layers_.size());
    int64_t bytes = 0;
    const auto place = [&](const FormatTraits& format, int64_t rows, int64_t cols) {
        const Panels panels = describe(format, rows, cols);
        bytes += panels.bytes();
        return panels;
    };
    const auto change_of = [&](const puna_low_rank& change) -> LowRank& {
        if (change.kind == PUNA_HEAD) return adapter->head;
        return adapter->layers[static_cast<size_t>(change.layer)][static_cast<size_t>(change.kind - PUNA_Q)];
    };
    for (int32_t i = 0; i < count; ++i) {
        const puna_low_rank& change = changes[i];
        const Target target = find(change.kind, change.layer);
        if (change.kind != PUNA_HEAD && (change.kind < PUNA_Q || change.kind > PUNA_DOWN))
            throw std::invalid_argument("an adapter can change only the projections of the layers and the head");
        const Matrix& matrix = change.kind == PUNA_HEAD ? head() : *target.matrix;
        if (change.rank < 0 || change.rank > 1 << 16) throw std::invalid_argument("a rank is out of range");
        LowRank& to = change_of(change);
        if (!to.empty()) throw std::invalid_argument("an adapter changes a matrix twice");
        if (change.rank > 0) {
            to.a = place(format_of_a(matrix.panels), change.rank, target.cols);
            to.b = place(format_of_b(matrix.panels), target.rows, change.rank);
        }
        if (change.row_scale) to.row_scale.assign(change.row_scale, change.row_scale + target.rows);
        if (!change.row_scale && !change.bias) continue;
        // row_scale must not multiply the bias of the model, which the product w x includes.
        to.shift.assign(static_cast<size_t>(target.rows), 0.0f);
        for (size_t row = 0; row < to.shift.size(); ++row) {
            const double own = matrix.bias.empty() ? 0.0 : static_cast<double>(matrix.bias[row]);
            const double scale = change.row_scale ? static_cast<double>(change.row_scale[row]) : 1.0;
            to.shift[row] = static_cast<float>(own * (1.0 - scale) + (change.bias ? change.bias[row] : 0.0));
        }
    }
    adapter->panels = Buffer<uint8_t>(static_cast<size_t>(bytes));
    uint8_t* data = adapter->panels.data();
    const auto pack_next = [&](Panels& panels, const float* values) {
        panels.data = data;
        pack_floats(kernels_, panels, values, data);
        data += panels.bytes();
    };
    for (int32_t i = 0; i < count; ++i) {
        if (changes[i].rank == 0) continue;
        pack_next(change_of(changes[i]).a, changes[i].a);
        pack_next(change_of(changes[i]).b, changes[i].b);
    }
    adapters_.emplace(++last_adapter_, std::move(adapter));
    return last_adapter_;
}

void Model::drop_adapter(int32_t number) {
    if (!adapters_.erase(number)) throw std::invalid_argument("there is no adapter of this number");
}

// Lists the parts of segments: consecutive tokens with the same adapter.
void Model::make_segments() {
    segments_.clear();
    const int32_t count = static_cast<int32_t>(tokens_.size());
    for (int32_t first = 0, end = 0; first < count; first = end) {
        const int32_t number = tokens_[static_cast<size_t>(first)].chunk->adapter;
        for (end = first; end < count && tokens_[static_cast<size_t>(end)].chunk->adapter == number;) ++end;
        if (number == 0) continue;
        const Adapter* const adapter = adapters_.at(number).get();
        for (int64_t at = first; at < end; at += kPartTokens)
            segments_.push_back({adapter, at, std::min<int64_t>(kPartTokens, end - at)});
    }
}

// Lists the adapters' changes of several products of a layer (-1: of the head), and reserves memory for their inner
// products a x.
void Model::plan_products(std::initializer_list<Projection> outs, int32_t layer) {
    products_.clear();
    items_ = 0;
    size_t floats = 0, halves = 0;
    for (const Segment& segment : segments_) {
        size_t index = 0;
        for (const Projection& out : outs) {
            const Adapter& adapter = *segment.adapter;
            const LowRank& change =
                layer < 0 ? adapter.head
                          : adapter.layers[static_cast<size_t>(layer)][static_cast<size_t>(out.kind - PUNA_Q)];
            if (!change.empty()) {
                products_.push_back({&change, &segment, index, items_, floats, halves});
                const size_t tokens = static_cast<size_t>(segment.count);
                items_ += change.a.count();
                floats += tokens * static_cast<size_t>(change.a.rows);
                halves += tokens * static_cast<size_t>(bf16_stride(change.a.rows));
            }
            ++index;
        }
    }
    inner_.grow_discarding(floats);
    if (kernels_.uses_bf16) inner_bf16_.grow_discarding(halves);
    next_item_ = 0;
    items_done_ = 0;
}

// Computes items of a x until none are left. An item is a panel of one product's a, for all tokens of its segment.
void Model::multiply_inner(const Activations& x) {
    // Each piece of a loop comes here. Only reading the counter, once it has reached its end, keeps its cache line
    // shared.
    while (next_item_.load(std::memory_order_relaxed) < items_) {
        const int64_t item = next_item_.fetch_add(1, std::memory_order_relaxed);
        if (item >= items_) return;
        const auto after = std::upper_bound(products_.begin(), products_.end(), item,
                                            [](int64_t value, const Product& one) { return value < one.first_item; });
        const Product& product = *std::prev(after);
        const Panels& a = product.change->a;
        const Segment& segment = *product.segment;
        const int64_t panel = item - product.first_item;
        const Panels part = rows_of(a, panel, 1);
        const Activations rows = rows_from(x, segment.first);
        float* const out = inner_.data() + product.floats + panel * kPanel;
        kernels_.matmul({.w = part,
                         .x = rows,
                         .first = 0,
                         .last = work_units(part, segment.count),
                         .tokens = segment.count,
                         .out = out,
                         .out_stride = a.rows,
                         .add = false});
        if (kernels_.uses_bf16 && product.change->b.traits->planes == Planes::kBf16)
            for (int64_t t = 0; t < segment.count; ++t)
                kernels_.to_bf16(out + t * a.rows, part.rows,
                                 inner_bf16_.data() + product.halves +
                                     static_cast<size_t>(t * bf16_stride(a.rows) + panel * kPanel));
        items_done_.fetch_add(1, std::memory_order_release);
    }
}

// Prefetches the rows of b for the work units [first, last) of w; the product w x hides the latency. Zen 4: see
// benchmarks/NOTES.md.
void Model::prefetch_products(const Panels& w, size_t index, int64_t first, int64_t last, int64_t tokens) const {
    for (const Product& product : products_) {
        const Panels& b = product.change->b;
        if (product.index != index || b.rows == 0) continue;
        for_each_rows(w, first, last, tokens, [&](int64_t row, int64_t count) {
            const uint8_t* const from = b.data + row / kPanel * b.stride;
            const int64_t bytes = (count + kPanel - 1) / kPanel * b.stride;
            for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at);
        });
    }
}

// Adds rows of a product to `out`: those of the work units [first, last).
void Model::add_rows(const Projection& from, float* out, int64_t first, int64_t last, int64_t tokens) const {
    for (int64_t t = 0; t < tokens; ++t)
        for_each_rows(from.matrix->panels, first, last, tokens, [&](int64_t row, int64_t count) {
            for (int64_t r = t * from.stride + row; r < t * from.stride + row + count; ++r) out[r] += from.out[r];
        });
}

// Applies the adapters' changes to the rows of w x that are the work units [first, last) of out's matrix.
void Model::add_products(const Projection& out, size_t index, int64_t first, int64_t last, int64_t tokens) {
    wait_for(items_done_, items_);
    for (const Product& product : products_) {
        if (product.index != index) continue;
        const LowRank& change = *product.change;
        const Segment& segment = *product.segment;
        float* const to = out.out + segment.first * out.stride;
        if (change.a.rows > 0) {
            const Activations x{inner_.data() + product.floats,
                                kernels_.uses_bf16 ? inner_bf16_.data() + product.halves : nullptr, nullptr,
                                change.a.rows};
            const bool all = tokens == 1;  // the work units of b are those of w; otherwise, they are panels of w
            const Panels b = all ? change.b : rows_of(change.b, first, last - first);
            kernels_.matmul({.w = b,
                             .x = x,
                             .first = all ? first : 0,
                             .last = all ? last : work_units(b, segment.count),
                             .tokens = segment.count,
                             .out = all ? to : to + first * kPanel,
                             .out_stride = out.stride,
                             .add = true});
        }
        if (change.shift.empty()) continue;
        const float* const scale = change.row_scale.empty() ? nullptr : change.row_scale.data();
        for (int64_t t = 0; t < segment.count; ++t)
            for_each_rows(out.matrix->panels, first, last, tokens, [&](int64_t row, int64_t count) {
                float* const y = to + t * out.stride;
                for (int64_t r = row; r < row + count; ++r)
                    y[r] = (scale ? y[r] * scale[r] : y[r]) + change.shift[static_cast<size_t>(r)];
            });
    }
}

}  // namespace puna
