"""`SpikeDetector`: finds steps whose loss or gradient norm is not finite or far above its moving mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

_DECAY = 0.97
"""Of the moving mean and variance, as in ZClip (arXiv:2504.02507)."""

_FIRST_STEPS = 20
"""Steps without a judgement, in which the moving variance is not reliable."""

_LEAST_DEVIATION = 0.05
"""Least standard deviation of a logarithm: the threshold 6 is then an increase by a third."""


@dataclass
class _Statistics:
    """The moving mean and variance of the logarithm of a positive value, and its maximum.

    Gradient norms, and losses of small batches, are closer to a log-normal than to a normal distribution: a deviation
    of 6 would otherwise occur every few thousand steps of a healthy run.
    """

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    largest: float = 0.0

    def deviation(self, value: float) -> float:
        """Returns the standard deviations by which a value exceeds the mean; 0 if an earlier value was larger."""
        if self.count < _FIRST_STEPS or value <= self.largest:
            return 0.0
        return (_log(value) - self.mean) / max(math.sqrt(self.variance), _LEAST_DEVIATION)

    def add(self, value: float) -> None:
        """Includes the value of a completed step."""
        decay = min(_DECAY, self.count / (self.count + 1))  # a plain mean at first
        difference = _log(value) - self.mean
        self.mean += (1 - decay) * difference
        self.variance = decay * (self.variance + (1 - decay) * difference**2)
        self.largest = max(self.largest, value)
        self.count += 1


def _log(value: float) -> float:
    return math.log(max(value, 1e-8))


class SpikeDetector:
    """Judges each step before its parameters change.

    Args:
        threshold: standard deviations above the moving mean; 0 detects only values that are not finite.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._statistics = {"loss": _Statistics(), "gradient norm": _Statistics()}

    def fault(self, loss: float, norm: float) -> str | None:
        """Returns the reason why a step must not happen, for the user; None for a healthy step."""
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
        for name, value in (("loss", loss), ("gradient norm", norm)):
            statistics = self._statistics[name]
            deviation = statistics.deviation(value)
            if 0 < self.threshold < deviation:
                return (
                    f"the {name} is {value:.4g}, more than in any step before and {deviation:.1f} deviations above its "
                    f"moving mean, {math.exp(statistics.mean):.4g} (the limit is spike_threshold = {self.threshold:g})"
                )
        return None

    def add(self, loss: float, norm: float) -> None:
        """Includes a completed step in the statistics."""
        self._statistics["loss"].add(loss)
        self._statistics["gradient norm"].add(norm)

    def state(self) -> dict[str, dict[str, float]]:
        """Returns the statistics as JSON values."""
        return {name: dict(vars(item)) for name, item in self._statistics.items()}

    def load_state(self, state: dict[str, dict[str, float]]) -> None:
        """Restores the statistics."""
        self._statistics = {name: _Statistics(**item) for name, item in state.items()}  # type: ignore[arg-type]
