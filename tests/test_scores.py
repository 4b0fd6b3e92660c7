"""Logits in parts, and log-likelihoods of continuations of one context."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from puna import LLM, AsyncLLM, text_model
from puna.errors import RequestError
from puna.prompts import join_ids
from tests.helpers.forward_passes import observe_batches
from tests.helpers.torch_files import BACKENDS

IDS = [int(number) for number in np.random.default_rng(0).integers(5, 250, 200)]


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request, tiny_model):
    return LLM(tiny_model, request.param)


@pytest.fixture
def computed(llm, monkeypatch) -> list[int]:
    """Receives the number of tokens of each forward pass."""
    counts: list[int] = []
    observe_batches(llm, monkeypatch, lambda batch: counts.append(sum(len(chunk.tokens) for chunk in batch)))
    return counts


def assert_equal(llm, values, expected):
    """The native runtime gives the same bits for any division of a prompt; PyTorch does not."""
    if llm.backend == "native":
        np.testing.assert_array_equal(values, expected)
    else:
        np.testing.assert_allclose(values, expected, atol=1e-4)


def test_logits_in_parts_equal_all_logits_and_compute_each_token_once(llm, computed, monkeypatch):
    expected = llm.logits(IDS)
    computed.clear()
    monkeypatch.setattr(text_model, "_PART_TOKENS", 64)
    parts = list(llm.iter_logits(IDS))
    assert [len(part) for part in parts] == [64, 64, 64, 8]
    assert_equal(llm, np.concatenate(parts), expected)
    assert sum(computed) <= len(IDS)
    assert len(list(llm.iter_logits(IDS[:3]))) == 1
    with pytest.raises(RequestError, match="exceed the model's context"):
        next(iter(llm.iter_logits(IDS * 2)))


def test_scores_of_token_ids_are_sums_of_log_likelihoods(llm):
    context, continuations = IDS[:100], [IDS[100:101], IDS[5:25], IDS[100:130]]
    expected = [-llm.nll(context + ids)[len(context) - 1 :].sum() for ids in continuations]
    scores = llm.score(context, continuations)
    assert (scores.shape, scores.dtype) == ((3,), np.float64)
    assert_equal(llm, scores, expected)
    assert llm.score(context, []).shape == (0,)


def test_the_context_is_computed_once(llm, computed):
    context = IDS[::-1][:130]
    llm.score(context, [[index] for index in range(5, 15)])
    assert sum(computed) <= len(context) + 10 * (len(context) - 128 + 2)


def test_scores_of_texts_encode_both_texts_together(llm):
    context, continuations = "the llama lives", [" in the high", " grassland", "s"]
    scores = llm.score(context, continuations)
    for score, continuation in zip(scores, continuations, strict=True):
        ids, known = llm.tokenizer.encode(context + continuation), llm.tokenizer.encode(context)
        shared = next(i for i, token in enumerate(ids) if i >= len(known) or token != known[i])
        assert_equal(llm, score, -llm.nll(ids)[shared - 1 :].sum())
    alone = llm.score("", ["the llama"])
    bos = llm.config.bos_token_id
    assert_equal(llm, alone, [-llm.nll([bos, *llm.tokenizer.encode("the llama")]).sum()])
    ids = llm.tokenizer.encode("the llama lives")
    assert_equal(llm, llm.score("the llama", [[7, 8]]), llm.score(llm.tokenizer.encode("the llama"), [[7, 8]]))
    assert_equal(llm, llm.score(ids, [" in"]), [-llm.nll([*ids, *llm.tokenizer.encode(" in")])[len(ids) - 1 :].sum()])


def test_asyncio_gives_the_same_scores(tiny_model):
    llm, async_llm = LLM(tiny_model), AsyncLLM(tiny_model)

    async def parts():
        return [part async for part in async_llm.iter_logits(IDS)]

    assert (
        asyncio.run(async_llm.score("the llama", [" lives", " in"])) == llm.score("the llama", [" lives", " in"])
    ).all()
    assert (np.concatenate(asyncio.run(parts())) == llm.logits(IDS)).all()


@pytest.mark.parametrize(
    ("context", "continuations", "words"),
    [
        ("the", "llama", "continuations is 'llama'; it must be a list"),
        ("the", ["llama", ""], r"continuations\[1\] is '', which adds no token"),
        ([1, 2], [[3], []], r"continuations\[1\] is \[\], which adds no token"),
        ([], [[3]], "the context has no tokens"),
        ([1], [[10**6]], "token id 1000000"),
        ([1] * 250, [[3] * 20], "exceed the model's context"),
        (None, ["a"], "the prompt must be text"),
    ],
)
def test_wrong_arguments_are_errors(llm, context, continuations, words):
    with pytest.raises(RequestError, match=words):
        llm.score(context, continuations)


@pytest.mark.parametrize(
    ("context", "joined", "separate", "expected"),
    [
        ((1, 2), (1, 2, 3), (3,), ((1, 2, 3), 2)),
        ((1, 2), (1, 5), (3,), ((1, 5), 1)),  # a token contains the end of the context
        ((1, 2), (1,), (), ((1,), 1)),
        ((1,), (4, 5), (3,), ((1, 3), 1)),
        ((1,), (), (3,), ((1, 3), 1)),
    ],
)
def test_a_continuation_begins_at_the_first_id_that_differs(context, joined, separate, expected):
    assert join_ids(context, joined, separate) == expected
