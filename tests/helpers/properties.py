"""The number of random examples, and settings of hypothesis: each run of a test gets the same examples, and a busy
machine fails no test.

`make soak` sets PUNA_EXAMPLES, which multiplies the number of examples; hypothesis draws new ones in each run.
"""

from __future__ import annotations

import os

import hypothesis

FACTOR = int(os.environ.get("PUNA_EXAMPLES", "1"))
"""By which tests multiply their number of examples."""


def settings(max_examples: int) -> hypothesis.settings:
    """Returns the settings of a test with this number of examples."""
    return hypothesis.settings(
        max_examples=max_examples * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
    )
