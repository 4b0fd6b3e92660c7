"""The tables of fields agree with the schemas of OpenAPI and with the documents; test_fields.py tests their policies.

`python -m tests.server.test_field_tables` writes docs/serving-fields.md.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

fastapi = pytest.importorskip("fastapi")
jsonschema = pytest.importorskip("jsonschema")

from puna.server.app import create_app  # noqa: E402
from puna.server.protocol.chat.fields import CHAT  # noqa: E402
from puna.server.protocol.fields import Policy, read  # noqa: E402
from puna.server.protocol.pages import markdown  # noqa: E402
from puna.server.service import Service  # noqa: E402
from puna.server.settings import ServerSettings  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving-fields.md"
START = "<!-- the rest is generated -->\n"

MESSAGES = [{"role": "user", "content": "the llama"}]
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/completions": {"prompt": "the llama", "max_tokens": 1},
}
"""The smallest requests of the endpoints whose rows are tested here, without `model`."""

NEEDS = {"top_logprobs": {"logprobs": True}, "tool_choice": {}, "max_completion_tokens": {"max_tokens": None},
         "echo": {}, "min_tokens": {"max_tokens": 2}}  # fmt: skip
"""Fields that a field needs."""

VALUES = [
    None, True, False, 0, 1, -1, 2**63 - 1, 0.5, 1e300, "", "x", "y" * 3000, [], [1], ["x"], [[1]], [None], {},
    {"x": 1}, {"1": 1}, {"type": "text"}, {"include_usage": True}, [{"role": "user", "content": "x"}],
]  # fmt: skip
"""Values of all types, tried as every field."""


@cache
def application() -> Any:
    settings = ServerSettings()
    return create_app(Service("unused", settings), settings)


def rows() -> list[tuple[str, Any]]:
    return [
        (item.path, row) for item in application().state.endpoints if item.path in BASES for row in item.table.fields
    ]


every_row = pytest.mark.parametrize(("path", "row"), rows(), ids=lambda value: getattr(value, "name", value))


def post(client, path: str, **fields: Any):
    return client.post(path, json={"model": "golden", **BASES[path], **fields})


@every_row
def test_values_are_accepted_exactly_if_the_schema_of_openapi_accepts_them(client, path, row):
    """jsonschema decides independently. A valid value may be refused only because of what it means."""
    schema = application().openapi()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert (row.name in schema["properties"]) == (row.policy is not Policy.REFUSED)
    if row.policy is Policy.REFUSED:
        return
    for value in VALUES:
        valid = jsonschema.Draft202012Validator(schema["properties"][row.name]).is_valid(value)
        response = post(client, path, **NEEDS.get(row.name, {}), **{row.name: value})
        assert response.status_code in (200, 400, 404), (value, response.text)
        if not valid:
            error = response.json()["error"]
            assert response.status_code == 400, (value, response.text)
            assert error["param"].startswith(row.name), (value, error)
        elif response.status_code == 400:
            assert "must be" not in response.json()["error"]["message"] or row.name in MEANING, (value, response.text)


MEANING = {"logit_bias", "prompt", "messages", "stop_token_ids", "allowed_token_ids", "structured_outputs", "echo"}
"""Fields with valid values that the model cannot use, such as ids outside its vocabulary."""


@pytest.mark.parametrize("path", BASES)
def test_responses_match_their_schema(client, path):
    responses = application().openapi()["paths"][path]["post"]["responses"]
    full = (
        {"logprobs": 1} if path == "/v1/completions" else {"logprobs": True, "top_logprobs": 1, "metadata": {"a": "b"}}
    )
    for fields in ({}, {**full, "return_token_ids": True, "prompt_logprobs": 1, "n": 2}):
        response = post(client, path, **fields)
        assert response.status_code == 200, response.text
        jsonschema.validate(response.json(), responses["200"]["content"]["application/json"]["schema"])
    error = post(client, path, n="x")
    jsonschema.validate(error.json(), responses["400"]["content"]["application/json"]["schema"])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"input": "the llama", "max_output_tokens": 2, "top_logprobs": 1, "metadata": {"a": "b"}}),
        ("/v1/responses", {"input": MESSAGES, "text": {"format": {"type": "json_object"}}, "max_output_tokens": 2}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 2}),
        ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    ],
)
def test_responses_of_further_endpoints_match_their_schema(client, path, fields):
    responses = application().openapi()["paths"][path]["post"]["responses"]
    for status, extra in (("200", {}), ("400", {"model": 1})):
        response = client.post(path, json={"model": "golden", **fields, **extra})
        assert response.status_code == int(status), response.text
        jsonschema.validate(response.json(), responses[status]["content"]["application/json"]["schema"])


def test_unknown_fields(client):
    response = post(client, "/v1/chat/completions", temperatur=1)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperatur"
    assert "'temperature'" in response.json()["error"]["message"]
    messages = [{"role": "user", "content": "the llama", "id": "m1", "zoo": None}]
    response = post(client, "/v1/chat/completions", messages=messages)
    assert response.status_code == 200, response.text
    assert response.headers["x-puna-ignored"] == "messages[0].id,messages[0].zoo"
    tools = [{"type": "function", "function": {"name": "f", "extra": 1}, "cache": True}]
    values = read(CHAT, {"model": "golden", "messages": MESSAGES, "tools": tools}, ServerSettings())
    assert values.ignored == ("tools[0].cache", "tools[0].function.extra")


def test_unknown_fields_can_be_listed_instead(llm):
    from starlette.testclient import TestClient

    settings = ServerSettings(name="golden", unknown_fields="warn")
    with TestClient(create_app(Service(llm, settings), settings), base_url="http://localhost") as client:
        response = post(client, "/v1/chat/completions", temperatur=1, **{"a\nb": 1})
    assert response.status_code == 200
    assert response.headers["x-puna-ignored"] == "a?b,temperatur"


def text_of_the_page() -> str:
    return (
        PAGE.read_text().partition(START)[0] + START + markdown(application().state.endpoints, ServerSettings().limits)
    )


def test_the_page_is_current():
    assert PAGE.read_text() == text_of_the_page(), "run: python -m tests.server.test_field_tables"


def test_the_page_of_the_server_lists_every_field_and_loads_nothing_else(client):
    page = client.get("/docs")
    assert page.status_code == 200
    for path, row in rows():
        assert f"<code>{row.name}</code>" in page.text, path
    assert "http" not in page.text.replace("HTTP", "")
    assert "<script" not in page.text


if __name__ == "__main__":
    PAGE.write_text(text_of_the_page())
