// Float rows to blocks of a quantised format.
#ifndef PUNA_QUANTIZE_H
#define PUNA_QUANTIZE_H

#include "panels.h"

namespace puna {

// Whether rows can be rounded so: from f32, f16 or bf16 to q8_0, q4_0 or q4_K.
bool can_quantize(const Layout& from, const Layout& to);

// Rounds a row; `cols` is a multiple of both formats' blocks. False when a value is not finite.
bool quantize_row(const Layout& from, const uint8_t* row, const Layout& to, uint8_t* out, int64_t cols);

}  // namespace puna

#endif
