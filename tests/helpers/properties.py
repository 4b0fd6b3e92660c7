"""Settings of hypothesis: each run of a test gets the same examples, and a busy machine fails no test."""

from __future__ import annotations

from functools import partial

import hypothesis

settings = partial(
    hypothesis.settings,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
