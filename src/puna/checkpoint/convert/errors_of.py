"""How much a conversion changes numbers: relative errors for each kind of tensor, from a sample of rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from puna.checkpoint.convert.rows import Rows, values

_SAMPLE = 16
"""Rows of each tensor that are compared."""

_LAYER = re.compile(r"^model\.layers\.\d+\.")


def changes(before: Mapping[str, Rows], after: Mapping[str, Rows]) -> dict[str, float]:
    """Relative root mean square error of each kind of tensor whose format changed; kinds that kept all values left out.

    Tensors whose shape was changed on purpose are not compared.
    """
    squares: dict[str, tuple[float, float]] = {}
    for name, new in after.items():
        old = before[name]
        if old.format == new.format or old.shape != new.shape:
            continue
        rows = np.unique(np.linspace(0, old.shape[0] - 1, _SAMPLE).astype(np.intp))
        x, y = values(old, rows).astype(np.float64), values(new, rows).astype(np.float64)
        kind = _LAYER.sub("", name)
        error, power = squares.get(kind, (0.0, 0.0))
        squares[kind] = (error + float(((x - y) ** 2).sum()), power + float((x**2).sum()))
        new.release()
    return {kind: math.sqrt(error / power) for kind, (error, power) in squares.items() if error and power}
