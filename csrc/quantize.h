// Quantises rows of floats to blocks of a file format.
#ifndef PUNA_QUANTIZE_H
#define PUNA_QUANTIZE_H

#include <vector>

#include "kernels.h"
#include "panels.h"

namespace puna {

// Whether rows of `from` (f32, f16 or bf16) can be quantised to `to` (any block format).
bool can_quantize(const FormatTraits& from, const FormatTraits& to);

// Quantises rows one at a time. Each thread needs its own quantiser. The result of a row depends on that row alone.
class Quantizer {
  public:
    // `importance`: weight of an error in each column, [cols], or null; must outlive the quantiser.
    Quantizer(const Kernels& kernels, const FormatTraits& from, const FormatTraits& to, int64_t cols,
              const float* importance);

    // Quantises one row; `cols` is a multiple of the block size. Returns an error message, or null.
    const char* row(const uint8_t* from, uint8_t* out);

  private:
    struct Group;

    const char* plain_row(uint8_t* out) const;

    void weigh(Group& group, int64_t first) const;
    void refine(Group& group) const;
    bool pack(Group& group, uint8_t* out) const;

    const Kernels& kernels_;
    const FormatTraits& from_;
    const FormatTraits& to_;
    int64_t cols_;
    const float* importance_;
    std::vector<float> x_, importance_padded_;
    float power_ = 0;  // mean square of the row; in the K formats twice that, as in ggml
};

// Quantises a tensor. Throws std::invalid_argument if a value is not finite or too large, or if an importance is
// negative or not finite.
void quantize(const Kernels& kernels, int threads, const FormatTraits& from, const FormatTraits& to,
              const uint8_t* data, int64_t rows, int64_t cols, const float* importance, uint8_t* out);

}  // namespace puna

#endif
