// Float rows to blocks of a quantised format.
#ifndef PUNA_QUANTIZE_H
#define PUNA_QUANTIZE_H

#include <vector>

#include "kernels.h"
#include "panels.h"

namespace puna {

// Whether rows can be rounded so: from f32, f16 or bf16 to any format of blocks.
bool can_quantize(const Layout& from, const Layout& to);

// Quantises row after row; one for each thread. What a row becomes depends on nothing but the row.
class Quantizer {
  public:
    // `importance`: how much an error in each column matters, [cols], or null; it must live as long.
    Quantizer(const Kernels& kernels, const Layout& from, const Layout& to, int64_t cols, const float* importance);

    // Rounds a row; `cols` is a multiple of the block. What is wrong with a value, or null.
    const char* row(const uint8_t* from, uint8_t* out);

  private:
    struct Group;

    const char* plain_row(uint8_t* out) const;

    void weigh(Group& group, int64_t first) const;
    void refine(Group& group) const;
    bool pack(Group& group, uint8_t* out) const;

    const Kernels& kernels_;
    const Layout& from_;
    const Layout& to_;
    int64_t cols_;
    const float* importance_;
    std::vector<float> x_, importance_padded_;
    float power_ = 0;  // mean square of the row; twice that in the K formats, as ggml weighs
};

// Quantises a tensor; throws when a value is not finite or an importance is negative or not finite.
void quantize(const Kernels& kernels, int threads, const Layout& from, const Layout& to, const uint8_t* data,
              int64_t rows, int64_t cols, const float* importance, uint8_t* out);

}  // namespace puna

#endif
