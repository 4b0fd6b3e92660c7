"""Requests with adapters, on a fake backend: virtual tokens precede the prompt, and pages belong to one adapter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from puna.backend import PAGE, Outputs, check_batch
from puna.engine import Engine, LoadedAdapter, Request
from puna.errors import BackendError, RequestError
from tests.engine.recorder import VOCAB, Recorder, drain, next_token, tokens_of
from tests.helpers.properties import FACTOR

OWNER = 1000
"""Stored tokens of adapter n are increased by n * OWNER."""


class AdapterRecorder(Recorder):
    """Logits are a function of all tokens, of embeddings (their first value is the token), and of the adapter."""

    def __init__(self, pages: int = 100, context: int = 1024) -> None:
        super().__init__(pages, context)
        self.fills: list[int] = []

    def forward(self, batch):
        check_batch(batch, self.config, self.pages, range(10))
        self.batches.append([len(chunk.tokens) for chunk in batch])
        rows = []
        for chunk in batch:
            own = chunk.adapter * OWNER
            cached = (self.cache[list(chunk.pages)].reshape(-1)[: chunk.start] - own).tolist()
            assert all(0 <= token < OWNER for token in cached), "a page of another adapter"
            tokens = chunk.tokens if chunk.embeddings is None else chunk.embeddings[:, 0].astype(int)
            for index, token in enumerate(tokens.tolist()):
                self.cache[chunk.pages[len(cached) // PAGE], len(cached) % PAGE] = token + own
                cached.append(token)
                if index >= len(tokens) - chunk.rows:
                    rows.append(np.eye(VOCAB, dtype=np.float32)[(next_token(cached) + chunk.adapter) % VOCAB])
        return Outputs(np.array(rows, np.float32).reshape(-1, VOCAB), np.empty((0, 8), np.float32))

    def fill_pages(self, pages, keys, values):
        assert (values == keys + 0.5).all()
        tokens = keys[0, 0, :, 0]
        self.fills.append(len(tokens))
        for index, token in enumerate(tokens):
            self.cache[pages[index // PAGE], index % PAGE] = token


def soft_prompt(values, number=0):
    prompt = np.zeros((len(values), 8), np.float32)
    prompt[:, 0] = values
    return LoadedAdapter(f"prompt {values} {number}", number, prompt=prompt)


def prefix(values):
    keys = np.zeros((1, 1, 1, len(values), 4), np.float32)
    keys[..., 0] = values
    return LoadedAdapter(f"prefix {values}", prefix=np.stack([keys, keys + 0.5], 1)[:, :, 0])


def virtual_values(adapter):
    if adapter is None or not adapter.virtual_tokens:
        return []
    values = adapter.prefix[0, 0, 0, :, 0] if adapter.prompt is None else adapter.prompt[:, 0]
    return values.astype(int).tolist()


def expected(request: Request) -> list[int]:
    adapter = request.adapter
    change = adapter.embed if adapter is not None and adapter.embed is not None else lambda ids: np.array([ids]).T
    tokens = virtual_values(adapter) + change(request.prompt_ids)[:, 0].astype(int).tolist()
    answer: list[int] = []
    for _ in range(request.max_tokens):
        answer.append((next_token(tokens) + (adapter.number if adapter else 0)) % VOCAB)
        tokens.append(int(change(answer[-1:])[0, 0]))
    return answer


def values_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def double(ids):
    """Embeddings of another vocabulary."""
    embeddings = np.zeros((len(ids), 8), np.float32)
    embeddings[:, 0] = np.array(ids) * 2
    return embeddings


ADAPTERS = [
    None,
    LoadedAdapter("one", 1),
    LoadedAdapter("two", 2),
    LoadedAdapter("embedding", 3, embed=double),
    LoadedAdapter("only the embedding", embed=double),
    soft_prompt(values_of(3)),
    soft_prompt(values_of(64), 4),
    soft_prompt(values_of(70, 1)),
    prefix(values_of(5)),
    prefix(values_of(64)),
    prefix(values_of(130)),
]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_virtual_tokens_precede_the_prompt(adapter, chunk):
    engine = Engine(AdapterRecorder(), slots=2, chunk=chunk)
    requests = [Request(tuple(values_of(count, 2)), 6, adapter=adapter, speculate=count > 9) for count in (1, 9, 80)]
    ids = [engine.submit(request) for request in requests]
    events = drain(engine)
    for request, request_id in zip(requests, ids, strict=True):
        assert tokens_of(events, request_id) == expected(request)
        own = [event for event in events if event.request_id == request_id]
        assert sum(event.prompt_tokens + event.cached_tokens for event in own) == len(request.prompt_ids)
    assert engine.pool.available == engine.pool.pages


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_prompt_logits_are_those_of_the_prompt(adapter):
    request = Request(tuple(values_of(90, 3)), 2, prompt_logits=True, adapter=adapter)
    for _ in range(2):
        engine = Engine(AdapterRecorder(), chunk=50)
        engine.submit(request)
        events = drain(engine)
        logits = np.concatenate([event.logits for event in events if event.logits is not None])
        answers = [
            expected(Request(request.prompt_ids[: end + 1], 1, adapter=adapter))[0] for end in range(len(logits))
        ]
        assert len(logits) == 90
        assert logits.argmax(1).tolist() == answers
        assert tokens_of(events, 1) == expected(request)


def test_logits_from_a_later_position_reuse_the_pages_of_virtual_tokens():
    adapter = soft_prompt(values_of(70))
    engine = Engine(AdapterRecorder())
    prompt = tuple(values_of(80, 4))
    engine.submit(Request(prompt, 0, prompt_logits=True, adapter=adapter))
    drain(engine)
    engine.backend.batches.clear()
    engine.submit(Request(prompt, 0, prompt_logits=True, logits_from=60, adapter=adapter))
    events = drain(engine)
    assert sum(len(event.logits) for event in events if event.logits is not None) == 20
    assert engine.backend.batches == [[22]]


def test_equal_prompts_share_pages_only_under_the_same_adapter():
    engine = Engine(AdapterRecorder())
    prompt = tuple(values_of(130, 5))
    cached = []
    for adapter in [*ADAPTERS, *ADAPTERS]:
        engine.submit(Request(prompt, 1, adapter=adapter))
        cached.append(sum(event.cached_tokens for event in drain(engine)))
    assert cached[: len(ADAPTERS)] == [0] * len(ADAPTERS)
    lengths = [len(virtual_values(adapter)) for adapter in ADAPTERS]
    assert cached[len(ADAPTERS) :] == [(129 + length) // PAGE * PAGE - length for length in lengths]


def test_complete_pages_of_a_prefix_are_filled_once():
    adapter = prefix(values_of(130))
    engine = Engine(AdapterRecorder(), slots=4)
    for seed in range(3):
        engine.submit(Request(tuple(values_of(9, seed)), 2, adapter=adapter))
    drain(engine)
    assert engine.backend.fills == [130, 2, 2]
    engine.submit(Request(tuple(values_of(9, 7)), 2, adapter=adapter))
    drain(engine)
    assert engine.backend.fills == [130, 2, 2, 2]


def test_without_a_prefix_cache_each_request_fills_its_pages():
    adapter = prefix(values_of(70))
    engine = Engine(AdapterRecorder(), slots=2, prefix_cache=False)
    requests = [Request(tuple(values_of(9, seed)), 2, adapter=adapter) for seed in range(3)]
    ids = [engine.submit(request) for request in requests]
    events = drain(engine)
    assert [tokens_of(events, request_id) for request_id in ids] == [expected(request) for request in requests]
    assert engine.backend.fills == [70, 70, 70]


def test_an_error_while_pages_are_filled_ends_only_that_request():
    class Refusing(AdapterRecorder):
        def fill_pages(self, pages, keys, values):
            raise BackendError("no prefix")

    engine = Engine(Refusing(), slots=2)
    first = engine.submit(Request((1, 2), 3, adapter=prefix([4])))
    second = engine.submit(Request((1, 2), 3))
    events = drain(engine)
    assert [str(event.error) for event in events if event.request_id == first] == ["no prefix"]
    assert tokens_of(events, second) == expected(Request((1, 2), 3))
    assert engine.pool.available == engine.pool.pages


def test_errors_of_embeddings_end_only_the_requests_of_the_batch():
    def unreadable(ids):
        raise BackendError("the file is gone")

    engine = Engine(AdapterRecorder())
    engine.submit(Request((1, 2), 3, adapter=LoadedAdapter("gone", embed=unreadable)))
    assert [str(event.error) for event in drain(engine)] == ["the file is gone"]
    engine.submit(Request((1, 2), 3))
    assert tokens_of(drain(engine), 2) == expected(Request((1, 2), 3))


def test_limits_count_virtual_tokens():
    engine = Engine(AdapterRecorder(context=64))
    adapter = soft_prompt(values_of(20))
    engine.check(Request((1,) * 10, 34, adapter=adapter))
    words = (
        r"the prompt's tokens \(10\), the adapter's virtual tokens \(20\) and max_tokens \(35\) exceed .* context "
        "of 64 tokens; set max_tokens to 34 or less"
    )
    with pytest.raises(RequestError, match=words):
        engine.check(Request((1,) * 10, 35, adapter=adapter))
    with pytest.raises(
        RequestError, match=r"\(45\) and the adapter's virtual tokens \(20\) exceed .* shorten the prompt"
    ):
        engine.check(Request((1,) * 45, 0, adapter=adapter))


def test_random_schedules_with_adapters_on_a_small_cache():
    random, counts = np.random.default_rng(11), Counter()
    for _ in range(40 * FACTOR):
        engine = Engine(
            AdapterRecorder(int(random.integers(6, 14)), context=384),
            int(random.integers(1, 6)),
            int(random.choice([3, 40, 64, 200])),
            bool(random.random() < 0.9),
        )
        requests = {}
        text = values_of(120, int(random.integers(3)))
        for _ in range(12):
            prompt = tuple(text[: int(random.integers(1, 120))])
            adapter = ADAPTERS[random.integers(len(ADAPTERS))]
            request = Request(
                prompt, int(random.integers(0, 80)), adapter=adapter, speculate=bool(random.random() < 0.3)
            )
            requests[engine.submit(request)] = request
        events = drain(engine)
        for request_id, request in requests.items():
            assert tokens_of(events, request_id) == expected(request)
            own = [event for event in events if event.request_id == request_id]
            assert sum(event.prompt_tokens + event.cached_tokens for event in own) == len(request.prompt_ids)
            counts["cached"] += any(event.cached_tokens and request.adapter for event in own)
        counts["preemptions"] += engine.scheduler.preemptions
        counts["fills"] += len(engine.backend.fills)
        assert engine.pool.available == engine.pool.pages
    assert min(counts["cached"], counts["preemptions"], counts["fills"]) >= 50, counts


def test_no_salt_of_a_request_equals_that_of_an_adapter():
    adapter = LoadedAdapter("one", 1)
    salts = [Request((1,), 1, adapter=adapter).page_salt, *(Request((1,), 1, salt=s).page_salt for s in ("one ", ""))]
    assert len(set(salts)) == 3
