"""Answers over HTTP, read by the openai SDK, equal those of `LLM` in ids and log-probabilities, bit for bit."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.sdk_types import Package

pytest.importorskip("fastapi")
openai = Package("openai")

MESSAGES = [{"role": "user", "content": "the llama lives in"}]

OPTIONS = [
    {"temperature": 0},
    {"temperature": 1.3, "seed": 11, "n": 3},
    {"temperature": 0.9, "seed": 5, "top_p": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 1.5, "seed": -3, "logit_bias": {"40": 5, "41": -100}},
    {"temperature": 1, "seed": 2, "top_k": 7, "min_p": 0.02, "typical_p": 0.95, "repetition_penalty": 1.2},
    {"temperature": 1, "seed": 3, "min_tokens": 9, "ignore_eos": True, "stop_token_ids": [40]},
    {"temperature": 1, "seed": 4, "allowed_token_ids": [40, 41, 42, 50]},
    {"temperature": 0, "n": 2, "stop": ["a "]},
]

SDK = {"temperature", "seed", "n", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop"}


@pytest.fixture(scope="module")
def sdk(client):
    """The openai SDK, whose requests go to the application without a network."""
    import httpx2

    class Bridge(httpx2.BaseTransport):
        def handle_request(self, request):
            response = client.request(request.method, request.url.path, content=request.read(), headers=request.headers)
            headers = {key: value for key, value in response.headers.items() if key != "content-length"}
            return httpx2.Response(response.status_code, headers=headers, content=response.content, request=request)

    return openai.OpenAI(
        base_url="http://localhost/v1", api_key="none", http_client=httpx2.Client(transport=Bridge()), max_retries=0
    )


def arguments(options):
    extra = {name: value for name, value in options.items() if name not in SDK}
    known = {name: value for name, value in options.items() if name in SDK}
    return {"model": "golden", "max_tokens": 16, **known, "extra_body": {"return_token_ids": True, **extra}}


def expected(llm, method, prompt, options):
    given = dict(options)
    if "logit_bias" in given:
        given["logit_bias"] = {int(key): value for key, value in given["logit_bias"].items()}
    if "seed" in given:
        given["seed"] %= 2**64
    first = asyncio.run(getattr(llm, method)(prompt, max_tokens=16, logprobs=3, **given))
    return [first, *first.alternatives]


def rows(completion, count):
    return [(row.logprob, [logprob for _, logprob in row.top]) for row in completion.logprobs[:count]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_chat(sdk, llm, options):
    answers = expected(llm, "chat", MESSAGES, options)
    response = sdk.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **arguments(options))
    chunks = list(
        sdk.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, stream=True, **arguments(options))
    )
    assert len(response.choices) == len(answers)
    for answer, choice in zip(answers, response.choices, strict=True):
        assert choice.message.content == answer.text
        assert choice.finish_reason == answer.finish_reason
        ids = choice.model_extra["token_ids"]
        # Tokens of a stop text are not a part of the response.
        assert tuple(ids) == answer.ids[: len(ids)]
        assert len(ids) == len(answer.ids) or "stop" in options
        given = [(row.logprob, [top.logprob for top in row.top_logprobs]) for row in choice.logprobs.content]
        assert given == rows(answer, len(ids))
        assert all(bytes(row.bytes).decode(errors="replace") == row.token for row in choice.logprobs.content)
        deltas = [item for chunk in chunks for item in chunk.choices if item.index == choice.index]
        assert deltas[0].delta.role == "assistant"
        assert all(item.delta.role is None for item in deltas[1:])
        assert "".join(item.delta.content or "" for item in deltas) == answer.text
        assert [row for item in deltas if item.logprobs for row in item.logprobs.content] == choice.logprobs.content
        assert [item.finish_reason for item in deltas] == [None] * (len(deltas) - 1) + [answer.finish_reason]


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_completions(sdk, llm, options):
    answers = expected(llm, "generate", "the llama", options)
    response = sdk.completions.create(prompt="the llama", logprobs=3, **arguments(options))
    for answer, choice in zip(answers, response.choices, strict=True):
        assert choice.text == answer.text
        assert tuple(choice.model_extra["token_ids"]) == answer.ids
        assert choice.logprobs.token_logprobs == [row.logprob for row in answer.logprobs]


def test_answers_do_not_depend_on_cached_prefixes_other_requests_or_predictions(sdk, llm):
    """Cold, warm, batched with others, with another salt, and with a prediction: equal ids and log-probabilities."""
    options = {"temperature": 1.1, "seed": 21}
    (answer,) = expected(llm, "chat", MESSAGES, options)

    def ids(**extra):
        given = arguments({**options, **extra})
        response = sdk.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **given)
        choice = response.choices[0]
        assert [row.logprob for row in choice.logprobs.content] == [row.logprob for row in answer.logprobs]
        return tuple(choice.model_extra["token_ids"]), response.usage

    cold, usage = ids(cache_salt="another")
    assert usage.prompt_tokens_details.cached_tokens == 0
    warm, usage = ids(cache_salt="another", explain_prefix=True)
    assert usage.prompt_tokens_details.cached_tokens > 0
    predicted, usage = ids(prediction={"type": "content", "content": answer.text})
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 0
    several, _ = ids(n=4)
    assert cold == warm == predicted == several == answer.ids


def test_the_reason_for_a_prefix_miss_names_the_first_different_token(client):
    def usage(content):
        fields = {"model": "golden", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return client.post(
            "/v1/chat/completions", json={**fields, "cache_salt": "miss", "explain_prefix": True}
        ).json()["usage"]

    assert usage("the llama lives high")["prefix_miss"]["reason"] in ("empty", "salt")
    miss = usage("the llama lives low")["prefix_miss"]
    assert miss["reason"] == "input"
    assert miss["token"]["text"] != miss["cached_token"]["text"]


def test_errors_have_the_types_of_the_sdk(sdk):
    with pytest.raises(openai.BadRequestError, match="temperature") as error:
        sdk.chat.completions.create(model="golden", messages=MESSAGES, temperature=9)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as error:
        sdk.chat.completions.create(model="golden", messages=[{"role": "user", "content": "x " * 500}])
    assert error.value.code == "context_length_exceeded"


def test_models(sdk, llm):
    (model,) = sdk.models.list().data
    assert model.id == "golden"
    assert model.model_extra["max_model_len"] == llm.longest_text()
    assert sdk.models.retrieve("golden").id == "golden"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("other")


def test_usage_and_progress_of_streams(sdk):
    chunks = list(sdk.chat.completions.create(
        model="golden", messages=MESSAGES, max_tokens=3, stream=True, stream_options={"include_usage": True},
        extra_body={"return_progress": True, "cache_salt": "progress"},
    ))  # fmt: skip
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    progress = [chunk.model_extra["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk.model_extra]
    assert progress[-1]["processed"] == progress[-1]["total"] == chunks[-1].usage.prompt_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_texts_are_held_back_with_their_log_probabilities(sdk, llm):
    (answer,) = expected(llm, "chat", MESSAGES, {"temperature": 0})
    stop = answer.text[6:9]
    for included in (False, True):
        given = arguments({"temperature": 0, "stop": [stop], "include_stop_str_in_output": included})
        text, tokens = "", []
        for chunk in sdk.chat.completions.create(messages=MESSAGES, logprobs=True, stream=True, **given):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                tokens += choice.logprobs.content if choice.logprobs else []
        end = answer.text.index(stop) + (len(stop) if included else 0)
        assert text == answer.text[:end]
        written = "".join(row.token for row in tokens)
        assert written.startswith(text) or written.lstrip().startswith(text)
        assert [row.logprob for row in tokens] == [row.logprob for row in answer.logprobs[: len(tokens)]]


def test_the_fingerprint_depends_on_the_weights_and_the_template(client, llm, tmp_path):
    import shutil

    from puna import AsyncLLM
    from puna.server.service import model_digest
    from tests.golden.files import LAYOUTS

    first = client.post("/v1/completions", json={"model": "golden", "prompt": "a", "max_tokens": 1}).json()
    assert first["system_fingerprint"].startswith("fp_")
    folder = shutil.copytree(LAYOUTS["hf"], tmp_path / "copy")
    data = bytearray((folder / "model.safetensors").read_bytes())
    with AsyncLLM_of(AsyncLLM, folder) as same:
        assert model_digest(same) == model_digest(llm)
        same.tokenizer.chat_template = "{{ messages[0].content }}"
        assert model_digest(same) != model_digest(llm)
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with AsyncLLM_of(AsyncLLM, folder) as other:
        assert model_digest(other) != model_digest(llm)


class AsyncLLM_of:  # noqa: N801
    """Context manager of a model outside asyncio."""

    def __init__(self, kind, folder):
        self.model = kind(folder, "native")

    def __enter__(self):
        return self.model

    def __exit__(self, *_):
        self.model.close()
