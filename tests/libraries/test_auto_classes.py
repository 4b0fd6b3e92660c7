"""`AutoConfig`, `AutoModel` and its relatives, `set_seed`: the classes and numbers of transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import puna
from puna.errors import ConfigError, ModelNotFoundError, RequestError
from tests.helpers.configurations import config_of

NAMES = [
    "AutoModel", "AutoModelForCausalLM", "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_class_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    config = config_of(num_hidden_layers=1)
    model: Any = getattr(puna, name).from_config(config)
    expected = getattr(transformers, name).from_config(transformers.LlamaConfig(**config.to_dict()))
    assert type(model).__name__ == type(expected).__name__
    model.save_pretrained(tmp_path)
    loaded = getattr(puna, name).from_pretrained(tmp_path, trust_remote_code=True, dtype="bfloat16")
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=rf"{name}.from_pretrained"):
        getattr(puna, name)()


def test_arguments_of_from_config() -> None:
    config = config_of(dtype="float16", num_hidden_layers=1)
    for dtype, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float16)):
        for name in ("dtype", "torch_dtype"):
            assert puna.AutoModel.from_config(config, **{name: dtype}).dtype == expected
    assert puna.AutoModel.from_config(config, attn_implementation="eager").attn_implementation == "eager"
    assert puna.AutoModel.from_config(config).attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match="int8"):
        puna.AutoModel.from_config(config, dtype="int8")
    with pytest.raises(TypeError, match="no_such"):
        puna.AutoModel.from_config(config, no_such=1)


def test_models_of_other_architectures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for auto in (puna.AutoConfig, puna.AutoModelForCausalLM):
        with pytest.raises(ConfigError, match="gpt2"):
            auto.from_pretrained(tmp_path)
        with pytest.raises(ModelNotFoundError):
            auto.from_pretrained(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"GPT2Config \(model_type 'gpt2'\).*Use transformers"):
        puna.AutoModelForCausalLM.from_config(transformers.GPT2Config())


def test_configurations_are_read_and_built(tmp_path: Path) -> None:
    config_of(num_hidden_layers=3).save_pretrained(tmp_path)
    assert puna.AutoConfig.from_pretrained(tmp_path, trust_remote_code=True, num_labels=4).num_labels == 4
    assert type(puna.AutoConfig.for_model("llama", num_hidden_layers=5)) is puna.LlamaConfig
    with pytest.raises(ConfigError, match="'bert'; it must be one of 'llama'"):
        puna.AutoConfig.for_model("bert")
    with pytest.raises(ConfigError, match="from_pretrained"):
        puna.AutoConfig()


def test_classes_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    class MyConfig(puna.LlamaConfig):
        model_type = "mine"

    class MyModel(puna.LlamaForCausalLM):
        pass

    monkeypatch.setattr(puna.AutoConfig, "_types", dict(puna.AutoConfig._types))
    monkeypatch.setattr(puna.AutoModelForCausalLM, "_classes", dict(puna.AutoModelForCausalLM._classes))
    puna.AutoConfig.register("mine", MyConfig)
    puna.AutoModelForCausalLM.register(MyConfig, MyModel)
    config = puna.AutoConfig.for_model(
        "mine", **{key: value for key, value in config_of().to_dict().items() if key != "model_type"}
    )
    assert type(puna.AutoModelForCausalLM.from_config(config)) is MyModel
    assert type(puna.AutoModel.from_config(config)) is puna.LlamaModel
    for call in (
        lambda: puna.AutoConfig.register("mine", MyConfig),
        lambda: puna.AutoModelForCausalLM.register(MyConfig, MyModel),
    ):
        with pytest.raises(ConfigError, match="exist_ok=True"):
            call()
    puna.AutoModelForCausalLM.register(MyConfig, puna.LlamaForCausalLM, exist_ok=True)
    with pytest.raises(ConfigError, match=r"'mine'.*'other'"):
        puna.AutoConfig.register("other", MyConfig)


def test_set_seed_gives_the_numbers_of_transformers() -> None:
    drawn = []
    for set_seed in (puna.set_seed, transformers.set_seed):
        set_seed(42)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert drawn[0] == drawn[1]
    for seed in (-1, 2**32, 1.5):
        with pytest.raises(RequestError, match="4294967295"):
            puna.set_seed(seed)  # type: ignore[arg-type]
    puna.set_seed(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
