"""A server compiles decoding on a GPU before it is ready. Here the CPU replays steps instead of CUDA graphs."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fastapi")

from puna import LLM, AsyncLLM, LlamaForSequenceClassification  # noqa: E402
from puna.model import backend as torch_backend  # noqa: E402
from puna.model.paged import decode  # noqa: E402
from puna.server.service import Service  # noqa: E402
from puna.server.settings import ServerSettings  # noqa: E402
from tests.golden.files import LAYOUTS  # noqa: E402

PROMPTS = [[1, 30 + n % 20, 40 + n // 20] for n in range(20)]
COUNTS = (1, 16, 20)
"""Numbers of concurrent prompts: their steps need the sizes 1, 16 and 64."""


class Replay:
    """A step that is computed again, instead of a CUDA graph."""

    def __init__(self, step: decode.DecodeStep, replayed: Counter[int], rows: int) -> None:
        self.outputs = step.compute()
        self._step, self._replayed, self._rows = step, replayed, rows

    def replay(self) -> None:
        self._replayed[self._rows] += 1
        for output, values in zip(self.outputs, self._step.compute(), strict=True):
            output.copy_(values)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The sizes of captured steps, in order, and how often the steps of each size have been replayed."""
    recorded = SimpleNamespace(captured=[], replayed=Counter())

    def capture(self: decode.DecodeGraphs, rows: int) -> decode.Captured:
        cache = self._cache
        cache.limit += 1  # the spare page, which only the cache of a GPU has
        cache.reserve(cache.limit)
        cache.limit -= 1
        recorded.captured.append(rows)
        step = decode.DecodeStep(self._model, cache, rows, self._joined)
        graph = Replay(step, recorded.replayed, rows)
        return decode.Captured(graph, step, *graph.outputs, *map(torch.empty_like, graph.outputs))

    monkeypatch.setattr(decode.DecodeGraphs, "_capture", capture)
    monkeypatch.setattr(torch_backend, "_can_capture", lambda model: True)
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(decode.torch.cuda, "current_stream", lambda: stream)
    return recorded


def load(path: Path = LAYOUTS["hf"], **settings: Any) -> tuple[Service, list[Sequence[int]]]:
    """Returns a service that has loaded a checkpoint, and the reports of compilation."""
    reports: list[Sequence[int]] = []
    options = {"backend": "torch", "threads": 1, "max_batch": 20}
    service = Service(path, ServerSettings(options=options, **settings))
    service.load_in_thread(reports.append).join()
    assert service.state == "ready", service.error
    return service, reports


def answers(llm: AsyncLLM) -> list[list[tuple[int, ...]]]:
    """Returns the ids of answers to 1, 16 and 20 prompts at once."""

    async def ask(count: int) -> list[tuple[int, ...]]:
        found = await asyncio.gather(*(llm.generate(prompt, max_tokens=12) for prompt in PROMPTS[:count]))
        return [answer.ids for answer in found]

    return [asyncio.run(ask(count)) for count in COUNTS]


@pytest.fixture(scope="module")
def expected() -> list[list[tuple[int, ...]]]:
    with LLM(LAYOUTS["hf"], "native", dtype="float32") as llm:
        ids = [llm.generate(prompt, max_tokens=12).ids for prompt in PROMPTS]
    return [ids[:count] for count in COUNTS]


def test_no_request_compiles_a_step(steps: SimpleNamespace, expected: list) -> None:
    service, reports = load()
    assert steps.captured == [1, 16, 64] and reports == [[1, 16, 64]]
    assert answers(service.llm) == expected
    assert steps.captured == [1, 16, 64]
    assert min(steps.replayed[size] for size in steps.captured) > 0, steps.replayed
    service.close()


def test_lazy_compilation_compiles_a_size_when_a_step_needs_it(steps: SimpleNamespace, expected: list) -> None:
    service, reports = load(lazy_compile=True)
    assert not steps.captured and not reports
    assert answers(service.llm) == expected
    assert sorted(steps.captured) == [1, 16, 64]
    service.close()


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 16]), (16, [1, 16]), (17, [1, 16, 64]), (300, [1, 16, 64, 256])]
)
def test_sizes_that_the_engine_never_uses_are_left_out(steps: SimpleNamespace, most: int, sizes: list[int]) -> None:
    backend = torch_backend.TorchBackend.from_pretrained(LAYOUTS["hf"])
    backend.compile(most, lambda compiled: None)
    assert steps.captured == sizes


@pytest.mark.filterwarnings("ignore:.*must be trained")
def test_a_classifier_compiles_nothing(steps: SimpleNamespace, tmp_path: Path) -> None:
    folder = shutil.copytree(LAYOUTS["hf"], tmp_path / "classifier")
    LlamaForSequenceClassification.from_pretrained(LAYOUTS["hf"], num_labels=2).save_pretrained(folder)
    service, reports = load(folder)
    assert not steps.captured and not reports
    service.close()


def test_a_server_on_a_cpu_compiles_nothing() -> None:
    service, reports = load()
    assert not reports
    service.close()


def test_a_failure_of_the_compiler_ends_the_start(steps: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: decode.DecodeGraphs, rows: int) -> decode.Captured:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(decode.DecodeGraphs, "_capture", fail)
    service = Service(LAYOUTS["hf"], ServerSettings(options={"backend": "torch", "threads": 1}))
    service.load_in_thread().join()
    assert service.state == "failed" and "memory" in str(service.error)
