"""Words that answers must not contain, service tiers, templates of requests, and vLLM's paths."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from puna.server.app import create_app
from puna.server.protocol.endpoint import _queue_options
from puna.server.service import Service
from puna.server.settings import ServerSettings

PROMPT = "the llama"
MESSAGES = [{"role": "user", "content": PROMPT}]


def complete(client: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "golden", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    response = client.post("/v1/completions", json={**body, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def chat(client: Any, **fields: Any) -> Any:
    body = {"model": "golden", "messages": MESSAGES, "max_tokens": 2, "temperature": 0}
    return client.post("/v1/chat/completions", json={**body, **fields})


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("speculate", [True, False])
def test_a_token_that_completes_a_bad_word_is_replaced_by_the_next_likely_one(llm, length, speculate):
    """The expected token is the second most likely one of an answer without bad words."""
    from puna import LLM
    from tests.golden.files import LAYOUTS

    with LLM(LAYOUTS["hf"], "native") as model:
        plain = model.generate(PROMPT, max_tokens=6, temperature=0, logprobs=2)
        bad = plain.ids[4 - length : 4]
        assert plain.logprobs is not None
        first, second = (token for token, _ in plain.logprobs[3].top)
        answer = model.generate(PROMPT, max_tokens=12, temperature=0, bad_words_ids=[bad, (0, 1)], speculate=speculate)
    assert first == plain.ids[3]
    assert answer.ids[:4] == (*plain.ids[:3], second)
    assert all(answer.ids[index : index + length] != bad for index in range(12))


def test_bad_words_are_encoded_with_and_without_a_space(client, llm):
    plain = complete(client)
    word = plain["text"].split()[1]
    answer = complete(client, bad_words=[word])
    assert answer["token_ids"] != plain["token_ids"]
    ids = tuple(llm.tokenizer.encode(" " + word, add_special_tokens=False))
    windows = [tuple(answer["token_ids"][index : index + len(ids)]) for index in range(12)]
    assert ids not in windows
    assert complete(client, bad_words=[]) == plain


@pytest.mark.parametrize(("words", "message"), [([" "], "blank"), ("x", "array"), ([""], "characters")])
def test_bad_words_that_cannot_be_meant_are_refused(client, words, message):
    response = client.post("/v1/completions", json={"model": "golden", "prompt": PROMPT, "bad_words": words})
    assert response.status_code == 400
    assert "bad_words" in response.json()["error"]["message"] and message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [(5, "list of lists"), ([[]], "at least one"), ([[10**6]], "vocabulary"), ([5], "list of token ids")],
)
def test_ids_of_bad_words_are_checked(ids, message):
    from puna import LLM, PunaError
    from tests.golden.files import LAYOUTS

    with LLM(LAYOUTS["hf"], "native") as model, pytest.raises(PunaError, match=message):
        model.generate(PROMPT, max_tokens=1, bad_words_ids=ids)


@pytest.mark.parametrize(
    ("tier", "echoed", "priority"), [("auto", "default", 3), ("flex", "flex", 13), ("priority", "priority", -7)]
)
def test_service_tiers_change_the_priority(client, llm, monkeypatch, tier, echoed, priority):
    requests = []
    check = llm._engine.check
    monkeypatch.setattr(llm._engine, "check", lambda request: (requests.append(request), check(request))[1])
    response = chat(client, service_tier=tier, priority=3)
    assert response.json()["service_tier"] == echoed
    assert {request.priority for request in requests} == {priority}
    assert _queue_options({"service_tier": tier, "priority": 3})["priority"] == priority
    response = client.post("/v1/responses", json={"model": "golden", "input": PROMPT, "service_tier": tier})
    assert response.json()["service_tier"] == echoed
    assert requests[-1].priority == priority - 3


def test_a_template_of_a_request_is_refused_unless_the_server_trusts_it(client, llm):
    template = "{{ messages[0].content }} lives"
    refused = chat(client, chat_template=template)
    assert refused.status_code == 400 and "--trust-request-chat-template" in refused.json()["error"]["message"]
    settings = ServerSettings(name="golden", trust_request_chat_template=True)
    app = create_app(Service(llm, settings), settings)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as trusting:
        answer = chat(trusting, chat_template=template, return_token_ids=True)
        assert answer.json()["prompt_token_ids"] == llm.tokenizer.encode(f"{PROMPT} lives", add_special_tokens=False)
        assert chat(trusting).json()["choices"] == chat(client).json()["choices"]
        tools = [{"type": "function", "function": {"name": "f"}}]
        for fields in ({"chat_template": "{% if %}"}, {"chat_template": template, "tools": tools}):
            response = chat(trusting, **fields)
            assert response.status_code == 400 and response.json()["error"]["param"] == "chat_template"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/score", {"text_1": PROMPT, "text_2": " lives"}), ("/classify", {"input": PROMPT})],
)
def test_paths_of_vllm_answer_like_those_of_version_1(client, path, body):
    first, second = (client.post(prefix + path, json={"model": "golden", **body}) for prefix in ("/v1", ""))
    assert first.status_code == second.status_code
    same = ({"error"}, {"data", "usage"})[first.status_code == 200]
    assert {name: first.json()[name] for name in same} == {name: second.json()[name] for name in same}


def test_accepted_guesses_are_shown_by_position(client, llm):
    before = dict(llm._engine.counters.accepted_positions)
    llm._engine.counters.accepted_positions.update({0: 3, 1: 2})
    lines = client.get("/metrics").text.splitlines()
    name = "puna:spec_decode_num_accepted_tokens_per_pos_total"
    for position, count in ((0, 3), (1, 2)):
        total = float(before.get(position, 0) + count)
        assert f'{name}{{model_name="golden",position="{position}"}} {total}' in lines


def test_chat_returns_the_log_probabilities_of_the_prompt(client, llm):
    """The same as those of `LLM.nll` for the tokens of the rendered conversation."""
    import asyncio

    document = chat(client, prompt_logprobs=0, return_token_ids=True).json()
    ids = document["prompt_token_ids"]
    losses = asyncio.run(llm.nll(ids))
    first, *rows = document["prompt_logprobs"]
    assert first is None
    assert [-row[str(token)]["logprob"] for token, row in zip(ids[1:], rows, strict=True)] == pytest.approx(
        losses.tolist(), abs=1e-6
    )


def test_chat_returns_speeds_and_echoes_the_text_that_it_continues(client):
    messages = [*MESSAGES, {"role": "assistant", "content": "One day"}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    plain = chat(client, **fields).json()["choices"][0]["message"]["content"]
    document = chat(client, **fields, echo=True, timings_per_token=True).json()
    assert document["choices"][0]["message"]["content"] == "One day" + plain
    timings, usage = document["timings"], document["usage"]
    assert timings["predicted_n"] == usage["completion_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert (timings["cache_n"], timings["prompt_n"]) == (cached, usage["prompt_tokens"] - cached)
    assert timings["prompt_ms"] >= 0 and timings["predicted_ms"] >= 0


def test_the_limit_of_tokens_of_the_server_ends_answers(llm):
    from puna.server.settings import Limits

    settings = ServerSettings(name="golden", limits=Limits(tokens=3))
    with TestClient(create_app(Service(llm, settings), settings), "http://127.0.0.1:8000") as limited:
        document = chat(limited, max_tokens=None, ignore_eos=True).json()
        assert document["usage"]["completion_tokens"] == 3
        assert document["choices"][0]["finish_reason"] == "length"
        assert chat(limited, max_tokens=4).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": [PROMPT, "One day the sun"]}),
        ("/v1/score", {"text_1": PROMPT, "text_2": [" lives", " is"]}),
    ],
)
def test_usage_counts_all_tokens_of_the_inputs(client, llm, path, body):
    texts = body["input"] if "input" in body else [PROMPT + text for text in body["text_2"]]
    expected = sum(len(llm.tokenizer.encode(text)) for text in texts)
    usage = client.post(path, json={"model": "golden", **body}).json()["usage"]
    assert usage == {"prompt_tokens": expected, "total_tokens": expected}
