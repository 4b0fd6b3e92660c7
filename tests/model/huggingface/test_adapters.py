"""Adapters inside a model: the methods are those of transformers, which PEFT imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import RequestError
from puna.model import LlamaForCausalLM
from tests.helpers.configurations import config_of

peft = pytest.importorskip("peft")
IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))


def new_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(config_of()).eval()


@pytest.mark.parametrize("safe", [False, True])
def test_an_adapter_is_saved_as_a_folder_of_peft(safe: bool, tmp_path: Path) -> None:
    model = new_model()
    plain = model(IDS).logits
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False), "first")
    logits = model(IDS).logits
    assert not torch.allclose(logits, plain)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    ending = "safetensors" if safe else "bin"
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", f"adapter_model.{ending}"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    loaded = peft.PeftModel.from_pretrained(new_model(), tmp_path)
    assert torch.allclose(loaded(IDS).logits, logits, atol=1e-6)
    model.disable_adapters()
    assert torch.allclose(model(IDS).logits, plain, atol=1e-6)
    if safe:  # transformers reads only safetensors files
        again = new_model()
        again.load_adapter(str(tmp_path))
        assert torch.allclose(again(IDS).logits, logits, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Already found")
def test_several_active_adapters_are_saved_separately(tmp_path: Path) -> None:
    model = new_model()
    for name in ("first", "second"):
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), name)
    model.set_adapter(["first", "second"])
    with pytest.raises(RequestError, match=r"call set_adapter and save each"):
        model.save_pretrained(tmp_path / "new")
    model.set_adapter("second")
    model.save_pretrained(tmp_path / "new")
