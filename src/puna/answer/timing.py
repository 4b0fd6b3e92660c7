"""`Timing`: when a request arrived, and when its tokens were generated."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Timing:
    """Times of one request, in seconds of `time.perf_counter`.

    Attributes:
        arrived: when the request was created, after its text was encoded.
        started: start of the first step that read a part of its prompt; None while it waits.
        first_token: end of the step that chose its first token, or the end token; None before.
        ended: end of its latest step.
        gaps: seconds between the steps that generated tokens; a step may generate several tokens.
    """

    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    gaps: list[float] = field(default_factory=list)

    def add(self, has_token: bool, started: float, ended: float) -> None:
        """Adds a step from `started` to `ended`; `has_token`: whether it has chosen a token of the request."""
        if self.started is None:
            self.started = started
        if has_token and self.first_token is None:
            self.first_token = ended
        elif has_token and self.ended is not None and ended > self.ended:
            self.gaps.append(ended - self.ended)
        self.ended = ended

    @property
    def queue_seconds(self) -> float | None:
        """Time until the first step; None while the request waits."""
        return None if self.started is None else max(0.0, self.started - self.arrived)

    @property
    def first_token_seconds(self) -> float | None:
        """Time from the arrival to the first token; None before."""
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def prefill_seconds(self) -> float:
        """Time from the start of the first step to the first token, or to the latest step if there is none."""
        end = self.ended if self.first_token is None else self.first_token
        return 0.0 if self.started is None or end is None else end - self.started

    @property
    def decode_seconds(self) -> float:
        """Time from the first token to the latest step."""
        return 0.0 if self.first_token is None or self.ended is None else self.ended - self.first_token
