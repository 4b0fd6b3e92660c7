// The grids of the IQ1, IQ2 and IQ3 formats: lists of points from which groups of values are chosen. The coordinates of
// a point, from 0 to 2 (IQ1, IQ2) or 7 (IQ3), select magnitudes.
#ifndef PUNA_GRIDS_H
#define PUNA_GRIDS_H

#include <cstdint>

namespace puna {

enum class Grid : int8_t { kIq1, kIq2Xxs, kIq2Xs, kIq2S, kIq3Xxs, kIq3S };

// Returns the coordinates of all points, four in the bytes of a word. A point is two words of kIq1 and kIq2*, and one
// word of kIq3*. The first call unpacks all grids.
const uint32_t* points_of(Grid grid) noexcept;

}  // namespace puna

#endif
