"""`generate()` of a model with PEFT's adapters: PyTorch while they are applied, native after they have been merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.native_generation import IDS, both_paths, new_model

peft = pytest.importorskip("peft")


LORA = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
IA3 = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"], "init_ia3_weights": False}


@pytest.mark.parametrize(("kind", "settings"), [("LoraConfig", LORA), ("IA3Config", IA3)])
def test_an_adapter_uses_pytorch_and_merged_weights_the_native_runtime(kind: str, settings: dict[str, Any]) -> None:
    model = new_model()
    plain = both_paths(model, IDS)
    model.generate(IDS, max_new_tokens=2)
    adapted = peft.get_peft_model(model, getattr(peft, kind)(**settings))
    expected = adapted.generate(IDS, max_new_tokens=12, eos_token_id=[], pad_token_id=0)
    assert model.generation_path.startswith("torch: model.layers.0.")
    assert not torch.equal(expected, plain)
    merged = adapted.merge_and_unload()
    assert torch.equal(both_paths(merged, IDS), expected)


@pytest.mark.filterwarnings("ignore:.*")
def test_virtual_tokens_use_pytorch() -> None:
    model = new_model()
    model.generate(IDS, max_new_tokens=2)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(model, config)
    adapted.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, eos_token_id=[])
    assert model.generation_path.startswith("torch: LlamaForCausalLM has another prepare_inputs_for_generation")
