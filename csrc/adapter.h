// Adapters: changes of a model's matrix products that are chosen per chunk.
#ifndef PUNA_ADAPTER_H
#define PUNA_ADAPTER_H

#include <array>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace puna {

constexpr size_t kProducts = 7;  // matrix products of a layer: q, k, v, o, gate, up, down

// The change of one product: y = row_scale * (w x + b a x) + shift, where w x includes the bias of the model.
struct LowRank {
    Panels a;                             // [rank][cols]; without rows: no product
    Panels b;                             // [rows][rank]
    std::vector<float> row_scale, shift;  // [rows], or empty
    bool empty() const { return a.rows == 0 && row_scale.empty() && shift.empty(); }
};

struct Adapter {
    Buffer<uint8_t> panels;
    std::vector<std::array<LowRank, kProducts>> layers;
    LowRank head;
};

}  // namespace puna

#endif
