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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a text for the task of `tiny.py`."""
    from tests.training.tiny import write_data

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, data: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of a run with the options `RUN` of the test's module."""
    from puna.training.api import train
    from puna.training.tasks.table import TASKS
    from tests.training.tiny import MODEL, PlainText

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "text", PlainText)
        return train(MODEL, data, output=tmp_path_factory.mktemp("finished") / "run", **request.module.RUN)


@pytest.fixture
def uninterrupted(finished: Any, registered: dict[str, Any]) -> Any:
    """The result of a run without failures; tests do not change its folder."""
    return finished
