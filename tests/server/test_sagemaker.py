"""The interface of SageMaker's containers: GET /ping and POST /invocations."""

from __future__ import annotations

import asyncio
import json

import pytest

TEXT = "the llama"


def invoke(client, **body):
    return client.post("/invocations", json=body)


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = [part for part in response.text.split("\n\n") if part]
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@pytest.fixture(scope="module")
def expected(llm):
    return asyncio.run(llm.generate(TEXT, max_tokens=8, temperature=0))


def test_ping(client):
    assert client.get("/ping").status_code == 200


def test_inputs_are_continued(client, expected):
    parameters = {"max_new_tokens": 8}
    response = invoke(client, inputs=TEXT, parameters=parameters)
    assert response.status_code == 200, response.text
    assert response.json() == [{"generated_text": expected.text}]
    full = invoke(client, inputs=TEXT, parameters=parameters | {"return_full_text": True}).json()
    assert full[0]["generated_text"] == TEXT + expected.text
    details = invoke(client, inputs=TEXT, parameters=parameters | {"details": True}).json()[0]["details"]
    assert [token["id"] for token in details["tokens"]] == list(expected.ids)
    assert details["finish_reason"] == "length" and details["generated_tokens"] == 8
    assert all(token["logprob"] <= 0 for token in details["tokens"])


def test_a_stream_has_the_same_text(client, expected):
    chunks = events(invoke(client, inputs=TEXT, parameters={"max_new_tokens": 8}, stream=True))
    assert "".join(chunk["token"]["text"] for chunk in chunks) == expected.text
    assert [chunk["generated_text"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["generated_text"] == expected.text
    assert chunks[-1]["details"]["finish_reason"] == "length"
    assert [chunk["index"] for chunk in chunks] == list(range(1, len(chunks) + 1))


def test_stop_texts_are_part_of_the_answer(client, expected):
    stop = expected.text[3:6]
    document = invoke(client, inputs=TEXT, parameters={"max_new_tokens": 8, "stop": [stop], "details": True}).json()[0]
    end = expected.text.index(stop) + len(stop)
    assert document["generated_text"] == expected.text[:end]
    assert document["details"]["finish_reason"] == "stop_sequence"


def test_sampling_needs_a_parameter_that_asks_for_it(client, llm, expected):
    sampled = {"max_new_tokens": 8, "temperature": 1.5, "seed": 3}
    own = asyncio.run(llm.generate(TEXT, max_tokens=8, temperature=1.5, seed=3))
    assert invoke(client, inputs=TEXT, parameters=sampled).json()[0]["generated_text"] == own.text
    greedy = sampled | {"do_sample": False}
    assert invoke(client, inputs=TEXT, parameters=greedy).json()[0]["generated_text"] == expected.text


def test_the_default_length_is_that_of_text_generation_inference(client):
    document = invoke(client, inputs=TEXT, parameters={"details": True}).json()[0]
    assert document["details"]["generated_tokens"] == 100 or document["details"]["finish_reason"] != "length"


def test_bodies_of_openai_are_answered_by_their_endpoints(client):
    body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 4, "temperature": 0}
    own = client.post("/v1/chat/completions", json=body | {"model": "golden"}).json()
    for extra in ({}, {"model": "golden"}):
        forwarded = invoke(client, **body, **extra)
        assert forwarded.status_code == 200, forwarded.text
        assert forwarded.json()["choices"] == own["choices"]
    assert b"data: [DONE]" in invoke(client, **body, stream=True).content


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": TEXT, "messages": []}, "inputs"),
        ({"inputs": 3}, "inputs"),
        ({"inputs": TEXT, "parameter": {}}, "parameter"),
        ({"inputs": TEXT, "parameters": {"max_new_token": 3}}, "parameters.max_new_token"),
        ({"inputs": TEXT, "parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ({"inputs": TEXT, "parameters": {"truncate": 3}}, "parameters.truncate"),
        ({"inputs": TEXT, "parameters": {"watermark": True}}, "parameters.watermark"),
        ({"inputs": TEXT, "parameters": {"best_of": 2}, "stream": True}, "parameters.best_of"),
        ({"messages": []}, "messages"),
    ],
)
def test_invalid_bodies_are_errors_that_name_the_field(client, body, param):
    response = invoke(client, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_an_unknown_model(client):
    assert invoke(client, inputs=TEXT, model="goldn").status_code == 404
