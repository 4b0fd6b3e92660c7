// How float rows are quantised to the formats of the table in formats.cpp.
#ifndef PUNA_BLOCK_WRITERS_H
#define PUNA_BLOCK_WRITERS_H

#include "formats.h"

namespace puna {

extern const Quantization kToQ8_0, kToQ4_0, kToQ4_1, kToQ5_0, kToQ5_1, kToIQ4_NL, kToQ2_K, kToQ3_K, kToQ4_K, kToQ5_K,
    kToQ6_K;

}  // namespace puna

#endif
