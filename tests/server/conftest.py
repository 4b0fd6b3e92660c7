"""A server with the committed checkpoint, for all tests of this folder; one per module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.golden.files import LAYOUTS

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def llm() -> Iterator[object]:
    """The committed checkpoint as an `AsyncLLM`, which the server and the test share."""
    from puna import AsyncLLM

    model = AsyncLLM(LAYOUTS["hf"], "native")
    yield model
    model.close()


@pytest.fixture(scope="module")
def client(llm) -> Iterator[object]:
    """A client of a server without a network: starlette's TestClient."""
    from starlette.testclient import TestClient

    from puna.server.app import create_app
    from puna.server.service import Service
    from puna.server.settings import ServerSettings

    settings = ServerSettings(name="golden")
    app = create_app(Service(llm, settings), settings)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as test_client:
        yield test_client
