"""The reasoning between <think> and </think> is separated from the answer, in the fields of each interface."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

from puna.answer import Delta
from puna.server import thinking
from puna.server.thinking import CLOSE, OPEN, ThinkingParser
from tests.golden.files import LAYOUTS

TEXTS = [
    "", "answer", "<think>", "<think>a", "<think>\n\n</think>\n\nanswer", "<think>\na b\n\nc\n</think>\n\nan <b> swer",
    "\n <think>a</think>b</think>c", "a <think>b</think>", "<thin", "<think>a</thin", "<think>a</think>", "<b>a</b>",
]  # fmt: skip


def expected(text: str, is_open: bool) -> tuple[str, str]:
    """Returns the reasoning and the answer of a complete text, by a regular expression."""
    pattern = r"()(.*?)(?:</think>\n*(.*)|$)" if is_open else r"(\s*<think>)(.*?)(?:</think>\n*(.*)|$)"
    match = re.fullmatch(pattern, text, re.S)
    return (match[2].strip("\n"), match[3] or "") if match else ("", text)


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_text_is_split_in_the_same_way_however_it_arrives(text, is_open):
    """Each character is a token, so that numbers of tokens are numbers of characters."""
    ids = tuple(map(ord, text))
    counts = set()
    for seed in range(20):
        parser = ThinkingParser(is_open, lambda ids: "".join(map(chr, ids)))
        parts: list[tuple[Delta | None, Delta]] = []
        start, source = 0, random.Random(seed)
        while start < len(ids) or not parts or parts[-1][1].finish_reason is None:
            end = len(ids) if seed == 0 else min(len(ids), start + source.randint(1, 5))
            reason: Any = "stop" if end == len(ids) else None
            parts.append(parser.split(Delta(text[start:end], ids[start:end], (), reason)))
            start = end
        reasoning = "".join(part.text for part, _ in parts if part is not None)
        assert (reasoning, "".join(part.text for _, part in parts)) == expected(text, is_open)
        joined = [token for part in parts for item in part if item is not None for token in item.ids]
        assert tuple(joined) == ids
        counts.add(sum(len(part.ids) for part, _ in parts if part is not None))
    if CLOSE in text and expected(text, is_open)[0] and expected(text, is_open)[1]:
        assert max(counts) - min(counts) <= len(OPEN) + len(CLOSE) + 4  # the tags, and deltas that contain two parts


def test_the_tokens_of_a_divided_closing_tag_belong_to_the_reasoning():
    parser = ThinkingParser(True, lambda ids: "".join(map(chr, ids)))
    deltas = [parser.split(Delta(text, tuple(map(ord, text)), (), None)) for text in ("a</thi", "nk>", "\n", "\nb")]
    parts = [(part and len(part.ids), len(rest.ids)) for part, rest in deltas]
    assert parts == [(6, 0), (3, 0), (1, 0), (None, 2)]
    parser = ThinkingParser(True, lambda ids: "".join(map(chr, ids)))
    parser.split(Delta("a</thi", tuple(map(ord, "a</thi")), (), None))
    part, rest = parser.split(Delta("nk>b", tuple(map(ord, "nk>b")), (), None))
    assert part is not None and (len(part.ids), len(rest.ids), rest.text) == (3, 1, "b")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model whose template ends with the opening tag."""
    from puna import AsyncLLM

    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(LAYOUTS["hf"], folder)
    path = folder / "tokenizer_config.json"
    template = "{# </think> #}{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    model = AsyncLLM(folder, "native")
    yield model
    model.close()


@pytest.fixture(scope="module")
def word(llm: Any) -> tuple[str, str, str]:
    """A word of the model's answer, and the text before and after it; the word takes the place of the closing tag."""
    import asyncio

    text = str(asyncio.run(llm.chat([{"role": "user", "content": "the llama"}], max_tokens=48, temperature=0)))
    matches = [match for match in re.finditer(r" \w+", text) if text.find(match[0]) == match.start() > 10]
    before, name, after = text.partition(matches[0][0])
    return before.strip("\n"), name, after.lstrip("\n")


@pytest.fixture
def parts(word: Any) -> tuple[str, str]:
    return word[0], word[2]


BODY = {"model": "golden", "messages": [{"role": "user", "content": "the llama"}], "temperature": 0}


def chat(client: Any, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={**BODY, "max_tokens": 48, **fields})


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch, word: Any) -> None:
    """Makes the word the closing tag."""
    monkeypatch.setattr(thinking, "CLOSE", word[1])
    parser = thinking.thinking_parser
    monkeypatch.setattr(
        "puna.server.generation.thinking_parser", lambda template, ids, tok: parser(template + word[1], ids, tok)
    )


@pytest.mark.usefixtures("closing")
@pytest.mark.parametrize("more", [{}, {"n": 2}])
def test_a_chat_answer_has_the_reasoning_in_a_field(client, parts, more):
    document = chat(client, return_token_ids=True, logprobs=True, **more).json()
    for choice in document["choices"]:
        message = choice["message"]
        assert (message["reasoning_content"], message["content"]) == parts
        assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    usage = document["usage"]
    count = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < count < usage["completion_tokens"]


@pytest.mark.usefixtures("closing")
def test_a_stream_of_chat_has_the_reasoning_first(client, parts):
    deltas = [item["choices"][0]["delta"] for item in events(chat(client, stream=True)) if item["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == parts[0]
    assert "".join(delta.get("content") or "" for delta in deltas) == parts[1]
    kinds = ["reasoning_content" in delta for delta in deltas if delta.get("reasoning_content") or delta.get("content")]
    assert kinds == sorted(kinds, reverse=True)


@pytest.mark.usefixtures("closing")
def test_responses_have_an_item_of_reasoning(client, parts):
    pytest.importorskip("openai")
    from openai.types.responses import Response, ResponseStreamEvent

    from tests.server.sdk_types import parse

    body = {"model": "golden", "input": "the llama", "temperature": 0, "max_output_tokens": 48}
    document = client.post("/v1/responses", json=body).json()
    assert document.pop("store") is False
    response = parse(Response, document)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert (response.output[0].content[0].text, response.output_text) == parts
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    streamed = events(client.post("/v1/responses", json={**body, "stream": True}))
    for event in streamed:
        if "response" in event:
            event["response"].pop("store")
        parse(ResponseStreamEvent, event)
    assert "".join(item["delta"] for item in streamed if item["type"] == "response.reasoning_text.delta") == parts[0]
    assert "".join(item["delta"] for item in streamed if item["type"] == "response.output_text.delta") == parts[1]


@pytest.mark.usefixtures("closing")
def test_messages_have_a_block_of_thinking(client, parts):
    pytest.importorskip("anthropic")
    from anthropic.types import Message, RawMessageStreamEvent

    from tests.server.sdk_types import parse

    body = {"model": "golden", "messages": BODY["messages"], "temperature": 0, "max_tokens": 48}
    message = parse(Message, client.post("/v1/messages", json=body).json())
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[1].text) == parts
    streamed = events(client.post("/v1/messages", json={**body, "stream": True}))
    for event in streamed:
        if event["type"] != "ping":
            parse(RawMessageStreamEvent, event)
    deltas = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == parts[0]
    assert "".join(delta.get("text", "") for delta in deltas) == parts[1]
    starts = [event["content_block"]["type"] for event in streamed if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]
    assert [delta["type"] for delta in deltas].count("signature_delta") == 1


def test_an_answer_without_a_closing_tag_is_reasoning(client):
    message = chat(client).json()["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"] == ""


def test_an_answer_that_follows_a_rule_is_no_reasoning(client):
    pytest.importorskip("llguidance")
    message = chat(client, structured_outputs={"choice": ["yes", "no"]}).json()["choices"][0]["message"]
    assert message["content"] in ("yes", "no") and "reasoning_content" not in message


def test_an_answer_that_is_continued_is_no_reasoning(client):
    messages = [{"role": "assistant", "content": "the llama"}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    assert "reasoning_content" not in chat(client, **fields).json()["choices"][0]["message"]
