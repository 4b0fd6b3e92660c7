"""`AsyncLLM`: the same answers and errors as `LLM`, in asyncio."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from puna import LLM, AsyncLLM
from puna.errors import BackendError, RequestError
from puna.options import Options
from tests.helpers.torch_files import BACKENDS

MESSAGES = [{"role": "user", "content": "the llama"}]


@pytest.fixture(scope="module", params=BACKENDS)
def models(request, tiny_model):
    return LLM(tiny_model, request.param), AsyncLLM(tiny_model, request.param)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


async def collect(iterator) -> list:
    return [item async for item in iterator]


def test_answers_equal_those_of_llm(models):
    llm, async_llm = models
    options = {"max_tokens": 12, "temperature": 1.5, "seed": 4}
    assert run(async_llm.generate("the llama", **options)).ids == llm.generate("the llama", **options).ids
    texts = ["the llama", "grassland"]
    assert [a.ids for a in run(async_llm.generate(texts, max_tokens=9))] == [
        a.ids for a in llm.generate(texts, max_tokens=9)
    ]
    assert run(async_llm.chat(MESSAGES, max_tokens=9)).text == llm.chat(MESSAGES, max_tokens=9).text
    conversations = [MESSAGES, MESSAGES]
    assert [a.ids for a in run(async_llm.chat(conversations, max_tokens=9))] == [
        a.ids for a in llm.chat(conversations, max_tokens=9)
    ]
    for prompt in ("the llama", [5, 6], MESSAGES):
        pieces = run(collect(async_llm.stream(prompt, max_tokens=20)))
        assert "".join(pieces) == "".join(llm.stream(prompt, max_tokens=20))
    ids = [1, 2, 3, 4]
    assert (run(async_llm.logits(ids)) == llm.logits(ids)).all()
    assert (run(async_llm.nll(ids)) == llm.nll(ids)).all()


def test_start_returns_the_answer_and_its_text(models):
    async def answer_of(llm):
        answer, pieces = await llm.start("the llama", max_tokens=20)
        return "".join(await collect(pieces)), answer.completion()

    text, completion = run(answer_of(models[1]))
    assert completion.text == text == models[0].generate("the llama", max_tokens=20).text


def test_deltas_equal_those_of_llm(models):
    options = {"max_tokens": 20, "logprobs": 1}

    async def deltas_of(llm):
        _, stream = await llm.start_deltas("the llama", **options)
        return await collect(stream)

    completion = models[0].generate("the llama", **options)
    for items in (run(deltas_of(models[1])), list(models[0].start_deltas("the llama", **options)[1])):
        deltas = [delta for _, delta in items]
        assert "".join(delta.text for delta in deltas) == completion.text
        assert tuple(token for delta in deltas for token in delta.ids) == completion.ids
        assert tuple(item for delta in deltas for item in delta.logprobs) == completion.logprobs


def test_a_batch_streams_pieces_with_the_index_of_their_prompt(models):
    llm, async_llm = models
    prompts = ["the llama", [5, 6], MESSAGES]
    expected = [llm.generate(prompt, max_tokens=20).text for prompt in prompts[:2]]
    expected.append(llm.chat(MESSAGES, max_tokens=20).text)
    for pieces in (
        list(llm.stream_batch(prompts, max_tokens=20)),
        run(collect(async_llm.stream_batch(prompts, max_tokens=20))),
    ):
        texts = ["".join(piece for index, piece in pieces if index == number) for number in range(3)]
        assert texts == expected
        indices = [index for index, _ in pieces]
        assert indices != sorted(indices)  # all prompts run at the same time
    with pytest.raises(RequestError, match="prompts is 'the'; it must be a list"):
        llm.stream_batch("the")
    assert list(llm.stream_batch([])) == []


def test_an_answer_continues_the_final_message(models):
    llm, async_llm = models
    messages = [*MESSAGES, {"role": "assistant", "content": "lives in"}]
    options = {"continue_final_message": True, "max_tokens": 12}
    answer = llm.chat(messages, **options)
    assert list(answer.prompt_ids) == llm.tokenizer.encode("<|user|>the llama<|end|><|assistant|>lives in")
    prompt = llm.tokenizer.decode(list(answer.prompt_ids), skip_special_tokens=True)
    assert prompt + answer.text == llm.tokenizer.decode([*answer.prompt_ids, *answer.ids], skip_special_tokens=True)
    assert "".join(llm.stream(messages, **options)) == answer.text
    assert run(async_llm.chat(messages, **options)).text == answer.text
    assert "".join(run(collect(async_llm.stream(messages, **options)))) == answer.text
    assert llm.chat([messages, messages], **options)[1].text == answer.text
    with pytest.raises(RequestError, match="continue_final_message is given, but the prompt is not a conversation"):
        llm.stream("the llama", **options)


def test_hundreds_of_callers_share_a_model(models):
    llm, async_llm = models
    prompts = [[index % 50 + 5, index % 7 + 5] for index in range(300)]

    async def everything():
        return await asyncio.gather(*(async_llm.generate(prompt, max_tokens=5) for prompt in prompts))

    answers = run(everything())
    for index in range(0, 300, 50):
        assert answers[index].ids == llm.generate(prompts[index], max_tokens=5).ids


def test_the_event_loop_runs_while_an_answer_is_generated(models, monkeypatch):
    """Each forward pass waits until the loop has run once more."""
    llm, async_llm = models
    turn, forward = threading.Event(), async_llm._backend.forward

    def forward_after_a_turn(batch):
        turn.clear()
        assert turn.wait(30), "the event loop does not run"
        return forward(batch)

    monkeypatch.setattr(async_llm._backend, "forward", forward_after_a_turn)

    async def generate():
        task = asyncio.create_task(async_llm.generate([5], max_tokens=20))
        while not task.done():
            turn.set()
            await asyncio.sleep(0)
        return await task

    assert run(generate()).ids == llm.generate([5], max_tokens=20).ids


def test_errors_are_those_of_llm(models):
    llm, async_llm = models
    for arguments, options in [
        (("x" * 4000,), {}),
        (("the",), {"max_tokens": 5000}),
        (("the",), {"temperature": -1}),
        (([10**6],), {}),
        ((None,), {}),
    ]:
        with pytest.raises(RequestError) as expected:
            llm.generate(*arguments, **options)
        for call in (async_llm.generate, lambda *a, **o: collect(async_llm.stream(*a, **o)), async_llm.start):
            with pytest.raises(RequestError) as error:
                run(call(*arguments, **options))
            assert str(error.value) == str(expected.value)
    with pytest.raises(RequestError, match="token id 1000000"):
        run(async_llm.nll([10**6]))


def test_unknown_options_are_errors(models):
    llm, async_llm = models
    with pytest.raises(
        TypeError,
        match=r"'temprature' is not an option; the options are temperature, top_k.*; did you mean 'temperature'\?",
    ):
        llm.generate("the", temprature=1)
    with pytest.raises(TypeError, match="'temprature' is not an option"):
        run(async_llm.generate("the", temprature=1))


def test_closing(tiny_model):
    async def use():
        async with AsyncLLM(tiny_model) as llm:
            _, pieces = await llm.start("the llama", max_tokens=100)
            await anext(pieces)
        assert repr(llm) == f"AsyncLLM({str(tiny_model)!r}, closed)"
        with pytest.raises(BackendError, match="the model is closed"):
            await collect(pieces)
        with pytest.raises(RequestError, match="this AsyncLLM is closed; load the model again"):
            await llm.generate("the llama")
        with pytest.raises(RequestError, match="closed"):
            async with llm:
                pass

    run(use())


def test_signatures_equal_those_of_llm():
    for name in (
        "generate",
        "chat",
        "stream",
        "stream_batch",
        "start",
        "start_deltas",
        "logits",
        "nll",
        "score",
        "iter_logits",
    ):
        parameters = inspect.signature(getattr(LLM, name)).parameters
        assert inspect.signature(getattr(AsyncLLM, name)).parameters == parameters
        assert "options" not in parameters
    assert "temperature: divides the logits" in (AsyncLLM.generate.__doc__ or "")
    methods = {name for name in dir(LLM) if not name.startswith("_")}
    assert methods == {name for name in dir(AsyncLLM) if not name.startswith("_")}
    assert len(Options.__annotations__) >= 9
