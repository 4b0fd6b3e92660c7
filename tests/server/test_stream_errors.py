"""An error after the first token ends a stream with an event that the SDKs of OpenAI and Anthropic report."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from puna.server.generation import Running
from puna.server.updates import TextDelta


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def updates(self: Running) -> AsyncIterator[Any]:
        yield TextDelta(0, "a")
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(Running, "__aiter__", updates)


def last_event(response: Any) -> dict[str, Any]:
    assert response.status_code == 200 and "secret" not in response.text and "[DONE]" not in response.text
    name, data = response.text.strip().split("\n\n")[-1].split("\n")
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    return event


@pytest.mark.usefixtures("failing")
def test_responses_fail(client: Any) -> None:
    body = {"model": "golden", "input": "Hi", "stream": True}
    event = last_event(client.post("/v1/responses", json=body))
    assert event["type"] == "response.failed" and event["response"]["error"]["code"] == "server_error"
    assert event["response"]["output"][0]["content"][0]["text"] == "a"
    del body["stream"]
    assert client.post("/v1/responses", json=body).status_code == 500


@pytest.mark.usefixtures("failing")
def test_messages_fail(client: Any) -> None:
    body = {"model": "golden", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    event = last_event(client.post("/v1/messages", json=body))
    assert event["type"] == "error" and event["error"]["type"] == "api_error"
    del body["stream"]
    response = client.post("/v1/messages", json=body)
    assert response.status_code == 500 and response.json()["error"]["type"] == "api_error"
