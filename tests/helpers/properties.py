"""Settings of hypothesis: each run of a test gets the same examples, and a busy machine fails no test.

`make soak` sets PUNA_EXAMPLES, which multiplies the number of examples and draws new ones in each run.
"""

from __future__ import annotations

import os

import hypothesis

_FACTOR = int(os.environ.get("PUNA_EXAMPLES", "1"))


def settings(max_examples: int) -> hypothesis.settings:
    """Returns the settings of a test with this number of examples."""
    return hypothesis.settings(
        max_examples=max_examples * _FACTOR,
        derandomize=_FACTOR == 1,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
    )
