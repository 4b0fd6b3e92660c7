"""Rounding errors of a conversion: a relative error for each kind of tensor, from a sample of rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.weight import RowSource
from puna.convert.lazy_rows import values

_ROWS = 16
"""Rows of each tensor that are compared."""

_TENSORS = 8
"""Tensors of each kind that are compared, from the first to the last layer."""

_LAYER = re.compile(r"^model\.layers\.\d+\.")


def relative_errors(before: Mapping[str, RowSource], after: Mapping[str, RowSource]) -> dict[str, float]:
    """Returns the RMS of the change divided by the RMS of the values, for each kind of tensor whose values changed.

    Tensors whose shape was edited are not compared.
    """
    kinds: dict[str, list[str]] = {}
    for name, tensor in after.items():
        if before[name].format != tensor.format and before[name].shape == tensor.shape:
            kinds.setdefault(_LAYER.sub("", name), []).append(name)
    errors = {}
    for kind, names in kinds.items():
        error = power = 0.0
        for name in (names[index] for index in spread(len(names), _TENSORS)):
            old, new = before[name], after[name]
            rows = spread(old.shape[0], _ROWS)
            x, y = values(old, rows).astype(np.float64), values(new, rows).astype(np.float64)
            finite = np.isfinite(x) & np.isfinite(y)  # a conversion keeps infinities unchanged
            error += float(((x[finite] - y[finite]) ** 2).sum())
            power += float((x[finite] ** 2).sum())
            new.release()
        if error and power:
            errors[kind] = math.sqrt(error / power)
    return errors


def spread(count: int, limit: int) -> NDArray[np.intp]:
    """Returns up to `limit` numbers from 0 to `count` - 1, evenly spread."""
    return np.linspace(0, count - 1, min(count, limit)).astype(np.intp)
