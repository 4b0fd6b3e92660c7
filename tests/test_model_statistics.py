"""Timing, statistics, predictions, reasons of missing prefixes and `warm`, with `LLM` and `AsyncLLM`."""

from __future__ import annotations

import asyncio
import time

import pytest

from puna import LLM, AsyncLLM
from puna.engine import PrefixMiss
from puna.errors import RequestError
from tests.golden.files import LAYOUTS
from tests.helpers.adapters import write_random_adapter

TEXT = "the llama lives in the high grassland of the puna, where the air is thin and the nights are cold. " * 3


@pytest.fixture
def llm(tiny_model):
    with LLM(tiny_model, "native") as llm:
        yield llm


def test_a_completion_has_the_times_of_its_request(llm):
    before = time.perf_counter()
    completion = llm.generate("the llama", max_tokens=20, ignore_eos=True, speculate=False)
    timing = completion.timing
    assert before <= timing.arrived <= timing.started < timing.first_token < timing.ended <= time.perf_counter()
    assert timing.queue_seconds + completion.prefill_seconds == pytest.approx(timing.first_token_seconds)
    assert len(timing.gaps) == 19
    assert sum(timing.gaps) == pytest.approx(completion.decode_seconds)
    waiting = [llm.start("the llama", max_tokens=90, ignore_eos=True) for _ in range(17)]  # one more than run at once
    for _, stream in waiting:
        "".join(stream)
    answers = [answer for answer, _ in waiting]
    assert answers[16].timing.queue_seconds > min(answer.completion().decode_seconds for answer in answers[:16])


def test_a_prediction_does_not_change_the_answer(llm):
    options = {"max_tokens": 60, "temperature": 0.8, "seed": 5, "logprobs": 1}
    plain = llm.generate("the llama", **options)
    for prediction in (plain.text, list(plain.ids), plain.text[10:], "something else"):
        answer = llm.generate("the llama", prediction=prediction, **options)
        assert (answer.ids, answer.logprobs) == (plain.ids, plain.logprobs)
        ids = llm.tokenizer.encode(prediction, add_special_tokens=False) if isinstance(prediction, str) else prediction
        assert answer.accepted_prediction_tokens + answer.rejected_prediction_tokens >= len(ids)
    same = llm.generate("the llama", prediction=plain.ids, **options)
    assert (same.accepted_prediction_tokens, same.rejected_prediction_tokens) == (len(plain.ids), 0)
    for wrong in (3, [1.5], [10**6]):
        with pytest.raises(RequestError):
            llm.generate("the llama", prediction=wrong)


def test_a_completion_explains_its_prefix(llm):
    options = {"max_tokens": 3, "explain_prefix": True}
    ids = llm.prompt_ids(TEXT)
    assert llm.generate(TEXT, **options).prefix_miss == PrefixMiss("empty", 0, ids[0])
    assert llm.generate(TEXT, **options).prefix_miss is None
    other = (*ids[:40], 5, *ids[41:])
    assert llm.generate(other, **options).prefix_miss == PrefixMiss("input", 40, 5, ids[40])
    assert llm.generate(TEXT, salt="key", **options).prefix_miss.reason == "salt"
    assert llm.generate(TEXT + "x" * 9, max_tokens=3).prefix_miss is None


def test_warm_reads_prefixes_that_later_requests_find(tiny_model, tmp_path):
    system = [{"role": "system", "content": TEXT}]
    chat = [*system, {"role": "user", "content": "the llama"}]
    folder = tmp_path / "pages"
    with LLM(tiny_model, "native") as plain:
        expected = plain.chat(chat, max_tokens=9, logprobs=2)
        assert expected.cached_tokens == 0

    def check(llm, completion):
        assert (completion.ids, completion.logprobs) == (expected.ids, expected.logprobs)
        length = len(llm.prompt_ids(system, add_generation_prompt=False))
        assert length - 1 <= completion.cached_tokens < len(completion.prompt_ids)

    with LLM(tiny_model, "native", prefix_cache_dir=folder) as llm:
        read = llm.warm([system, TEXT, [5, 6, 7]])
        assert read == sum(map(len, [llm.prompt_ids(system, add_generation_prompt=False), llm.prompt_ids(TEXT), "567"]))
        check(llm, llm.chat(chat, max_tokens=9, logprobs=2))
        assert llm.warm([TEXT]) <= 1
        assert llm.chat(chat, max_tokens=9, salt="other").cached_tokens == 0
        llm.warm([system], salt="other")
        assert llm.chat(chat, max_tokens=9, salt="other").cached_tokens > 100
        with pytest.raises(RequestError, match="prompts is 'the'"):
            llm.warm("the")
    with LLM(tiny_model, "native", prefix_cache_dir=folder) as llm:
        assert llm.warm([system]) < 70  # all full pages were on the disk
        assert llm.statistics().disk_hits > 0
        check(llm, llm.chat(chat, max_tokens=9, logprobs=2))

    async def warm():
        async with AsyncLLM(tiny_model, "native") as llm:
            await llm.warm([system])
            check(llm, await llm.chat(chat, max_tokens=9, logprobs=2))

    asyncio.run(warm())


def test_statistics_name_the_adapters(tmp_path):
    from puna.config import LlamaConfig

    config = LlamaConfig.from_pretrained(LAYOUTS["hf"])
    paths = {name: write_random_adapter(tmp_path / name, config, "lora") for name in ("red", "blue")}
    with LLM(LAYOUTS["hf"], "native", adapters=paths, max_batch=2) as llm:
        streams = [llm.stream([5, 6], max_tokens=200, ignore_eos=True, adapter=name) for name in ("red", "blue", None)]
        for stream in streams[:2]:
            next(stream)
        numbers = llm.statistics()
        assert (numbers.running_adapters, numbers.waiting_adapters) == ({"red": 1, "blue": 1}, {"": 1})
        for stream in streams:
            stream.close()


def test_prompt_ids_are_those_that_the_model_reads(llm):
    messages = [{"role": "user", "content": "the llama"}]
    assert llm.prompt_ids(messages) == llm.chat(messages, max_tokens=1).prompt_ids
    assert llm.prompt_ids("the llama") == llm.generate("the llama", max_tokens=1).prompt_ids
    assert llm.prompt_ids([5, 6]) == (5, 6)
    assert llm.prompt_ids(messages, add_generation_prompt=False) == llm.prompt_ids(messages)[:-1]
    with pytest.raises(RequestError, match="tools is given, but the prompt is not a conversation"):
        llm.prompt_ids("the llama", tools=[{}])
