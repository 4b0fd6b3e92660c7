"""One server for all clients, with a checkpoint whose chat template has tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.clients.weather import MODEL
from tests.server.live import live_server, tool_checkpoint

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the server's model."""
    return tool_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="package")
def address(checkpoint: Path) -> Iterator[str]:
    """The address of the server, such as http://127.0.0.1:12345."""
    from puna import AsyncLLM

    model: Any = AsyncLLM(checkpoint, "native")
    with live_server(model, name=MODEL) as url:
        yield url
    model.close()
