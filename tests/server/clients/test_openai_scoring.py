"""The SDK of OpenAI reads embeddings and decisions, with no field that it does not know."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.clients.weather import MODEL
from tests.server.sdk_types import Package, unknown_fields

openai = Package("openai")


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as result:
        yield result


def test_embeddings_of_the_sdk_are_those_of_llm(client: Any, checkpoint: Path) -> None:
    from puna import LLM

    texts = ["the llama", "lives in the grass"]
    with LLM(checkpoint, "native") as llm:
        expected = llm.embed(texts)
    for options in ({}, {"encoding_format": "float"}):  # the SDK asks for base64 by default
        response = client.embeddings.create(model=MODEL, input=texts, **options)
        rows = np.array([item.embedding for item in response.data], np.float32)
        np.testing.assert_array_equal(rows, expected)
        assert list(unknown_fields(response)) == []


def test_the_sdk_reads_decisions(client: Any) -> None:
    if not hasattr(client, "decisions"):
        pytest.skip("this release of openai has no decisions")
    decision = client.decisions.create(
        model=MODEL,
        input=[{"role": "user", "content": "The llama eats grass."}],
        questions=[
            {"type": "predicate", "instructions": "An animal eats.", "name": "eats"},
            {"type": "choice", "instructions": "Which?", "choices": [{"value": "llama"}, {"value": False}]},
            {"type": "score", "instructions": "How much?", "levels": [{"label": "little"}, {"label": "a lot"}]},
        ],
        prompt_cache_key="k",
    )
    assert list(unknown_fields(decision)) == []
    predicate, choice, score = decision.answers
    assert 0 < predicate.probability < 1 and predicate.name == "eats"
    assert choice.choice in ("llama", False) and 0 <= score.score <= 1


def test_errors_of_decisions_name_the_field(client: Any) -> None:
    if not hasattr(client, "decisions"):
        pytest.skip("this release of openai has no decisions")

    async def create() -> None:
        async with openai.AsyncOpenAI(base_url=str(client.base_url), api_key="none") as other:
            await other.decisions.create(model=MODEL, input="a", questions=[{"type": "predicate"}])

    with pytest.raises(openai.BadRequestError) as caught:
        asyncio.run(create())
    assert caught.value.param == "questions[0].instructions"
