"""`device_map`: several devices with accelerate. Without a GPU, the devices are the CPU and the disk."""

from __future__ import annotations

import importlib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.errors import MissingExtraError, RequestError
from puna.model import KVCache, LlamaForCausalLM, LlamaModel
from puna.model.huggingface import placement
from tests.helpers.configurations import DYNAMIC, config_of, longrope

pytest.importorskip("accelerate")

IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))
MAP = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
       "model.norm": "cpu", "lm_head": "disk"}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    folder: Path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(config_of()).eval()
    model.save_pretrained(folder)
    return folder, model(IDS).logits


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [("auto", {"": torch.device("cpu")}), ("cpu", {"": torch.device("cpu")}), ({"": "cpu"}, {"": "cpu"}),
     ({"model": "cpu", "lm_head": "cpu"}, {"model": "cpu", "lm_head": "cpu"})],
)  # fmt: skip
def test_a_map_to_one_device(saved: Any, device_map: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    model = LlamaForCausalLM.from_pretrained(saved[0], device_map=device_map)
    assert model.hf_device_map == expected
    assert torch.equal(model(IDS).logits, saved[1])


@pytest.mark.filterwarnings("ignore:.*offloaded")
def test_weights_on_the_disk_are_read_when_they_are_needed(saved: Any, tmp_path: Path) -> None:
    folder, logits = saved
    model = LlamaForCausalLM.from_pretrained(folder, device_map=MAP, offload_folder=tmp_path / "off")
    assert model.hf_device_map == MAP
    assert model.lm_head.weight.is_meta
    assert (tmp_path / "off" / "lm_head.weight.dat").stat().st_size == 4 * 67 * 48
    assert torch.equal(model(IDS).logits, logits)
    assert model.generate(IDS, max_new_tokens=2).shape == (2, 9)
    with pytest.warns(UserWarning, match="loads all of them into memory"):
        model.save_pretrained(tmp_path / "again")
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path / "again")(IDS).logits, logits)


@pytest.mark.parametrize("given", [None, {"cpu": "1GB"}])
def test_accelerate_keeps_its_reserve_if_no_limits_are_given(monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    """`get_balanced_memory` leaves a tenth of a single GPU free only if it receives no limits."""
    utils = pytest.importorskip("accelerate.utils")
    received = []
    balanced = utils.get_balanced_memory
    monkeypatch.setattr(
        utils, "get_balanced_memory",
        lambda *args, **options: received.append(options["max_memory"]) or balanced(*args, **options),
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of())
    arguments = {"strategy": "auto", "max_memory": given, "folder": None, "offload_buffers": False}
    placement.infer_placement(model, torch.float32, arguments)
    assert received == [None if given is None else {"cpu": 10**9}]


@pytest.mark.filterwarnings("ignore:.*offloaded")
@pytest.mark.parametrize("strategy", ["auto", "sequential"])
def test_an_automatic_map_respects_the_memory_of_each_device(saved: Any, tmp_path: Path, strategy: str) -> None:
    model = LlamaForCausalLM.from_pretrained(
        saved[0], device_map=strategy, max_memory={"cpu": 150_000}, offload_folder=tmp_path
    )
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(model(IDS).logits, saved[1])


@pytest.mark.parametrize("strategy", ["auto", "sequential"])
@pytest.mark.parametrize("memory", [5, {"cpu": "many"}, {"cpu": -1}, {"cpu": [1]}, {"gpu": 5}])
def test_max_memory_maps_devices_to_sizes(saved: Any, memory: Any, strategy: str) -> None:
    with pytest.raises(RequestError, match=r"max_memory is .*; it must map devices .* '10GiB'"):
        LlamaForCausalLM.from_pretrained(saved[0], device_map=strategy, max_memory=memory)


def test_a_disk_needs_a_folder_and_several_devices_need_accelerate(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="offload_folder is not given"):
        LlamaForCausalLM.from_pretrained(saved[0], device_map=MAP)
    monkeypatch.setattr(placement, "has_accelerate", lambda: False)
    with pytest.raises(MissingExtraError, match="pip install accelerate"):
        LlamaForCausalLM.from_pretrained(saved[0], device_map=MAP, offload_folder=tmp_path)


def test_shared_matrices_must_be_on_one_device(tmp_path: Path) -> None:
    LlamaForCausalLM(config_of(tie_word_embeddings=True)).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="share a matrix"):
        LlamaForCausalLM.from_pretrained(tmp_path, device_map=MAP, offload_folder=tmp_path / "off")


def tensors_of(value: Any) -> list[Tensor]:
    """Returns the tensors in tuples and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else vars(value).values() if is_dataclass(value) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


@pytest.mark.parametrize("rope", [None, DYNAMIC, longrope(12)])
def test_accelerate_moves_the_inputs_that_layers_share(rope: Any) -> None:
    model = LlamaModel(config_of(rope_scaling=rope))
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    step = model.step(model.embed(IDS), KVCache(), mask)
    assert len(tensors_of(step)) >= 4
    moved = importlib.import_module("accelerate.utils").send_to_device(step, "meta")
    assert type(moved) is type(step) and type(moved.rope) is type(step.rope)
    assert len(tensors_of(moved)) == len(tensors_of(step))
    assert all(tensor.is_meta for tensor in tensors_of(moved))
    assert not any(tensor.is_meta for tensor in tensors_of(step))
