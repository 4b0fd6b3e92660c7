"""`LLM.embed`: hidden states of texts, compared with the PyTorch model and with transformers."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest

from puna import LLM, AsyncLLM
from puna.engine import Event
from puna.errors import BackendError, RequestError
from puna.prompt_scores import PromptState
from tests.helpers.classifiers import write_classifier
from tests.helpers.forward_passes import observe_batches
from tests.helpers.torch_files import BACKENDS, needs_torch

LONG = [5 + n % 40 for n in range(150)]
TEXTS = ["the llama", "grassland", "in the high grassland lives the llama", "x"]


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request, tiny_model):
    return LLM(tiny_model, request.param)


@pytest.fixture
def computed(llm, monkeypatch) -> list[list[int]]:
    """Receives the number of tokens of each chunk of each forward pass."""
    counts: list[list[int]] = []
    observe_batches(llm, monkeypatch, lambda batch: counts.append([len(chunk.tokens) for chunk in batch]))
    return counts


def assert_equal(llm, values, expected):
    """The native runtime gives the same bits for any division of a prompt; PyTorch does not."""
    if llm.backend == "native":
        np.testing.assert_array_equal(values, expected)
    else:
        np.testing.assert_allclose(values, expected, atol=1e-5)


@needs_torch
@pytest.mark.parametrize("library", ["puna", "transformers"])
def test_embeddings_equal_the_hidden_states_of_the_model(llm, tiny_model, library):
    torch = pytest.importorskip("torch")
    model = pytest.importorskip(library).LlamaModel.from_pretrained(tiny_model).eval()
    inputs = [*map(llm.tokenizer.encode, TEXTS), LONG, [7]]
    last, mean = llm.embed(inputs), llm.embed(inputs, pooling="mean")
    assert last.shape == mean.shape == (6, 48) and last.dtype == mean.dtype == np.float32
    for number, ids in enumerate(inputs):
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
        assert np.abs(last[number] - states[-1]).max() < 1e-5 * np.abs(states).max()
        assert np.abs(mean[number] - states.mean(axis=0)).max() < 1e-5 * np.abs(states).max()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_an_embedding_does_not_depend_on_the_batch(llm, computed, pooling):
    inputs = [llm.tokenizer.encode(text) for text in TEXTS] + [LONG, [7], LONG[::-1], LONG[:64]]
    alone = np.concatenate([llm.embed(ids, pooling=pooling) for ids in inputs])
    computed.clear()
    together = llm.embed(inputs, pooling=pooling)
    assert len(computed) == 1 and len(computed[0]) >= len(inputs) - 1  # the last input begins like another one
    assert_equal(llm, together, alone)
    llm._engine.scheduler.chunk = 37
    assert_equal(llm, llm.embed(inputs, pooling=pooling), alone)
    llm._engine.scheduler.chunk = 512


def test_normalised_embeddings_have_the_length_1(llm):
    plain, unit = llm.embed(TEXTS, pooling="mean"), llm.embed(TEXTS, pooling="mean", normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(plain, axis=1, keepdims=True), plain, atol=1e-5)
    zero = PromptState((1, 2), 0, normalize=True)
    zero.feed(Event(1, prompt_tokens=2, hidden=np.zeros((2, 4), np.float32)), 0.0, 0.0)
    assert zero.state.tolist() == [0.0] * 4


def test_inputs_may_be_texts_or_token_ids(llm):
    ids = llm.tokenizer.encode("the llama")
    expected = llm.embed("the llama")
    assert expected.shape == (1, 48)
    for inputs in (["the llama"], ("the llama",), ids, tuple(ids), np.array(ids), [ids], np.array([ids]), iter(ids)):
        assert_equal(llm, llm.embed(inputs), expected)
    assert_equal(llm, llm.embed(["the llama", ids, np.array(ids)]), np.concatenate([expected] * 3))
    assert_equal(llm, llm.embed(""), llm.embed([llm.config.bos_token_id]))


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ([], {}, "inputs is empty; give at least one text"),
        (None, {}, "inputs is None; it must be a text, a list of texts, or token ids"),
        (5, {}, "inputs is 5"),
        (b"x", {}, "inputs is b'x'"),
        ({"a": 1}, {}, "inputs is {'a': 1}"),
        ([[]], {}, "the prompt has no tokens"),
        ([True], {}, "the prompt must be text or token ids"),
        ([1.5], {}, "the prompt must be text or token ids"),
        (["the", 5], {}, "the prompt must be text or token ids"),
        ([[5], [10**6]], {}, "token id 1000000 is not in the vocabulary"),
        ([-1], {}, "token id -1"),
        (["the", LONG * 2], {}, "exceed the model's context of 256 tokens; shorten the prompt"),
        ("the", {"pooling": "max"}, "pooling is 'max'; it must be 'last' or 'mean'"),
        ("the", {"pooling": None}, "pooling is None"),
        ("the", {"pooling": ["last"]}, r"pooling is \['last'\]"),
        ("the", {"normalize": 1}, "normalize is 1; it must be True or False"),
    ],
)
def test_wrong_arguments_are_errors(llm, inputs, options, words):
    with pytest.raises(RequestError, match=words):
        llm.embed(inputs, **options)


def test_the_last_state_uses_the_prefix_cache_and_the_mean_reads_all_tokens(llm, computed):
    prompt = [9, *LONG[:140]]
    first = llm.embed(prompt)
    computed.clear()
    assert_equal(llm, llm.embed(prompt), first)
    assert len(computed) == 1 and computed[0][0] <= 141 - 128  # backends may copy parts of pages
    mean = llm.embed(prompt, pooling="mean")
    assert computed[1:] == [[141]]
    assert_equal(llm, llm.embed(prompt, pooling="mean"), mean)


def test_texts_are_embedded_while_others_are_answered(llm):
    expected, answer = llm.embed(TEXTS), llm.generate("the llama", max_tokens=60, ignore_eos=True)
    stream = llm.stream("the llama", max_tokens=60, ignore_eos=True)
    pieces = [next(stream)]
    assert_equal(llm, llm.embed(TEXTS), expected)
    assert "".join([*pieces, *stream]) == answer.text


def test_states_that_are_not_finite_are_an_error(tiny_model, monkeypatch, llm):
    forward = llm._backend.forward

    def damaged(batch):
        outputs = forward(batch)
        outputs.hidden[0] = np.inf
        return outputs

    monkeypatch.setattr(llm._backend, "forward", damaged)
    with pytest.raises(BackendError, match="hidden states are not finite; the weights are damaged"):
        llm.embed(LONG, pooling="mean")
    monkeypatch.undo()
    assert np.isfinite(llm.embed(LONG, pooling="mean")).all()


def test_a_model_without_a_head_only_computes_embeddings(llm, tiny_model, tmp_path):
    bare = LLM(write_classifier(tiny_model, tmp_path / "bare", 0), llm.backend)
    for pooling in ("last", "mean"):
        assert_equal(llm, bare.embed(TEXTS, pooling=pooling), llm.embed(TEXTS, pooling=pooling))
    for call in (bare.generate, bare.chat, bare.stream, lambda text: bare.nll([1, 2]), lambda text: bare.logits([1])):
        with pytest.raises(RequestError, match=r"no language-model head \(its head: none\).* use embed, or load"):
            call("the llama")
    with pytest.raises(RequestError, match=r"no classification head \(its head: none\)"):
        bare.classify("the llama")


def test_asyncio_has_the_same_embeddings(llm, tiny_model):
    async_llm = AsyncLLM(tiny_model, llm.backend)

    async def run() -> list[np.ndarray]:
        options = {"pooling": "mean", "normalize": True}
        results = await asyncio.gather(*(async_llm.embed(text, **options) for text in TEXTS))
        task = asyncio.create_task(async_llm.embed([LONG] * 20, pooling="mean"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await async_llm.generate([1], max_tokens=0)
        return results

    results = np.concatenate(asyncio.run(run()))
    assert_equal(llm, results, llm.embed(TEXTS, pooling="mean", normalize=True))
    gc.collect()
    assert not async_llm._engine.busy
    assert async_llm._engine.pool.available == async_llm._engine.pool.pages
