"""POST /v1/chat/completions: answers equal those of `LLM.chat`."""

from __future__ import annotations

import json

import pytest

MESSAGES = [{"role": "user", "content": "the llama"}]


def chat(client, **fields):
    body = {"model": "golden", "messages": MESSAGES, "max_tokens": 8, "temperature": 0} | fields
    return client.post("/v1/chat/completions", json=body)


def events(response) -> list:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_the_answer_equals_that_of_llm(client, llm):
    import asyncio

    expected = asyncio.run(llm.chat(MESSAGES, max_tokens=8, temperature=0))
    document = chat(client).json()
    assert document["choices"][0]["message"]["content"] == expected.text
    assert document["usage"]["completion_tokens"] == len(expected.ids)
    chunks = events(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c["delta"].get("content", "") for d in chunks for c in d["choices"]) == expected.text
    assert chunks[-1]["usage"]["completion_tokens"] == len(expected.ids)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"temperature": 3}, "temperature"), ({"tempratur": 1}, "tempratur"), ({"n": 0}, "n"),
     ({"messages": []}, "messages"),
     ({"model": 3}, "model"), ({"messages": [{"role": "user"}]}, "messages[0].content"),
     ({"logit_bias": {"999999": 1}}, "logit_bias"), ({"stop_token_ids": [999999]}, "stop_token_ids"),
     ({"min_tokens": 9}, "min_tokens"), ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs"),
     ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "x"}}]}]},
      "messages[0].tool_calls[0].function.arguments")],
)  # fmt: skip
def test_invalid_fields_are_errors_that_name_the_field(client, fields, param):
    response = chat(client, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "text"),
    [("null", "the body is null; it must be a JSON object"), ("true", "the body is true"),
     ('{"model": null}', "model is null; it must be a text of at least 1 character"),
     ('{"model": [null]}', "model is [null]"),
     ('{"model": "golden", "messages": [null]}', "messages[0] is null"),
     ('{"model": "golden", "messages": [{"role": "user", "content": "a"}], "store": true}',
      "store is true; this server supports only false")],
)  # fmt: skip
def test_errors_show_values_as_in_json(client, body, text):
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"].startswith(text), response.text


def test_a_wrong_method_names_the_right_one(client):
    response = client.get("/v1/chat/completions")
    message = response.json()["error"]["message"]
    assert (response.status_code, response.headers["allow"]) == (405, "POST") and message.endswith("; use POST")


def test_unknown_model(client):
    response = chat(client, model="goldn")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert "golden" in response.json()["error"]["message"]
