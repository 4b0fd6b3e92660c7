// Measured speeds of the machine: see puna_machine in puna.h.
#ifndef PUNA_MEASURE_H
#define PUNA_MEASURE_H

#include "kernels.h"
#include "puna.h"

namespace puna {

puna_machine measure(const Kernels& kernels, int threads);

}  // namespace puna

#endif
