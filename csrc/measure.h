// Speeds of the machine.
#ifndef PUNA_MEASURE_H
#define PUNA_MEASURE_H

#include "kernels.h"
#include "puna.h"

namespace puna {

puna_machine measure(const Kernels& kernels, int threads);

}  // namespace puna

#endif
