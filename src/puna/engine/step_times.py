"""`StepTimes`: predicts the time of a step from the times of the steps before it."""

from __future__ import annotations

from collections import deque

MAX_SLOWDOWN = 2.0
"""Time of a step that also reads prompts, as a multiple of the same step without them.

If more requests are reading than decoding, reading gets proportionally more time.
"""

MIN_READ = 4
"""Minimum number of prompt tokens per step. Each chunk of a prompt reads the cache of all tokens before it."""

TILE = 8
"""Backends compute tokens in tiles of this size, so that the last tile of a step should be full."""

_RECENT_STEPS = 128
"""A measured time is used for this many steps: the contexts and the load of the machine change."""

_EFFICIENT_READ = 16
"""Minimum number of tokens for which a prompt alone shows the time per prompt token, not the time of the weights."""

_SMALL_READ, _FIXED_COST = 64, 4.0
"""If a token costs this many times more in reads of fewer tokens than in larger ones, the time of a step hardly depends
on the number of tokens. On a GPU, a step that only decodes is one CUDA graph; others are launched by kernel."""

_SMALL_READS = 3
"""Number of latest reads of fewer tokens that must all cost so much. A single one is also slow after an idle time, when
no weights are in a cache, or while the machine is busy."""

_SHARED_READ = 128
"""Maximum number of prompt tokens of a step in which several requests read and none decodes.

The first of them then begins its answer early, instead of all of them late (benchmarks/NOTES.md).
"""

_WEIGHT = 0.3
"""Weight of the latest step in an average."""


class StepTimes:
    """Averages of measured times: of steps that only decode, by their number of tokens, and per prompt token."""

    def __init__(self) -> None:
        self._steps = 0
        self._decoding: dict[int, tuple[float, int]] = {}  # number of tokens -> (seconds, number of the latest step)
        self._per_prompt_token: float | None = None
        self._small_reads: deque[float] = deque(maxlen=_SMALL_READS)  # seconds per token
        self._latest_small_read = 0  # number of the step
        self._large_reads: float | None = None  # seconds per token

    def record(self, decoded: int, read: int, seconds: float) -> None:
        """Adds the time of a step that has decoded `decoded` tokens and read `read` prompt tokens."""
        self._steps += 1
        if self._steps - self._latest_small_read > _RECENT_STEPS:
            self._small_reads.clear()  # measured again
        if not read:
            average = self.plain(decoded)
            self._decoding[decoded] = (_average(average, seconds), self._steps)
            return
        without = self._nearest(decoded) if decoded else 0.0
        if without is not None and (decoded or read >= _EFFICIENT_READ):
            latest = max(0.0, seconds - without) / read
            self._per_prompt_token = _average(self._per_prompt_token, latest)
            if read < _SMALL_READ:
                self._small_reads.append(latest)
                self._latest_small_read = self._steps
            else:
                self._large_reads = _average(self._large_reads, latest)

    @property
    def per_prompt_token(self) -> float:
        """Seconds that reading one token of a prompt takes; infinite before it was measured."""
        return self._per_prompt_token or float("inf")

    def plain(self, tokens: int) -> float | None:
        """Returns the seconds of a step that decodes `tokens` tokens; None if no recent step has."""
        seconds, step = self._decoding.get(tokens, (0.0, 0))
        return seconds if step and self._steps - step <= _RECENT_STEPS else None

    def predict(self, tokens: int) -> float:
        """Returns the seconds of a step that decodes `tokens` tokens; of reading as many if no recent step has."""
        seconds = self.plain(tokens)
        return (self._per_prompt_token or 0.0) * tokens if seconds is None else seconds

    def budget(self, decoded: int, reading: int, limit: int) -> int:
        """Returns how many prompt tokens, at most `limit`, a step may read that also decodes `decoded` tokens.

        If no recent step shows the time of decoding, the next step must do so: it reads nothing.

        Args:
            reading: number of requests that are reading.
        """
        if not decoded:
            return limit if reading < 2 or self._has_fixed_cost() else min(limit, _SHARED_READ)
        without = self._nearest(decoded)
        if without is None:
            return 0
        if not self._per_prompt_token:
            return min(limit, _EFFICIENT_READ)
        if self._has_fixed_cost():
            return limit
        seconds = (MAX_SLOWDOWN - 1) * without * max(1, reading / decoded)
        # The measured time per token may become so small that the quotient is infinite.
        count = int(min(limit, seconds / self._per_prompt_token))
        count -= (decoded + count) % TILE if count >= TILE else 0
        return min(limit, max(MIN_READ, count))

    def _has_fixed_cost(self) -> bool:
        """Returns whether all of the latest small reads cost much more per token than large ones."""
        if len(self._small_reads) < _SMALL_READS or not self._large_reads:
            return False
        return min(self._small_reads) > _FIXED_COST * self._large_reads

    def _nearest(self, tokens: int) -> float | None:
        """Returns the seconds of a step that decodes `tokens` tokens, or fewer, but at least half of them."""
        counts = [count for count in self._decoding if tokens <= 2 * count <= 2 * tokens]
        return max((seconds for count in counts if (seconds := self.plain(count)) is not None), default=None)


def _average(old: float | None, latest: float) -> float:
    """Returns the new average. One extremely slow step, for example while the machine was busy, changes it little."""
    return latest if not old else old + _WEIGHT * (min(latest, 2 * old) - old)
