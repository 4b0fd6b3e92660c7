// Sizes of cache pages; HeadCache in kernels.h describes their layout.

#include "kernels.h"

namespace puna {

int64_t key_page_bytes(CacheType type, int64_t head_dim) {
    const int64_t count = head_dim * kPage, groups = (head_dim + kBlock - 1) / kBlock;
    if (type == CacheType::kF32) return count * 4;
    return type == CacheType::kQ8_0 ? count + groups * kPage * 4 : count * 2;
}

int64_t value_page_bytes(CacheType type, int64_t head_dim) {
    const int64_t count = padded_width(head_dim) * kPage, groups = (head_dim + kBlock - 1) / kBlock;
    if (type == CacheType::kF32) return count * 4;
    return type == CacheType::kQ8_0 ? count + groups * kPage * 4 : count * 2;
}

}  // namespace puna
