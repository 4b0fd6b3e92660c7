"""`TorchBackend`: chunks, pages and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from puna.backend import Backend, Chunk
from puna.errors import BackendError, PunaError
from puna.model import LlamaForCausalLM, TorchBackend
from tests.helpers.configurations import CONFIGURATIONS, DYNAMIC, config_of
from tests.helpers.reference_models import pair

IDS = np.random.default_rng(0).integers(3, 67, 15)


@pytest.fixture
def backend() -> TorchBackend:
    return TorchBackend(pair(config_of(num_key_value_heads=2))[0], slots=6)


def are_close(logits: np.ndarray, expected: np.ndarray) -> bool:
    """Returns whether the largest difference is below 1e-5 of the largest expected logit."""
    assert logits.shape == expected.shape
    return float(np.abs(logits - expected).max()) <= 1e-5 * float(np.abs(expected).max())


def all_logits(model: LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    """Returns the model's logits of every position."""
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("name", ["gqa4", "mqa_tied", "yarn_narrow_heads", "longrope_gqa4", "beyond_the_context"])
def test_chunks_return_the_logits_of_the_complete_text(name: str) -> None:
    fields = (
        {"rope_scaling": DYNAMIC, "max_position_embeddings": 8}
        if name == "beyond_the_context"
        else CONFIGURATIONS[name]
    )
    model: LlamaForCausalLM = pair(config_of(**fields))[0]
    backend = TorchBackend(model)
    protocol: Backend = backend
    assert protocol.name == "torch"
    assert protocol.config is model.config
    rows = [
        backend.forward([Chunk((0,), IDS[:7], 0, 7)]).logits,
        backend.forward([Chunk((0,), IDS[7:8], 7)]).logits,
        backend.forward([Chunk((0,), IDS[8:11], 8, 0)]).logits,
        backend.forward([Chunk((0,), IDS[11:], 11, 2)]).logits,
    ]
    assert [len(part) for part in rows] == [7, 1, 0, 2]
    logits = np.concatenate(rows)
    assert logits.dtype == np.float32
    assert are_close(logits, all_logits(model, IDS)[[0, 1, 2, 3, 4, 5, 6, 7, 13, 14]])


def test_logits_depend_on_other_chunks_of_the_batch_only_by_rounding(backend: TorchBackend) -> None:
    first, second = IDS[:6], IDS[6:]
    logits = backend.forward([Chunk((0,), first, 0, 2), Chunk((3,), second, 0, 1)]).logits
    expected = np.concatenate([all_logits(backend.model, first)[-2:], all_logits(backend.model, second)[-1:]])
    assert are_close(logits, expected)
    single = backend.forward([Chunk((1,), second, 0, 1)]).logits
    assert are_close(logits[2:], single)
    assert np.array_equal(backend.forward([Chunk((0,), second, 0, 1)]).logits, single)
    assert backend.forward([]).logits.shape == (0, 67)
    assert backend.forward([Chunk((0,), second, 0, 0)]).logits.shape == (0, 67)


def test_narrower_integers_and_half_precision_are_accepted(backend: TorchBackend) -> None:
    expected = backend.forward([Chunk((0,), IDS, 0, 3)]).logits
    half = TorchBackend(backend.model.to(torch.bfloat16))
    logits = half.forward([Chunk((0,), IDS.astype(np.int32), 0, 3)]).logits
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= 0.05 * np.abs(expected).max()


def test_the_model_runs_in_evaluation_mode(backend: TorchBackend) -> None:
    model = LlamaForCausalLM(config_of(attention_dropout=0.9)).train()
    with_dropout = TorchBackend(model, slots=2)
    assert not model.training
    assert np.array_equal(
        with_dropout.forward([Chunk((0,), IDS, 0)]).logits, with_dropout.forward([Chunk((1,), IDS, 0)]).logits
    )


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (Chunk((1,), IDS[:2], 63), "chunk 1: positions 63 to 64 are outside its 1 pages of 64 tokens"),
        (Chunk((6,), IDS[:2], 0), r"chunk 1: pages are \(6,\); the cache has pages 0 to 5"),
        (Chunk((1,), np.array([3, 67]), 0), "token id 67 is outside the vocabulary, 0 to 66"),
        (Chunk((1,), np.array([-1, 3]), 0), "token id -1"),
        (Chunk((1,), np.array([], np.int64), 0), r"shape \(0,\)"),
        (Chunk((1,), IDS[:4].reshape(2, 2), 0), r"shape \(2, 2\)"),
        (Chunk((1,), IDS[:2], 0, 3), "rows is 3; it must be 0 to 2"),
        (Chunk((0,), IDS[:2], 0), "chunks 0 and 1 write to page 0"),
    ],
)
def test_a_batch_that_cannot_run_leaves_the_cache_unchanged(backend: TorchBackend, chunk: Chunk, text: str) -> None:
    backend.forward([Chunk((0,), IDS[:3], 0)])
    expected = backend.forward([Chunk((0,), IDS[3:4], 3)]).logits
    with pytest.raises(PunaError, match=text):
        backend.forward([Chunk((0,), IDS[5:7], 0), chunk])
    assert np.array_equal(backend.forward([Chunk((0,), IDS[3:4], 3)]).logits, expected)


@pytest.mark.parametrize("fields", [{}, {"rope_scaling": DYNAMIC, "max_position_embeddings": 64}])
def test_sequences_can_share_full_pages(fields: dict) -> None:
    model: LlamaForCausalLM = pair(config_of(**{"max_position_embeddings": 512, **fields}))[0]
    backend = TorchBackend(model, slots=8)
    ids = np.random.default_rng(3).integers(3, 67, 200)
    other = np.concatenate([ids[:128], ids[::-1][:40]])
    backend.forward([Chunk((3, 1), ids[:100], 0)])
    backend.forward([Chunk((3, 1, 7, 5), ids[100:], 100)])  # the cache grows between the chunks
    logits = backend.forward([Chunk((3, 1, 0), other[128:], 128, 40), Chunk((3, 1, 7, 5), ids[199:], 199)]).logits
    assert are_close(logits[:40], all_logits(model, other)[128:])
    assert are_close(logits[40:], all_logits(model, ids)[199:])


def test_from_pretrained_loads_the_model_on_a_device_and_in_a_dtype(tmp_path: Path) -> None:
    model: LlamaForCausalLM = pair(config_of(num_key_value_heads=2))[0]
    model.save_pretrained(tmp_path)
    loaded = TorchBackend.from_pretrained(tmp_path)
    assert np.array_equal(
        loaded.forward([Chunk((0,), IDS, 0)]).logits, TorchBackend(model).forward([Chunk((0,), IDS, 0)]).logits
    )
    assert TorchBackend.from_pretrained(tmp_path, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(BackendError, match="device is 'nowhere'"):
        TorchBackend.from_pretrained(tmp_path, device="nowhere")
    before = torch.get_num_threads()
    for arguments in ({"device": "meta"}, {"device": "nowhere"}, {"dtype": "int8"}):
        with pytest.raises(PunaError):
            TorchBackend.from_pretrained(tmp_path, threads=before + 1, **arguments)
        assert torch.get_num_threads() == before


def test_an_interrupted_step_can_be_repeated(backend: TorchBackend) -> None:
    backend.forward([Chunk((5,), IDS[:3], 0)])
    expected = backend.forward([Chunk((5,), IDS[3:5], 3)]).logits
    backend.forward([Chunk((5,), IDS[:2], 5)])  # tokens of the interrupted step
    assert (backend.forward([Chunk((5,), IDS[3:5], 3)]).logits == expected).all()


def test_exhausted_memory_is_an_error_with_the_amount(backend: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*arguments: object, **options: object) -> torch.Tensor:
        return torch.empty(2**50, dtype=torch.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(backend.model.model, "hidden", allocate)
        with pytest.raises(BackendError, match=r"memory is exhausted \(.*tried to allocate 1125899906842624 bytes"):
            backend.forward([Chunk((0,), IDS, 0)])
    with monkeypatch.context() as patch:
        patch.setattr(backend.model.model, "hidden", lambda *arguments, **options: torch.zeros(2) @ torch.zeros(3))
        with pytest.raises(RuntimeError, match="size"):
            backend.forward([Chunk((0,), IDS, 0)])
    assert backend.forward([Chunk((0,), IDS, 0)]).logits.shape == (1, backend.config.vocab_size)


def test_a_closed_backend_is_an_error(backend: TorchBackend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="the model is closed; load it again"):
        backend.forward([Chunk((0,), IDS, 0)])
