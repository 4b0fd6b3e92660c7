"""Reference implementations of ggml's quantisers for the K formats and iq4_nl (ggml-quants.c).

They return dequantised values, not bytes, since the tests compare only errors. In private functions, each
row of `x` has the values that share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

IQ4_NL_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)


@dataclass(frozen=True)
class Search:
    """The settings of the search for the scales of a format.

    Attributes:
        size: number of values that share a scale.
        levels: quantised integers are 0 to levels, or -levels to levels - 1.
        largest_scale_code: the largest integer that encodes a scale.
        steps: numbers added to `levels` to get the scales that are tried; None if levels are symmetric.
        weighting: the formula for the weights of errors if no importances are given.
    """

    size: int
    levels: int
    largest_scale_code: int = 0
    steps: np.ndarray | None = None
    weighting: str = "square"


FORMATS = {
    "iq4_nl": Search(32, 127),
    "q2_K": Search(16, 3, 15, np.arange(-0.5, 1.05, 0.1), "size"),
    "q3_K": Search(16, 4, 32, weighting="typical"),
    "q4_K": Search(32, 15, 63, np.arange(-1, 1.05, 0.1), "typical"),
    "q5_K": Search(32, 31, 63, np.arange(-0.5, 1.05, 0.1), "typical"),
    "q6_K": Search(16, 32, 128),
}


def weights(name: str, x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Returns the weight of each squared error in the search; x is (rows, columns)."""
    kind = FORMATS[name]
    if importance is not None and name == "q6_K":
        return np.broadcast_to(importance, x.shape)
    if importance is not None:
        group = x.reshape(len(x), -1, 32 if name == "iq4_nl" else 256)
        power = np.broadcast_to((group**2).mean(2, keepdims=True), group.shape).reshape(x.shape)
        return importance * np.sqrt((1 if name == "q2_K" else 2) * power + x**2)
    if kind.weighting == "square":
        return x**2
    typical = np.sqrt((x.reshape(len(x), -1, kind.size) ** 2).mean(2))
    return np.abs(x) + (kind.weighting == "typical") * np.repeat(typical, kind.size, 1)


def round_like_ggml(name: str, x: np.ndarray, w: np.ndarray, weighted: bool) -> np.ndarray:
    """Returns x (rows, columns) rounded as by ggml; `weighted` selects the search that ggml uses with importances."""
    kind = FORMATS[name]
    if weighted and kind.steps is not None:
        kind = replace(kind, steps=np.arange(-0.9, 0.91, 0.05))
    blocks, weight = x.reshape(-1, kind.size), w.reshape(-1, kind.size)
    if kind.steps is not None:
        return _round_with_scale_and_minimum(kind, blocks, weight, weighted).reshape(x.shape)
    scale = _best_scale(kind, name == "iq4_nl", blocks, weight)
    if name == "iq4_nl":
        scale = _round_to_float16(scale)[:, None]
        return (scale * _nearest_in_table(blocks * _inverse(scale))).reshape(x.shape)
    step = _multiples(kind, -kind.largest_scale_code, kind.largest_scale_code - 1, scale, weight, weighted)
    return (step * np.clip(np.rint(blocks * _inverse(step)), -kind.levels, kind.levels - 1)).reshape(x.shape)


def _round_to_float16(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(np.float64)


def _inverse(value: np.ndarray) -> np.ndarray:
    """Returns 1 / value, or 0 where the value is 0."""
    return np.divide(1, value, out=np.zeros_like(value), where=value != 0)


def _nearest_in_table(x: np.ndarray) -> np.ndarray:
    """Returns the values of iq4_nl that are nearest to `x`."""
    return IQ4_NL_VALUES[np.searchsorted((IQ4_NL_VALUES[1:] + IQ4_NL_VALUES[:-1]) / 2, x)]


def _best_scale(kind: Search, table: bool, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Returns the scales of ggml's make_qx_quants or, if `table`, of quantize_row_iq4_nl_impl.

    As there, `lx` and `ll` are the weighted sums of level * x and level * level.
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    best, scale = np.zeros(len(x)), np.zeros(len(x))
    for step in np.arange(-7, 8) if table else np.arange(-9, 10) * 0.1:
        scaled = x * (-(kind.levels + step) * _inverse(largest))
        level = _nearest_in_table(scaled) if table else np.clip(np.rint(scaled), -kind.levels, kind.levels - 1)
        lx, ll = (w * level * x).sum(1), (w * level**2).sum(1)
        candidate = lx * _inverse(ll)
        scale = np.where(candidate * lx > best, candidate, scale)
        best = np.maximum(best, candidate * lx)
    return scale


def _round_with_scale_and_minimum(kind: Search, x: np.ndarray, w: np.ndarray, weighted: bool) -> np.ndarray:
    """Returns x rounded by make_qkx2_quants or, if `weighted`, by make_qkx3_quants, which tries more candidates.

    The sums have ggml's names: `sw`, `sx`, `sl`, `sll` and `slx` are the weighted sums of 1, x, level, level squared
    and level * x.
    """
    low, high = np.minimum(x.min(1), 0), x.max(1)
    best, scale, minimum = np.full(len(x), np.inf), (high - low) / kind.levels, low
    sw, sx = w.sum(1), (w * x).sum(1)
    assert kind.steps is not None
    for step in kind.steps:
        inverse = (kind.levels + step) * _inverse(high - low)
        level = np.clip(np.rint(inverse[:, None] * (x - low[:, None])), 0, kind.levels)
        sl, sll, slx = (w * level).sum(1), (w * level**2).sum(1), (w * level * x).sum(1)
        determinant = sw * sll - sl**2
        new_minimum = (sll * sx - sl * slx) * _inverse(determinant)
        new = np.where(new_minimum > 0, slx * _inverse(sll), (sw * slx - sx * sl) * _inverse(determinant))
        new_minimum = np.minimum(new_minimum, 0)
        error = (w * (new[:, None] * level + new_minimum[:, None] - x) ** 2).sum(1)
        error = np.where((determinant > 1e-9 * sw * sll) & (new > 0), error, np.inf)
        scale, minimum = np.where(error < best, new, scale), np.where(error < best, new_minimum, minimum)
        best = np.minimum(best, error)
    step, add = (_multiples(kind, 0, kind.largest_scale_code, value, w, weighted) for value in (scale, -minimum))
    return step * np.clip(np.rint((x + add) * _inverse(step)), 0, kind.levels) - add


def _multiples(kind: Search, low: int, high: int, value: np.ndarray, w: np.ndarray, weighted: bool) -> np.ndarray:
    """Rounds scales to multiples of a unit: a fraction of the largest scale or, if `weighted`, the best unit.

    ggml searches for the best unit in make_qp_quants.
    """
    shared, weight = (one.reshape(-1, 256 // kind.size) for one in (value, w.sum(1)))
    largest = np.take_along_axis(shared, np.abs(shared).argmax(1)[:, None], 1)
    best, out = np.full((len(shared), 1), np.inf), np.zeros(shared.shape)
    for step in np.arange(-9, 10) * 0.1 if weighted else [0]:
        unit = largest / ((low or high) + step)
        multiples = np.clip(np.rint(shared * _inverse(unit)), low, high)
        if weighted:
            unit = ((weight * shared * multiples).sum(1) * _inverse((weight * multiples**2).sum(1)))[:, None]
        error = (weight * (unit * multiples - shared) ** 2).sum(1, keepdims=True)
        out = np.where(error < best, _round_to_float16(unit) * multiples, out)
        best = np.minimum(error, best)
    return out.reshape(-1, 1)
