// Chooses the next token from logits.
#ifndef PUNA_SAMPLING_H
#define PUNA_SAMPLING_H

#include "kernels.h"
#include "puna.h"

namespace puna {

// Throws std::invalid_argument if a number of the row is out of range, or a required pointer is NULL.
void check_row(int64_t vocab, const puna_sample_row& row);

// Chooses the token of one row; see puna_sample_row.
void sample(const Kernels& kernels, int64_t vocab, puna_sample_row& row);

}  // namespace puna

#endif
