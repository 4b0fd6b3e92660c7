"""The methods of PEFT compute the same numbers on puna's models as on those of transformers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from puna.model import LlamaForCausalLM, LlamaForSequenceClassification
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import distance, pair, ragged

pytestmark = [
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),  # PEFT ignores those of generate()
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

METHODS: dict[str, peft.PeftConfig] = {
    "LoRA": peft.LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"], init_lora_weights=False),
    "DoRA": peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "IA3": peft.IA3Config(init_ia3_weights=False),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=3),
    "one virtual token": peft.PromptTuningConfig(num_virtual_tokens=1),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=3),
    "prefix projection": peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8),
    "P-tuning": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
    "adaption prompt": peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=2),
    "trainable tokens": peft.TrainableTokensConfig(token_indices=[6, 42], init_weights=False),
}
every_method = pytest.mark.parametrize("name", METHODS)


def wrapped(name: str, **fields: Any) -> tuple[Any, Any]:
    """Returns puna's model and that of transformers with the same adapter, of random weights, in evaluation mode."""
    config = METHODS[name]
    config.task_type = "CAUSAL_LM"
    models = pair(config_of(num_key_value_heads=2, pad_token_id=0, **fields))
    adapted = [peft.get_peft_model(model, config).eval() for model in models]
    generator = torch.Generator().manual_seed(3)
    trained = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in adapted]
    assert trained[0].keys() == trained[1].keys()
    assert trained[0]
    with torch.no_grad():
        for key, parameter in trained[0].items():
            parameter.normal_(std=0.3, generator=generator)
            trained[1][key].copy_(parameter)
    return adapted[0], adapted[1]


def batch(model: Any, side: str) -> dict[str, Tensor]:
    """Returns two texts of 8 and 5 tokens."""
    ids, mask, _ = ragged(model.config, (8, 5), side)
    return {"input_ids": ids, "attention_mask": mask}


@every_method
def test_loss_and_gradients_equal_those_of_transformers(name: str) -> None:
    ours, theirs = wrapped(name)
    inputs = batch(ours, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    losses = [model(**inputs, labels=labels).loss for model in (ours, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert distance(parameter.grad, expected[key].grad) <= 1e-4, key


@every_method
def test_generate_equals_that_of_transformers(name: str) -> None:
    ours, theirs = wrapped(name)
    inputs = batch(ours, "left")
    expected = theirs.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(ours.generate(**inputs, max_new_tokens=5, do_sample=False), expected)


@every_method
@torch.no_grad()
def test_an_adapter_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    ours, theirs = wrapped(name)
    inputs = batch(ours, "right")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.save_pretrained(tmp_path / "ours")
        theirs.save_pretrained(tmp_path / "theirs")
        logits = ours(**inputs).logits
        for folder in ("ours", "theirs"):
            base = pair(ours.config)[0]
            loaded = peft.PeftModel.from_pretrained(base, tmp_path / folder).eval()
            assert distance(loaded(**inputs).logits, logits) <= 1e-5


@pytest.mark.parametrize("name", ["LoRA", "prompt tuning", "prefix tuning", "P-tuning"])
def test_classifiers_can_be_adapted(name: str) -> None:
    config = METHODS[name]
    config.task_type, config.modules_to_save = "SEQ_CLS", None  # type: ignore[attr-defined]
    kind = LlamaForSequenceClassification
    models = pair(config_of(num_labels=3, pad_token_id=0), model_class=kind, name=kind.__name__)
    ours, theirs = (peft.get_peft_model(model, config).eval() for model in models)
    theirs.load_state_dict(ours.state_dict())
    inputs = batch(ours, "right")
    if "t" in name:  # virtual tokens: transformers pools the last token of the ids without them
        assert ours(**inputs, labels=torch.tensor([0, 2])).logits.shape == (2, 3)
    else:
        assert distance(ours(**inputs).logits, theirs(**inputs).logits) <= 1e-5


def test_lora_is_merged_into_the_weights() -> None:
    ours, _ = wrapped("DoRA")
    inputs = batch(ours, "right")
    with torch.no_grad():
        logits = ours(**inputs).logits
        merged = ours.merge_and_unload()
        assert type(merged) is LlamaForCausalLM
        assert distance(merged(**inputs).logits, logits) <= 1e-5
