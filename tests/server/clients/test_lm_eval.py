"""`lm-eval` over HTTP: its numbers are those of the model in the same process, to the last digit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.golden.files import LAYOUTS
from tests.server.clients.weather import MODEL

pytest.importorskip("lm_eval")
pytest.importorskip("aiohttp")

PAIRS = [("The llama walked up the hill", " and looked at the river."), ("", "Anna said"), ("One", " two three four")]
TEXTS = ["The llama waited in the rain. " * 6, "A short text."]
PROMPTS = ["The llama", "Once upon a time"]


@pytest.fixture(scope="module")
def llm(checkpoint: Any) -> Iterator[Any]:
    from puna import LLM

    with LLM(checkpoint, "native") as model:
        yield model


def client(address: str, **options: Any) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{address}/v1/completions", model=MODEL, tokenizer=str(LAYOUTS["hf"]), max_retries=1,
        tokenizer_backend="huggingface", max_length=512, batch_size=2, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def completions(address: str) -> Any:
    return client(address)


def instances(kind: str, arguments: list[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, item, index) for index, item in enumerate(arguments)]


def log_likelihood(llm: Any, ids: list[int], known: int) -> float:
    """Returns the log-likelihood of the tokens after the first `known`, summed in their order as `lm-eval` does."""
    tokens = llm.generate(ids, max_tokens=1, temperature=0, prompt_logprobs=1).prompt_logprobs[known:]
    value = sum(token.logprob for token in tokens)
    assert value == pytest.approx(-llm.nll(ids)[known - 1 :].sum(), rel=1e-7)  # computed in float64
    return value


def test_log_likelihoods(completions: Any, llm: Any) -> None:
    results = completions.loglikelihood(instances("loglikelihood", PAIRS))
    for (context, continuation), (value, greedy) in zip(PAIRS, results, strict=True):
        if context:
            start, end = completions._encode_pair(context, continuation)
        else:
            start, end = [completions.prefix_token_id], completions.tok_encode(continuation)
        assert value == log_likelihood(llm, start + end, len(start))
        best = llm.generate(start, max_tokens=len(end), temperature=0, ignore_eos=True).ids
        assert greedy == (list(best) == end)


def test_rolling_log_likelihoods(completions: Any, llm: Any) -> None:
    results = completions.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in TEXTS]))
    for text, value in zip(TEXTS, results, strict=True):
        ids = [completions.prefix_token_id, *completions.tok_encode(text)]
        assert value == log_likelihood(llm, ids, 1)


def test_the_numbers_are_those_of_the_same_model_in_this_process(address: str, completions: Any, llm: Any) -> None:
    """lm-eval's client puts BOS before a context only with `add_bos_token`, which in texts would add a second one."""
    from puna.evaluation.harness import PunaLM

    own, pairs = PunaLM(llm), instances("loglikelihood", PAIRS)
    assert client(address, add_bos_token=True).loglikelihood(pairs) == own.loglikelihood(pairs)
    texts = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    assert completions.loglikelihood_rolling(texts) == own.loglikelihood_rolling(texts)


@pytest.mark.parametrize("until", [["."], ["zzz"]])
def test_generated_texts(completions: Any, llm: Any, until: list[str]) -> None:
    fields = {"until": until, "max_gen_toks": 16, "temperature": 0}
    results = completions.generate_until(instances("generate_until", [(prompt, dict(fields)) for prompt in PROMPTS]))
    ids = [completions.tok_encode(prompt) for prompt in PROMPTS]
    stop = [*until, completions.eos_string]
    assert results == [llm.generate(prompt, max_tokens=16, temperature=0, stop=stop).text for prompt in ids]


def test_chats(address: str, llm: Any) -> None:
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion

    chat = LocalChatCompletion(base_url=f"{address}/v1/chat/completions", model=MODEL, max_retries=1, eos_string="</s>")
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    fields = {"until": ["zzz"], "max_gen_toks": 16, "temperature": 0}
    arguments = [(JsonChatStr(json.dumps(messages)), dict(fields)) for messages in conversations]
    results = chat.generate_until(instances("generate_until", arguments))
    assert results == [llm.chat(messages, max_tokens=16, temperature=0).text for messages in conversations]
