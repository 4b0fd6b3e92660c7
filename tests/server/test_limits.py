"""The limits of requests: a value at the limit is accepted, the next larger one is a 400 that names the field."""

from __future__ import annotations

import dataclasses
import json

import pytest
from starlette.testclient import TestClient

from puna.server.app import create_app
from puna.server.service import Service
from puna.server.settings import Limits, ServerSettings

LIMITS = Limits(
    body_bytes=20_000, depth=12, n=2, prompts=2, messages=2, parts=2, tools=2, stops=2, stop_characters=5, logprobs=2,
    logit_bias=2, token_ids=2, rule_characters=20, tokens=3,
)  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fgh"]
TURNS = [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]
PART = {"type": "text", "text": "a"}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def nested(depth: int) -> dict:
    value: dict = {"a": 1}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


ROWS = [
    ("n", CHAT, lambda count: {"n": count}, 2, "n"),
    ("best_of", COMPLETION, lambda count: {"best_of": count}, 2, "best_of"),
    ("prompts", COMPLETION, lambda count: {"prompt": ["a"] * count}, 2, "prompt"),
    ("token prompts", COMPLETION, lambda count: {"prompt": [[5]] * count}, 2, "prompt"),
    ("messages", CHAT, lambda count: {"messages": TURNS[:count]}, 2, "messages"),
    (
        "parts",
        CHAT,
        lambda count: {"messages": [{"role": "user", "content": [PART] * count}]},
        2,
        "messages[0].content",
    ),
    ("tools", CHAT, lambda count: {"tools": TOOLS[:count], "tool_choice": "none"}, 2, "tools"),
    ("stops", CHAT, lambda count: {"stop": ["zz"] * count}, 2, "stop"),
    ("stop_characters", CHAT, lambda count: {"stop": "z" * count}, 5, "stop"),
    ("logprobs", CHAT, lambda count: {"logprobs": True, "top_logprobs": count}, 2, "top_logprobs"),
    ("legacy logprobs", COMPLETION, lambda count: {"logprobs": count}, 2, "logprobs"),
    ("logit_bias", CHAT, lambda count: {"logit_bias": {str(token): 1 for token in range(count)}}, 2, "logit_bias"),
    ("stop_token_ids", CHAT, lambda count: {"stop_token_ids": [5] * count}, 2, "stop_token_ids"),
    ("allowed_token_ids", CHAT, lambda count: {"allowed_token_ids": list(range(5, 5 + count))}, 2, "allowed_token_ids"),
    ("regex", CHAT, lambda count: {"structured_outputs": {"regex": "a" * count}}, 20, "structured_outputs"),
    ("tokens", CHAT, lambda count: {"max_tokens": count}, 3, "max_tokens"),
    ("depth", CHAT, lambda count: {"metadata_": nested(count - 1)}, 12, None),
]


@pytest.fixture(scope="module")
def limited(llm):
    settings = ServerSettings(name="golden", limits=LIMITS, unknown_fields="warn")
    with TestClient(create_app(Service(llm, settings), settings), "http://127.0.0.1:8000") as client:
        yield client


def send(client, path, fields):
    body = {"model": "golden", "max_tokens": 2, "temperature": 1}
    body |= {"messages": [{"role": "user", "content": "a"}]} if path == CHAT else {"prompt": "a"}
    return client.post(path, json=body | fields)


@pytest.mark.parametrize(("name", "path", "fields", "limit", "param"), ROWS, ids=[row[0] for row in ROWS])
def test_the_next_larger_value_is_refused(limited, name, path, fields, limit, param):
    accepted = send(limited, path, fields(limit))
    if name == "tools":  # two tools are accepted, but exceed the context of the small checkpoint
        assert accepted.json()["error"]["code"] == "context_length_exceeded"
    else:
        assert accepted.status_code == 200, accepted.text
    refused = send(limited, path, fields(limit + 1))
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert param is None or error["param"].startswith(param), error
    assert str(limit) in error["message"], error


def test_large_bodies_are_refused(limited):
    body = {"model": "golden", "messages": [{"role": "user", "content": "a" * 20_000}]}
    assert limited.post(CHAT, json=body).status_code == 413


@pytest.mark.parametrize("limits", [LIMITS, Limits()])
def test_large_and_deep_schemas_are_refused_in_a_second(llm, limits):
    settings = ServerSettings(name="golden", limits=dataclasses.replace(limits, body_bytes=4_000_000))
    with TestClient(create_app(Service(llm, settings), settings), "http://127.0.0.1:8000") as client:
        deep: dict = {"type": "integer"}
        for _ in range(100):
            deep = {"type": "object", "properties": {"a": deep}}
        large = {"type": "object", "properties": {f"name{index}": {"type": "integer"} for index in range(20_000)}}
        for schema in (deep, large):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
            response = send(client, CHAT, {"response_format": form})
            assert response.status_code == 400 and len(response.content) < 2000, response.text[:500]


def test_refused_keywords_are_counted(limited):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    response = send(limited, CHAT, {"response_format": form})
    assert response.status_code == 400 and "pattern" in response.json()["error"]["message"]
    assert 'puna:schema_rejects_total{keyword="pattern",model_name="golden"} 1.0' in limited.get("/metrics").text


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"nul", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe", b'"' + b"a" * 100, b"[" * 10_000],
)
def test_bodies_that_are_not_json_are_errors_without_details(limited, body):
    response = limited.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    message = json.dumps(response.json())
    assert not any(word in message for word in ("Traceback", ".py", "0x", "Error("))
