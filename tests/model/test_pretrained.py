"""The base class: arguments of `from_pretrained`, and attributes that other libraries read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import BackendError, ConfigError, RequestError
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))
MODEL_CLASSES = [LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    pair(config_of(pad_token_id=0))[0].save_pretrained(path)
    return path


# ---- from_pretrained


@pytest.mark.parametrize("value", ["cpu", "auto", torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu")}, None])
def test_a_device_map_may_name_one_device(folder: Path, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = LlamaForCausalLM.from_pretrained(folder, device_map=value, low_cpu_mem_usage=True)
    assert model.device == torch.device("cpu")
    assert model.generate(IDS, max_new_tokens=1).shape[0] == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [({}, "must map"), (["cpu"], "device_map is"), ({"model": "cpu"}, "any device for.*lm_head"),
     ({"": "cpu", "modle": "cpu"}, r"keys \['modle'\]"), ({"": "disk"}, "offload_folder")],
)  # fmt: skip
def test_an_invalid_device_map_is_an_error(folder: Path, value: Any, text: str) -> None:
    with pytest.raises((RequestError, BackendError), match=text):
        LlamaForCausalLM.from_pretrained(folder, device_map=value)


def test_device_together_with_device_map_is_an_error(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"device.*device_map.*one of them"):
        LlamaForCausalLM.from_pretrained(folder, device="cpu", device_map="auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
@pytest.mark.parametrize("argument", ["device", "device_map"])
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "a toaster"])
def test_a_device_that_does_not_exist_is_an_error(folder: Path, argument: str, name: str) -> None:
    with pytest.raises(BackendError, match=rf"{argument} is '{name}', which PyTorch cannot use here"):
        LlamaForCausalLM.from_pretrained(folder, **{argument: name})


@pytest.mark.parametrize("dtype", [torch.int8, torch.long, torch.complex64, "int8"])
def test_a_dtype_that_weights_cannot_have_is_an_error(folder: Path, dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"dtype is .*bfloat16"):
        LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    with pytest.raises(ConfigError, match=r"dtype is .*bfloat16"):
        LlamaForCausalLM.from_pretrained(folder, torch_dtype=dtype)


FIELDS: list[tuple[str, Any]] = [
    ("use_cache", False),
    ("output_attentions", True),
    ("output_hidden_states", True),
    ("return_dict", False),
    ("pad_token_id", 5),
    ("attention_dropout", 0.25),
]


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_arguments_replace_fields_of_the_configuration(folder: Path, name: str, value: Any) -> None:
    plain = LlamaForCausalLM.from_pretrained(folder).config
    model = LlamaForCausalLM.from_pretrained(folder, **{name: value})
    assert getattr(plain, name) != value
    assert getattr(model.config, name) == value
    assert {**model.config.to_dict(), name: None} == {**plain.to_dict(), name: None}


def test_replaced_fields_take_effect(folder: Path) -> None:
    assert isinstance(LlamaForCausalLM.from_pretrained(folder, return_dict=False)(IDS), tuple)
    assert LlamaForCausalLM.from_pretrained(folder, use_cache=False)(IDS).past_key_values is None
    assert LlamaModel.from_pretrained(folder, pad_token_id=5).embed_tokens.padding_idx == 5
    assert LlamaModel.from_pretrained(folder, attention_dropout=0.25).layers[0].self_attn.dropout == 0.25
    scaled = LlamaModel.from_pretrained(folder, rope_scaling={"type": "linear", "factor": 2.0})
    assert scaled.config.rope_scaling["factor"] == 2.0
    plain = LlamaModel.from_pretrained(folder)
    assert torch.equal(scaled.rotary_emb.inv_freq, plain.rotary_emb.inv_freq / 2)
    with pytest.raises(ConfigError, match=r"attention_dropout is 2\.0"):
        LlamaModel.from_pretrained(folder, attention_dropout=2.0)


# ---- attributes


@pytest.mark.parametrize("kind", MODEL_CLASSES)
def test_attributes_that_other_libraries_read_exist(kind: Any, folder: Path) -> None:
    model = kind(config_of())
    assert model.base_model is model.get_decoder()
    assert model.can_generate() == kind.can_generate() == (kind is LlamaForCausalLM)
    assert kind.main_input_name == "input_ids"
    assert kind._no_split_modules == ["LlamaDecoderLayer"]
    names = {type(module).__name__ for module in model.modules()}
    assert names.issuperset(kind._no_split_modules)
    assert model.name_or_path == ""
    if kind is not LlamaForSequenceClassification:
        loaded = kind.from_pretrained(folder)
        assert loaded.__dict__["name_or_path"] == str(folder)  # PEFT reads this entry


@pytest.mark.parametrize("tied", [False, True])
def test_num_parameters_equals_that_of_transformers(tied: bool) -> None:
    model, reference = pair(config_of(tie_word_embeddings=tied))
    for trainable in (False, True):
        for each in (model, reference):
            each.lm_head.weight.requires_grad_(False)
        flags: dict[str, Any] = {"only_trainable": trainable, "exclude_embeddings": True}
        assert model.num_parameters(**flags) == reference.num_parameters(**flags)
        assert model.num_parameters(trainable) == reference.num_parameters(trainable)


def test_embedded_inputs_can_require_gradients() -> None:
    model = LlamaForCausalLM(config_of()).requires_grad_(False)
    assert not model(IDS).logits.requires_grad
    model.enable_input_require_grads()
    model.enable_input_require_grads()
    assert model(IDS).logits.requires_grad
    model.disable_input_require_grads()
    model.disable_input_require_grads()
    assert not model(IDS).logits.requires_grad


@pytest.mark.parametrize("kind", MODEL_CLASSES)
def test_all_attributes_for_gradient_checkpointing_agree(kind: Any) -> None:
    model = kind(config_of()).train()
    states = [lambda: model.gradient_checkpointing, lambda: model.is_gradient_checkpointing]
    states += [lambda: model.base_model.gradient_checkpointing]
    model.gradient_checkpointing_enable()
    assert [state() for state in states] == [True] * 3
    assert model(IDS, use_cache=True).past_key_values is None
    model.gradient_checkpointing_disable()
    assert [state() for state in states] == [False] * 3
    model.gradient_checkpointing = True
    assert [state() for state in states] == [True] * 3
    assert model(IDS, use_cache=True).past_key_values is None
