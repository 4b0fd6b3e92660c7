"""POST /v1/chat/completions: answers equal those of `LLM.chat`."""

from __future__ import annotations

import json
import re

import pytest

from puna.server.protocol.choices import ChunkHead

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


def _limited(max_tokens: str) -> str:
    return f'{{"model": "golden", "messages": [{{"role": "user", "content": "a"}}], "max_tokens": {max_tokens}}}'


@pytest.mark.parametrize(
    ("body", "text"),
    [("null", "the body is null; it must be a JSON object"), ("true", "the body is true"),
     ('{"model": null}', "model is null; it must be a text of at least 1 character"),
     ('{"model": [null]}', "model is [null]"),
     ('{"model": "golden", "messages": [null]}', "messages[0] is null"),
     ('{"model": "golden", "messages": [{"role": "user", "content": "a"}], "store": true}',
      "store is true; this server supports only false"),
     (_limited("1" + 30 * "0"),
      f"max_tokens is {10**30}, which is outside the range of int64: {-2**63} to {2**63 - 1}"),
     (_limited("1e30"), f"max_tokens is 1e+30; it must be an integer from 1 to {2**63 - 1}"),
     (_limited("0.0"), "max_tokens is 0.0; it must be an integer of at least 1"),
     (_limited("0"), "max_tokens is 0; it must be an integer of at least 1")],
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


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2, "stream_options": {"include_usage": True}}, {"logprobs": 1}, {"return_token_ids": True},
     {"stream_options": {"continuous_usage_stats": True}}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_encoding_only_the_text_of_chunks_changes_nothing(client, monkeypatch, path, fields):
    prompt = {"messages": MESSAGES} if "chat" in path else {"prompt": "the llama"}
    fields = fields | ({"logprobs": True} if "logprobs" in fields and "chat" in path else {})
    body = {"model": "golden", "max_tokens": 20, "temperature": 1.9, "seed": 5, "stream": True} | prompt | fields

    def stream() -> str:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return re.sub(r'"id":"[^"]+"|"created":\d+|"(completion|total)_tokens":\d+', "", response.text)

    chunks = stream()
    monkeypatch.setattr(ChunkHead, "text_event", lambda self, kind, text, rest: self.event(rest(text)))
    assert stream() == chunks and chunks.count("data: ") > 10


@pytest.mark.parametrize("text", ["", "a", '"\\\n', "\0", "…ü", "\ud83d", '"},"'])
def test_a_chunk_with_another_text_equals_the_encoded_document(text):
    head = ChunkHead({"model": "a\0b"})

    def rest(content: str) -> dict[str, object]:
        return {"choices": [{"delta": {"content": content}, "finish_reason": None}], "usage": None}

    for content in ("first", text):
        assert head.text_event(0, content, rest) == head.event(rest(content))
