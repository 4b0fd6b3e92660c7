"""The tests of training are not collected where PyTorch is not installed; those of `data/` do not need it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.torch_files import HAS_TORCH

collect_ignore_glob = [] if HAS_TORCH else ["test_*.py"]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Adds the task of `tiny.py` to the tasks of the product, and yields their table."""
    from puna.training.tasks.table import TASKS
    from tests.training.tiny import PlainText

    monkeypatch.setitem(TASKS, "text", PlainText)
    yield TASKS
