"""How much a conversion changes numbers: relative errors for each kind of tensor, from a sample of rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.weight import Rows
from puna.convert.lazy_rows import values

_SAMPLE = 16
"""Rows of each tensor that are compared."""

_TENSORS = 8
"""Tensors of each kind that are compared, from the first to the last layer."""

_LAYER = re.compile(r"^model\.layers\.\d+\.")


def changes(before: Mapping[str, Rows], after: Mapping[str, Rows]) -> dict[str, float]:
    """Relative root mean square error of each kind of tensor whose format changed; kinds that kept all values left out.

    Tensors whose shape was changed on purpose are not compared.
    """
    kinds: dict[str, list[str]] = {}
    for name, new in after.items():
        if before[name].format != new.format and before[name].shape == new.shape:
            kinds.setdefault(_LAYER.sub("", name), []).append(name)
    found = {}
    for kind, names in kinds.items():
        error = power = 0.0
        for name in (names[at] for at in _spread(len(names), _TENSORS)):
            old, new = before[name], after[name]
            rows = _spread(old.shape[0], _SAMPLE)
            x, y = values(old, rows).astype(np.float64), values(new, rows).astype(np.float64)
            known = np.isfinite(x) & np.isfinite(y)  # an infinity stays one, which is no error
            error += float(((x[known] - y[known]) ** 2).sum())
            power += float((x[known] ** 2).sum())
            new.release()
        if error and power:
            found[kind] = math.sqrt(error / power)
    return found


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """Up to `most` numbers from 0 to `count` - 1, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.intp)
