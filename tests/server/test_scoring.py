"""Embeddings, scores, decisions and tokens over HTTP: the values are those of `LLM`, and the SDK reads them."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import Any

import numpy as np
import pytest

from tests.golden.files import LAYOUTS

TEXTS = ["the llama lives", "grass", "a herd of llamas"]


def post(client: Any, path: str, **fields: Any) -> Any:
    return client.post(path, json=fields)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_embeddings_are_those_of_llm(client, llm, pooling, normalize):
    expected = asyncio.run(llm.embed(TEXTS, pooling=pooling, normalize=normalize))
    options = {"model": "golden", "pooling": pooling, "normalize": normalize}
    numbers = post(client, "/v1/embeddings", input=TEXTS, **options).json()
    np.testing.assert_array_equal(np.array([row["embedding"] for row in numbers["data"]], np.float32), expected)
    encoded = post(client, "/v1/embeddings", input=TEXTS, encoding_format="base64", **options).json()
    rows = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in encoded["data"]]
    np.testing.assert_array_equal(np.stack(rows), expected)
    ids = [llm.tokenizer.encode(text) for text in TEXTS]
    tokens = post(client, "/v1/embeddings", input=ids, **options).json()
    assert tokens["data"] == numbers["data"]
    assert post(client, "/v1/embeddings", input=ids[0], **options).json()["data"] == numbers["data"][:1]
    assert numbers["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}


def test_the_openai_sdk_reads_embeddings_and_decisions(client, llm):
    openai = pytest.importorskip("openai")
    from openai.types import CreateEmbeddingResponse

    response = post(client, "/v1/embeddings", model="golden", input="the llama", dimensions=64).json()
    parsed = CreateEmbeddingResponse.model_validate(response)
    assert len(parsed.data[0].embedding) == 64 and parsed.usage.total_tokens > 0
    if not hasattr(openai.resources, "Decisions"):
        pytest.skip("this release of openai has no decisions")
    from openai.types.decision import Decision

    decision = Decision.model_validate(decide(client).json())
    assert [answer.type for answer in decision.answers] == ["predicate", "choice", "score"]
    assert decision.model_extra == {} and all(answer.model_extra == {} for answer in decision.answers)


QUESTIONS = [
    {"type": "predicate", "instructions": "An animal is meant.", "name": "animal"},
    {"type": "choice", "instructions": [{"type": "input_text", "text": "Which?"}, {"type": "input_json",
     "data": {"a": 1}}], "choices": [{"value": "llama", "description": "woolly"}, {"value": True}, {"value": "grass"}]},
    {"type": "score", "instructions": "How nice?", "levels": [{"label": "bad"}, {"label": "good"}, {"label": "best"}]},
]  # fmt: skip


def decide(client: Any, **fields: Any) -> Any:
    body = {"model": "golden", "input": "The llama eats.", "questions": QUESTIONS}
    return post(client, "/v1/decisions", **(body | fields))


def test_decisions_are_likelihoods_of_complete_options(client, llm):
    document = decide(client).json()
    predicate, choice, score = document["answers"]
    question = "The llama eats.\n\nAn animal is meant.\nIs this true? Answer Yes or No."
    messages = [{"role": "user", "content": question}]
    context = llm.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    end = [*llm._turn_end_ids][:1] or [llm.tokenizer.eos_token_id]
    options = [llm.tokenizer.encode(text, add_special_tokens=False) + end for text in ("Yes", "No")]
    yes, no = asyncio.run(llm.score(context, options))
    assert predicate == {"type": "predicate", "name": "animal", "probability": pytest.approx(
        math.exp(yes) / (math.exp(yes) + math.exp(no)), rel=1e-12)}  # fmt: skip
    usage = decide(client, questions=QUESTIONS[:1]).json()["usage"]
    beginnings = {(*context, *ids)[: count + 1] for ids in options for count in range(len(context) + len(ids))}
    assert usage["input_tokens"] == usage["total_tokens"] == len(beginnings)  # common beginnings count once
    assert [item["value"] for item in choice["probabilities"]] == ["llama", True, "grass"]
    for answer in (choice, score):
        assert math.fsum(item["probability"] for item in answer["probabilities"]) == pytest.approx(1)
        assert 0 < answer["confidence"] <= 1 and answer["name"] is None
    best = max(choice["probabilities"], key=lambda item: item["probability"])
    assert choice["choice"] == best["value"]
    assert [(item["label"], item["value"]) for item in score["probabilities"]] == [("bad", 0), ("good", 1), ("best", 2)]
    assert score["score"] == pytest.approx(sum(item["value"] * item["probability"] for item in score["probabilities"]))


def test_the_state_is_read_once(client, llm, monkeypatch):
    counts, forward = [], llm._backend.forward

    def counted(chunks: Any, *rest: Any) -> Any:
        counts.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks, *rest)

    monkeypatch.setattr(llm._backend, "forward", counted)
    state = "a llama eats grass in the high grassland and lives there " * 10
    questions = [{**QUESTIONS[0], "instructions": text} for text in ("one", "two", "three", "four")]
    usage = decide(client, input=state, questions=questions).json()["usage"]
    length = len(llm.tokenizer.encode(state))
    assert length > 128
    assert length < sum(counts) < length + 8 * 64
    assert usage["input_tokens"] == usage["total_tokens"] < length + 8 * 64


def test_decisions_about_a_conversation(client):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]},
    ]
    (answer,) = decide(client, input=items, questions=QUESTIONS[:1]).json()["answers"]
    assert 0 < answer["probability"] < 1


def test_scores_are_those_of_llm(client, llm):
    continuations = [" lives", " is a bird", " grass"]
    expected = asyncio.run(llm.score("the llama", continuations))
    document = post(client, "/v1/score", model="golden", text_1="the llama", text_2=continuations).json()
    assert [row["score"] for row in document["data"]] == expected.tolist()
    single = post(client, "/v1/score", model="golden", text_1="the llama", text_2=" lives").json()
    assert single["data"] == document["data"][:1]
    pairs = post(client, "/v1/score", model="golden", text_1=["the llama"] * 3, text_2=continuations).json()
    assert pairs["data"] == document["data"]
    ids = llm.tokenizer.encode("the llama"), llm.tokenizer.encode(" lives", add_special_tokens=False)
    tokens = post(client, "/v1/score", model="golden", text_1=ids[0], text_2=ids[1]).json()
    assert tokens["data"][0]["score"] == asyncio.run(llm.score(ids[0], [ids[1]]))[0]


def test_tokens_are_those_of_the_tokenizer(client, llm):
    tokenizer, text = llm.tokenizer, "the llama\nlives <s> é"
    document = post(client, "/tokenize", prompt=text, return_token_strs=True).json()
    assert document["tokens"] == tokenizer.encode(text) and document["count"] == len(document["tokens"])
    assert document["token_strs"] == tokenizer.convert_ids_to_tokens(document["tokens"])
    assert document["max_model_len"] == llm.config.context_length
    plain = post(client, "/tokenize", prompt=text, add_special_tokens=False, model="golden").json()["tokens"]
    assert plain == tokenizer.encode(text, add_special_tokens=False)
    assert post(client, "/detokenize", tokens=plain).json() == {
        "prompt": tokenizer.decode(plain, clean_up_tokenization_spaces=False)
    }
    messages = [{"role": "user", "content": "the llama"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert post(client, "/apply-template", messages=messages).json() == {"prompt": rendered}
    ids = post(client, "/tokenize", messages=messages).json()["tokens"]
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    described = post(client, "/apply-template", messages=messages, tools=[tool]).json()["prompt"]
    assert '"weather"' in described and "<tool_call>" in described


def test_labels_are_those_of_llm(tmp_path):
    from starlette.testclient import TestClient

    from puna import AsyncLLM
    from puna.server.app import create_app
    from puna.server.service import Service
    from puna.server.settings import ServerSettings
    from tests.helpers.classifiers import write_classifier

    model, settings = (
        AsyncLLM(write_classifier(LAYOUTS["hf"], tmp_path / "classifier", 3), "native"),
        ServerSettings(name="labels"),
    )
    with TestClient(create_app(Service(model, settings), settings), "http://127.0.0.1:8000") as client:
        document = post(client, "/v1/classify", model="labels", input=TEXTS).json()
        expected = asyncio.run(model.classify(TEXTS))
        assert [(row["label"], tuple(row["probs"])) for row in document["data"]] == [
            (item.label, item.scores) for item in expected
        ]
        assert [row["num_classes"] for row in document["data"]] == [len(item.scores) for item in expected]
        assert [row["index"] for row in document["data"]] == [0, 1, 2]
    model.close()


LONG = "the llama lives in the high grassland " * 60


@pytest.mark.parametrize(
    ("path", "fields", "param", "part"),
    [
        ("/v1/embeddings", {"input": "a", "dimensions": 8}, "dimensions", "64"),
        ("/v1/embeddings", {"input": []}, "input", "input"),
        ("/v1/embeddings", {"input": LONG}, "input", "256"),
        ("/v1/embeddings", {"input": [[5, 10**6]]}, None, "1000000"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
        ("/v1/embeddings", {}, "input", "missing"),
        ("/v1/classify", {"input": "a"}, None, "the model has no classification head"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "as many"),
        ("/v1/score", {"text_1": "a", "text_2": LONG}, "text_2", "256"),
        ("/v1/score", {"text_1": "a", "text_2": ""}, "text_2", "no tokens"),
        ("/v1/decisions", {"input": "a", "questions": []}, "questions", "400"),
        ("/v1/decisions", {"input": "a", "questions": [{"type": "guess"}]}, "questions[0].type", "predicate"),
        ("/v1/decisions", {"input": LONG, "questions": QUESTIONS}, "input", "256"),
        ("/v1/decisions", {"input": "a", "questions": [{"type": "choice", "instructions": "b", "choices": [
            {"value": True}, {"value": "true"}]}]}, "questions[0].choices", "'true'"),
        ("/v1/decisions", {"input": "a", "questions": [{"type": "score", "instructions": "b", "levels": [
            {"label": "x"}]}]}, "questions[0].levels", "2"),
        ("/tokenize", {}, "prompt", "messages"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt", "either"),
        ("/detokenize", {"tokens": [10**6]}, "tokens", "1000000"),
        ("/detokenize", {"tokens": "a"}, "tokens", "array"),
        ("/apply-template", {"messages": []}, "messages", "messages"),
    ],
)  # fmt: skip
def test_invalid_requests_are_errors_that_name_the_field(client, path, fields, param, part):
    model = {} if path in ("/tokenize", "/detokenize", "/apply-template") else {"model": "golden"}
    response = post(client, path, **model, **fields)
    error = response.json()["error"]
    assert response.status_code == 400 and part in error["message"], error
    assert error["param"] == param
    if "256" in part:
        assert error["code"] == "context_length_exceeded"


def test_unknown_models_are_not_found(client):
    for path, fields in (("/v1/embeddings", {"input": "a"}), ("/tokenize", {"prompt": "a"})):
        assert post(client, path, model="other", **fields).status_code == 404


def test_large_numbers_of_options_are_refused(client):
    choices = [{"value": str(number)} for number in range(255)]
    question = {"type": "choice", "instructions": "b", "choices": choices}
    response = decide(client, questions=[question] * 10)
    assert response.status_code == 400 and "2048" in json.dumps(response.json())
