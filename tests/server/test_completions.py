"""POST /v1/completions: all forms of prompts, echo, and log-probabilities that equal those of `LLM`."""

from __future__ import annotations

import asyncio
import json

import pytest

TEXT = "the llama lives"


def complete(client, **fields) -> dict:
    response = client.post(
        "/v1/completions", json={"model": "golden", "prompt": TEXT, "max_tokens": 6, "temperature": 0} | fields
    )
    assert response.status_code == 200, response.text
    return response.json()


def generate(llm, prompt=TEXT, **options):
    return asyncio.run(llm.generate(prompt, **{"max_tokens": 6, "temperature": 0} | options))


def test_the_four_forms_of_prompts(client, llm):
    ids = llm.tokenizer.encode(TEXT)
    expected = generate(llm).text
    other = generate(llm, "high").text
    texts = [[choice["text"] for choice in complete(client, prompt=prompt)["choices"]] for prompt in (
        TEXT, [TEXT, "high"], ids, [ids, llm.tokenizer.encode("high")],
    )]  # fmt: skip
    assert texts == [[expected], [expected, other], [expected], [expected, other]]


def test_several_prompts_with_n_have_consecutive_indices(client, llm):
    document = complete(client, prompt=[TEXT, "high"], n=2, temperature=1, seed=3)
    expected = [generate(llm, prompt, temperature=1, seed=3, n=2) for prompt in (TEXT, "high")]
    flat = [item.text for first in expected for item in (first, *first.alternatives)]
    assert [(item["index"], item["text"]) for item in document["choices"]] == list(enumerate(flat))


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_log_probabilities(client, llm, stream):
    """As lm-eval sends it: token ids, echo, and the log-probabilities of the prompt."""
    expected = generate(llm, prompt_logprobs=2, logprobs=2, max_tokens=2)
    fields = {"prompt": list(expected.prompt_ids), "echo": True, "logprobs": 2, "max_tokens": 2}
    if stream:
        body = {"model": "golden", "temperature": 0, "stream": True, **fields}
        lines = client.post("/v1/completions", json=body).text.split("\n\n")
        parts = [json.loads(line[6:])["choices"][0] for line in lines if line and line != "data: [DONE]"]
        logprobs = {name: [x for part in parts for x in part["logprobs"][name]] for name in parts[0]["logprobs"]}
    else:
        logprobs = complete(client, **fields)["choices"][0]["logprobs"]
    rows = [*expected.prompt_logprobs, *expected.logprobs]
    assert logprobs["token_logprobs"] == [None, *(row.logprob for row in rows[1:])]
    assert [len(top) for top in logprobs["top_logprobs"][1:]] == [
        len({*(i for i, _ in row.top), row.token}) for row in rows[1:]
    ]
    assert logprobs["top_logprobs"][0] is None
    assert all(
        max(top.values()) == row.top[0][1] for top, row in zip(logprobs["top_logprobs"][1:], rows[1:], strict=True)
    )


def test_offsets_are_positions_in_the_text(client, llm):
    choice = complete(client, echo=True, logprobs=0)["choices"][0]
    assert choice["text"].startswith(TEXT)
    logprobs = choice["logprobs"]
    ends = [*logprobs["text_offset"][1:], len(choice["text"])]
    for token, start, end in zip(logprobs["tokens"], logprobs["text_offset"], ends, strict=True):
        assert choice["text"][start:end] == ("" if token == "<s>" else token.removeprefix(" ") if start == 0 else token)


def test_max_tokens_0_reads_only_the_prompt(client, llm):
    document = complete(client, max_tokens=0, echo=True, logprobs=1)
    expected = generate(llm, max_tokens=0, prompt_logprobs=1)
    assert document["choices"][0]["text"] == TEXT
    assert document["choices"][0]["logprobs"]["token_logprobs"][1:] == [
        row.logprob for row in expected.prompt_logprobs[1:]
    ]
    assert document["usage"]["completion_tokens"] == 0


def test_best_of_returns_the_best(client, llm):
    expected = generate(llm, temperature=1, seed=5, best_of=4, n=2)
    document = complete(client, temperature=1, seed=5, best_of=4, n=2)
    assert [item["text"] for item in document["choices"]] == [expected.text, expected.alternatives[0].text]


def test_a_prompt_above_the_context_is_an_error_with_both_counts(client, llm):
    longest = llm.longest_text()
    response = client.post("/v1/completions", json={"model": "golden", "prompt": [5] * (longest + 7), "max_tokens": 1})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert str(longest) in error["message"]
    assert str(longest + 7) in error["message"]
