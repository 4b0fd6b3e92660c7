"""Several answers to one prompt (`n`, `best_of`), and log-probabilities of the prompt."""

from __future__ import annotations

import asyncio
import gc
import itertools
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from puna import LLM, AsyncLLM
from puna.config import Sampling
from puna.engine.sampling import Sampler
from puna.errors import BackendError, RequestError
from tests.helpers.forward_passes import observe_batches
from tests.helpers.torch_files import BACKENDS

PROMPT = [5 + n % 40 for n in range(150)]
SAMPLED = {"max_tokens": 12, "temperature": 1.5, "seed": 4}


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request, tiny_model):
    return LLM(tiny_model, request.param)


@pytest.fixture
def computed(llm, monkeypatch) -> list[int]:
    """Receives the number of tokens of each forward pass."""
    counts: list[int] = []
    observe_batches(llm, monkeypatch, lambda batch: counts.append(sum(len(chunk.tokens) for chunk in batch)))
    return counts


def all_of(completion):
    """Returns the answer and its alternatives."""
    return [completion, *completion.alternatives]


def check_nothing_is_left(llm):
    llm.generate([1], max_tokens=0)  # the earlier messages have been read
    assert not llm._engine.busy
    assert llm._engine.pool.available == llm._engine.pool.pages


def test_the_first_of_n_answers_is_that_of_one(llm):
    alone = llm.generate("the llama", **SAMPLED)
    assert alone.alternatives == ()
    answers = all_of(llm.generate("the llama", n=4, **SAMPLED))
    assert answers[0].ids == alone.ids
    assert len({answer.ids for answer in answers}) == 4
    assert all(answer.alternatives == () and answer.prompt_ids == alone.prompt_ids for answer in answers[1:])
    fewer = all_of(llm.generate("the llama", n=2, **SAMPLED))
    assert [answer.ids for answer in fewer] == [answer.ids for answer in answers[:2]]
    unseeded = all_of(llm.generate("the llama", n=3, max_tokens=12, temperature=1.5))
    assert len({answer.ids for answer in unseeded}) == 3


def test_lists_and_conversations_have_n_answers_each(llm):
    texts = ["the llama", "grassland"]
    for text, completion in zip(texts, llm.generate(texts, n=3, **SAMPLED), strict=True):
        alone = llm.generate(text, n=3, **SAMPLED)
        assert [answer.ids for answer in all_of(completion)] == [answer.ids for answer in all_of(alone)]
    chat = llm.chat("the llama", n=3, **SAMPLED)
    assert len({answer.ids for answer in all_of(chat)}) == 3
    assert chat.ids == llm.chat("the llama", **SAMPLED).ids


def test_the_prompt_of_several_answers_is_read_once(llm, computed):
    answers = all_of(llm.generate([*PROMPT, 11], n=5, **SAMPLED))
    assert [answer.cached_tokens >= 128 for answer in answers[1:]] == [True] * 4
    assert sum(computed) <= 151 + 4 * (151 - 128) + sum(len(answer.ids) for answer in answers)


def test_equal_answers_at_temperature_0_are_computed_once(llm, computed):
    alone = llm.generate([7, 8, 9], max_tokens=10)
    steps = len(computed)
    answers = all_of(llm.generate([7, 8, 9], n=3, max_tokens=10))
    assert len(computed) == 2 * steps and max(computed[steps:]) == 3
    assert [answer.ids for answer in answers] == [alone.ids] * 3
    best = llm.generate([7, 8, 9], n=2, best_of=6, max_tokens=10)
    assert [answer.ids for answer in all_of(best)] == [alone.ids] * 2


def test_the_best_answers_have_the_highest_mean_log_probability(llm):
    every = all_of(llm.generate("the llama", n=6, logprobs=0, **SAMPLED))
    for answer in every:
        ids = [*answer.prompt_ids, *answer.ids]
        ended = answer.finish_reason == "stop"
        ids += [llm.config.eos_token_id] if ended else []
        nll = llm.nll(ids)[len(answer.prompt_ids) - 1 :]
        assert answer.mean_logprob == pytest.approx(-nll.mean(), abs=1e-5)
        if not ended:
            assert answer.mean_logprob == pytest.approx(np.mean([item.logprob for item in answer.logprobs]))
    ranked = sorted(every, key=lambda answer: -answer.mean_logprob)
    best = llm.generate("the llama", n=2, best_of=6, **SAMPLED)
    assert [answer.ids for answer in all_of(best)] == [answer.ids for answer in ranked[:2]]
    assert [answer.mean_logprob for answer in all_of(best)] == [answer.mean_logprob for answer in ranked[:2]]
    assert [answer.logprobs for answer in all_of(best)] == [None, None]
    with_logprobs = llm.generate("the llama", best_of=6, logprobs=2, **SAMPLED)
    assert [item.token for item in with_logprobs.logprobs] == list(ranked[0].ids)
    assert llm.generate("the llama", **SAMPLED).mean_logprob is None
    assert llm.generate("the llama", n=2, best_of=3, **{**SAMPLED, "max_tokens": 0}).mean_logprob is None


def test_the_end_token_counts_in_the_mean(tiny_model):
    llm = LLM(tiny_model)
    eos = llm.config.eos_token_id
    empty = llm.generate("the llama", logprobs=0, logit_bias={eos: 100})
    expected = -llm.nll([*empty.prompt_ids, eos])[-1]
    assert empty.ids == () and empty.logprobs == ()
    assert empty.mean_logprob == pytest.approx(expected, abs=1e-5)


def test_a_batch_streams_each_of_n_answers(llm):
    prompts = ["the llama", [5, 6]]
    texts = ["", "", "", "", "", ""]
    for index, piece in llm.stream_batch(prompts, n=3, **SAMPLED):
        texts[index] += piece
    expected = [all_of(llm.generate(prompt, n=3, **SAMPLED)) for prompt in prompts]
    assert texts == [answer.text for answers in expected for answer in answers]
    pieces = list(llm.stream_batch(["the llama"], n=2, max_tokens=9))
    greedy = llm.generate("the llama", max_tokens=9).text
    assert ["".join(text for index, text in pieces if index == number) for number in range(2)] == [greedy] * 2


@pytest.mark.parametrize("call", ["stream", "start"])
def test_streams_of_one_answer_refuse_several(llm, call):
    method = getattr(llm, call)
    with pytest.raises(RequestError, match="n is 2, but this stream has the text of one answer; use stream_batch"):
        method("the llama", n=2)
    with pytest.raises(RequestError, match="best_of is 3, but the best answers are known only at the end"):
        method("the llama", best_of=3)
    method("the llama", n=1, best_of=1, max_tokens=1)
    with pytest.raises(RequestError, match="best_of is 3"):
        llm.stream_batch(["the llama"], n=2, best_of=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "n is 0; it must be a whole number from 1 to 1024"),
        ({"n": True}, "n is True"),
        ({"n": 1.0}, r"n is 1\.0"),
        ({"n": None}, "n is None"),
        ({"n": 10**9}, "n is 1000000000; it must be a whole number from 1 to 1024"),
        ({"best_of": True}, "best_of is True; it must be a whole number from 1 to 1024"),
        ({"best_of": 0}, "best_of is 0"),
        ({"best_of": "3"}, "best_of is '3'"),
        ({"n": 3, "best_of": 2}, "best_of is 2, but n is 3, the number of answers to return; raise best_of or lower n"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21; it must be a whole number from 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"prompt_logprobs": True}, "prompt_logprobs is True"),
        ({"prompt_logprobs": "all"}, "prompt_logprobs is 'all'"),
        ({"logprobs": 21}, "logprobs is 21; it must be a whole number, 0 or more, at most 20"),
    ],
)
def test_values_out_of_range_are_errors(llm, options, words):
    for call in (llm.generate, llm.chat, llm.stream):
        with pytest.raises(RequestError, match=words):
            call("the llama", **options)


def test_numbers_of_numpy_are_accepted(llm):
    completion = llm.generate("the", n=np.int64(2), best_of=np.int32(3), prompt_logprobs=np.int8(1), max_tokens=2)
    assert len(completion.alternatives) == 1
    assert all(len(item.top) == 1 for item in completion.prompt_logprobs[1:])


def test_candidates_of_different_seeds_draw_different_numbers():
    """Also for seeds that differ by 2^32, or by the number of a candidate."""

    def first_number(seed: int, candidate: int) -> float:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), (), 8, candidate=candidate)
        return sampler.prepare().native.uniform

    numbers = {
        (seed, candidate): first_number(seed, candidate)
        for seed, candidate in itertools.product([0, 1, 2, 2**32, 2**32 + 1, 2**33 + 1], range(5))
    }
    assert len(set(numbers.values())) == len(numbers)
    assert numbers[1, 0] == np.random.default_rng(1).random()


def expected_top(row: np.ndarray, count: int) -> list[tuple[int, float]]:
    values = row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64))
    order = np.argsort(-values, kind="stable")[:count]
    return [(int(token), values[token]) for token in order]


def check_prompt_logprobs(llm, completion, count: int) -> None:
    """Compares with the logits and losses of the prompt."""
    ids = completion.prompt_ids
    logits, losses = llm.logits(ids), llm.nll(ids)
    assert len(completion.prompt_logprobs) == len(ids)
    assert completion.prompt_logprobs[0] is None
    for position, item in enumerate(completion.prompt_logprobs[1:]):
        assert item.token == ids[position + 1]
        assert item.logprob == pytest.approx(-losses[position], abs=1e-4)
        expected = expected_top(logits[position], count)
        assert [value for _, value in item.top] == pytest.approx([value for _, value in expected], abs=1e-4)
        if llm.backend == "native":
            assert [token for token, _ in item.top] == [token for token, _ in expected]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_log_probabilities_of_the_prompt_equal_those_of_its_logits(llm, count):
    for _ in range(2):  # the second prompt is in the prefix cache
        completion = llm.generate(PROMPT, prompt_logprobs=count, max_tokens=4)
        check_prompt_logprobs(llm, completion, count)
        assert completion.ids == llm.generate(PROMPT, max_tokens=4).ids
    assert completion.logprobs is None
    check_prompt_logprobs(llm, llm.chat("the llama", prompt_logprobs=count, max_tokens=0), count)
    assert llm.generate([5], prompt_logprobs=count, max_tokens=2).prompt_logprobs == (None,)
    assert llm.generate([5], max_tokens=2).prompt_logprobs is None


def test_all_answers_have_the_log_probabilities_of_the_prompt(llm):
    for options in ({"n": 3}, {"n": 2, "best_of": 4}):
        answers = all_of(llm.generate(PROMPT, prompt_logprobs=2, **options, **SAMPLED))
        check_prompt_logprobs(llm, answers[0], 2)
        assert all(answer.prompt_logprobs is answers[0].prompt_logprobs for answer in answers)


def test_log_probabilities_of_the_prompt_do_not_depend_on_the_batch(tiny_model):
    llm = LLM(tiny_model, "native")
    alone = [llm.generate(PROMPT[:length], prompt_logprobs=5, max_tokens=2) for length in (3, 64, 65, 150)]
    llm._engine.scheduler.chunk = 37
    texts = [llm._candidates([answer.prompt_ids], True, {"prompt_logprobs": 5, "max_tokens": 2})[0] for answer in alone]
    for completion, expected in zip(llm._complete(texts), alone, strict=True):
        assert completion.prompt_logprobs == expected.prompt_logprobs


def test_prompt_logits_that_are_not_finite_end_the_request_with_an_error(tiny_model, monkeypatch):
    llm = LLM(tiny_model)
    forward = llm._backend.forward

    def damaged(batch):
        outputs = forward(batch)
        return replace(outputs, logits=outputs.logits * np.float32(np.nan))

    monkeypatch.setattr(llm._backend, "forward", damaged)
    with pytest.raises(BackendError, match="logits are not finite"):
        llm.generate(PROMPT, prompt_logprobs=1, max_tokens=0)
    monkeypatch.undo()
    assert llm.generate(PROMPT, prompt_logprobs=1, max_tokens=0).prompt_logprobs is not None


def test_dropped_streams_of_several_answers_leave_nothing(llm):
    for count in range(4):
        stream = llm.stream_batch([PROMPT, "the llama"], n=4, ignore_eos=True, **{**SAMPLED, "max_tokens": 100})
        for _ in range(count):
            next(stream)
        if count % 2:
            stream.close()
        del stream
        gc.collect()
        check_nothing_is_left(llm)


def test_asyncio_has_the_same_answers(llm, tiny_model):
    async_llm = AsyncLLM(tiny_model, llm.backend)
    options = {"n": 2, "best_of": 4, "prompt_logprobs": 3, **SAMPLED}

    async def texts() -> list[str]:
        result = [""] * 3
        async for index, piece in async_llm.stream_batch(["the llama"], n=3, **SAMPLED):
            result[index] += piece
        return result

    for call in ("generate", "chat"):
        completion = asyncio.run(getattr(async_llm, call)("the llama", **options))
        expected = getattr(llm, call)("the llama", **options)
        assert [answer.ids for answer in all_of(completion)] == [answer.ids for answer in all_of(expected)]
        assert [item.token for item in completion.prompt_logprobs[1:]] == list(completion.prompt_ids[1:])
    assert asyncio.run(texts()) == [answer.text for answer in all_of(llm.generate("the llama", n=3, **SAMPLED))]


def test_cancelled_tasks_with_several_answers_leave_nothing(tiny_model):
    llm = AsyncLLM(tiny_model, max_batch=4)

    async def cancel(seconds: float) -> None:
        task = asyncio.create_task(
            llm.generate(PROMPT, n=4, ignore_eos=True, prompt_logprobs=1, **{**SAMPLED, "max_tokens": 100})
        )
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        cancelled.append(task.cancelled())

    async def run() -> None:
        await asyncio.gather(*(cancel(0.002 * number) for number in range(12)))
        await llm.generate([1], max_tokens=0)

    cancelled: list[bool] = []
    asyncio.run(run())
    assert any(cancelled)
    assert not llm._engine.busy
    assert llm._engine.pool.available == llm._engine.pool.pages
