"""Every row of the tables of fields over HTTP: a valid value, null, a value of a wrong type, and a refused field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from puna.server.errors import ApiError
from puna.server.protocol.chat.fields import CHAT
from puna.server.protocol.completions.fields import COMPLETION as COMPLETIONS
from puna.server.protocol.fields import REFUSED, VALUES, Field, Table
from puna.server.protocol.messages.fields import COUNT_FIELDS
from puna.server.protocol.messages.fields import FIELDS as MESSAGES
from puna.server.protocol.responses.fields import FIELDS as RESPONSES
from puna.server.protocol.types import Array, Boolean, Integer, Number, OneOf, Reader, Text
from puna.server.settings import Limits
from tests.server.live import tool_checkpoint

TURNS = [{"role": "user", "content": "the llama"}]

ENDPOINTS: dict[str, tuple[Table, dict[str, Any]]] = {
    "/v1/chat/completions": (CHAT, {"model": "golden", "messages": TURNS, "max_tokens": 2}),
    "/v1/completions": (COMPLETIONS, {"model": "golden", "prompt": "the llama", "max_tokens": 2}),
    "/v1/responses": (RESPONSES, {"model": "golden", "input": "the llama", "max_output_tokens": 2}),
    "/v1/messages": (MESSAGES, {"model": "golden", "messages": TURNS, "max_tokens": 2}),
    "/v1/messages/count_tokens": (COUNT_FIELDS, {"model": "golden", "messages": TURNS}),
}

CONTEXT: dict[str, dict[str, Any]] = {"top_logprobs": {"logprobs": True}, "max_completion_tokens": {"max_tokens": None}}
"""Fields that another field requires."""

ROWS = [
    pytest.param(path, row, id=f"{path}-{row.name}") for path, (table, _) in ENDPOINTS.items() for row in table.fields
]

WRONG: tuple[Any, ...] = (True, -1.5, "\x00", [[[]]], {"\x00": {"\x00": []}})


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model whose context has space for tools."""
    from puna import AsyncLLM

    model = AsyncLLM(tool_checkpoint(tmp_path_factory.mktemp("checkpoint")), "native")
    yield model
    model.close()


def valid_value(path: str, row: Field) -> Any:
    """Returns a value that the row accepts."""
    if row.name in ENDPOINTS[path][1]:
        return ENDPOINTS[path][1][row.name]
    if row.example is not None:
        return row.example
    if row.policy is VALUES:
        return row.accepted[0]
    return _value(row.type)


def _value(kind: Any) -> Any:
    if isinstance(kind, OneOf):
        return _value(kind.types[0])
    if isinstance(kind, Text):
        return kind.values[0] if kind.values else "x"
    if isinstance(kind, Integer | Number):
        return 1
    if isinstance(kind, Array):
        return [_value(kind.item)] if kind.low else []
    return False if isinstance(kind, Boolean) else {}


def wrong_value(row: Field) -> Any:
    """Returns a value that the row's type does not accept; None if there is none."""
    return next((value for value in WRONG if not is_valid(row, value)), None)


def is_valid(row: Field, value: Any) -> bool:
    """Returns whether a row's type accepts a value."""
    try:
        row.type.read(row.name, value, Reader(Limits()))
    except ApiError:
        return False
    return True


def post(client: Any, path: str, name: str, value: Any) -> Any:
    table, body = ENDPOINTS[path]
    known = {row.name for row in table.fields}
    context = {key: item for key, item in CONTEXT.get(name, {}).items() if key in known and path != "/v1/completions"}
    return client.post(path, json={**body, **context, name: value})


def message_of(response: Any) -> str:
    return response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "row"), ROWS)
def test_the_row_holds(client: Any, path: str, row: Field) -> None:
    if row.policy is REFUSED:
        response = post(client, path, row.name, row.example if row.example is not None else "x")
        assert response.status_code == 400 and row.name in message_of(response)
        if "messages" not in path:
            assert response.json()["error"]["param"] == row.name
    else:
        response = post(client, path, row.name, valid_value(path, row))
        assert response.status_code == 200, response.text
        wrong = wrong_value(row)
        if wrong is not None:
            response = post(client, path, row.name, wrong)
            assert response.status_code == 400 and row.name in message_of(response), response.text
    if row.policy is VALUES and isinstance(row.type, Text):
        response = post(client, path, row.name, "none of them")
        assert response.status_code == 400 and row.name in message_of(response), response.text
    if not row.required:
        assert post(client, path, row.name, None).status_code == 200
