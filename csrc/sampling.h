// Chooses the next token from logits.
#ifndef PUNA_SAMPLING_H
#define PUNA_SAMPLING_H

#include "kernels.h"
#include "puna.h"

namespace puna {

// Chooses the token of one row; see puna_sample_row.
void sample(const Kernels& kernels, int64_t vocab, puna_sample_row& row);

}  // namespace puna

#endif
