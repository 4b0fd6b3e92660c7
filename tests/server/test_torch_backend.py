"""The server with the PyTorch backend: the answers of `LLM`, also for requests that arrive together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from tests.golden.files import LAYOUTS

PROMPTS = ["the llama", "One day the sun", "A", "The cook asked the old man for bread and"]


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    from puna import AsyncLLM

    model = AsyncLLM(LAYOUTS["hf"], "torch", threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    """The answers of the PyTorch backend without a server."""
    from puna import LLM

    with LLM(LAYOUTS["hf"], "torch", threads=1, prefix_cache=False) as model:
        return [model.generate(prompt, max_tokens=12, temperature=0, logprobs=1) for prompt in PROMPTS]


def complete(client: Any, prompt: str, **fields: Any) -> Any:
    body = {"model": "golden", "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1, **fields}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("workers", [1, 4])
def test_answers_are_those_of_a_model_in_the_process(client, llm, expected, workers):
    assert llm.backend == "torch"
    with ThreadPoolExecutor(workers) as pool:
        documents = [response.json() for response in pool.map(lambda prompt: complete(client, prompt), PROMPTS)]
    for document, answer in zip(documents, expected, strict=True):
        choice = document["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (answer.text, answer.finish_reason)
        assert choice["logprobs"]["token_logprobs"] == pytest.approx([row.logprob for row in answer.logprobs], abs=1e-4)


def test_a_stream_and_a_cached_prompt_have_the_same_text(client, expected):
    lines = complete(client, PROMPTS[3], stream=True).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected[3].text
    again = complete(client, PROMPTS[3]).json()
    assert again["choices"][0]["text"] == expected[3].text
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_embeddings_and_scores_use_the_backend(client):
    from puna import LLM

    with LLM(LAYOUTS["hf"], "torch", threads=1) as model:
        embedding, score = model.embed(PROMPTS[0])[0], model.score(PROMPTS[0], [" lives"])[0]
    body = {"model": "golden", "input": PROMPTS[0]}
    assert client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"] == pytest.approx(
        embedding.tolist(), abs=1e-4
    )
    body = {"model": "golden", "text_1": PROMPTS[0], "text_2": " lives"}
    assert client.post("/v1/score", json=body).json()["data"][0]["score"] == pytest.approx(score, abs=1e-3)
