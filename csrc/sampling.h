// Chooses the next token from logits.
#ifndef PUNA_SAMPLING_H
#define PUNA_SAMPLING_H

#include "kernels.h"
#include "puna.h"

namespace puna {

// See puna_sample. Returns the token id, or -1 if a logit is not finite.
int64_t sample(const Kernels& kernels, const float* logits, int64_t count, const uint8_t* seen,
               const puna_sampling& options, double uniform);

}  // namespace puna

#endif
