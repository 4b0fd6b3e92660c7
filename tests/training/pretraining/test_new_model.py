"""Models with random weights: their configuration and the distribution of their weights."""

from __future__ import annotations

import json
import math

import pytest
import torch

from puna.errors import ConfigError
from puna.training.pretraining.new_model import new_config, new_model
from puna.training.settings import TrainingSettings
from puna.training.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the llama")
    return train_tokenizer([path], None, "char")


def config_of(tokenizer, **values):
    return new_config(TrainingSettings.of({"max_length": 64, **values}), tokenizer)


def test_flags_are_the_configuration(tokenizer):
    config = config_of(tokenizer, depth=3, width=96, heads=6, kv_heads=2, mlp_width=200, tie_embeddings=False)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 96, 6)
    assert (config.num_key_value_heads, config.intermediate_size, config.tie_word_embeddings) == (2, 200, False)
    assert (config.vocab_size, config.max_position_embeddings) == (len(tokenizer), 64)
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_the_default_has_the_size_of_nanogpts_example(tokenizer):
    config = config_of(tokenizer)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 128, 4)
    assert (config.intermediate_size, config.num_key_value_heads, config.tie_word_embeddings) == (320, 4, True)


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_a_file_is_the_configuration_and_flags_override_it(tokenizer, tmp_path, kind):
    values = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    values |= {"rope_theta": 500000.0, "vocab_size": 512, "max_position_embeddings": 128}
    path = tmp_path / f"config.{kind}"
    path.write_text(json.dumps(values) if kind == "json" else "\n".join(f"{k} = {v}" for k, v in values.items()))
    config = config_of(tokenizer, from_config=path, depth=5)
    assert (config.num_hidden_layers, config.rope_theta, config.vocab_size) == (5, 500000.0, 512)
    assert (config.max_position_embeddings, config.intermediate_size) == (128, 160)


def test_a_file_that_is_too_small_is_an_error(tokenizer, tmp_path):
    path = tmp_path / "config.json"
    for name in ("vocab_size", "max_position_embeddings"):
        path.write_text(json.dumps({name: 5, "hidden_size": 64}))
        with pytest.raises(ConfigError, match=rf"{name} is 5, but \d+ are needed"):
            config_of(tokenizer, from_config=path)
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config_of(tokenizer, from_config=tmp_path / "bad.toml")


@pytest.mark.parametrize("tied", [True, False])
def test_weights_have_the_standard_deviations_of_gpt2(tokenizer, tied):
    model = new_model(config_of(tokenizer, width=256, depth=2, tie_embeddings=tied), 0.02, seed=5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for name, parameter in model.state_dict().items():
        if parameter.dim() == 1:
            assert (parameter == 1).all()
            continue
        expected = 0.02 / math.sqrt(4) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        error = 6 / math.sqrt(2 * parameter.numel())  # six deviations of the estimate
        assert abs(float(parameter.std()) / expected - 1) < error, name
        assert abs(float(parameter.mean())) < 6 * expected / math.sqrt(parameter.numel()), name


def test_weights_depend_on_the_seed_alone(tokenizer):
    config = config_of(tokenizer, depth=1)
    torch.manual_seed(1)
    first = new_model(config, 0.02, seed=7).state_dict()
    torch.manual_seed(2)
    second, third = new_model(config, 0.02, seed=7).state_dict(), new_model(config, 0.02, seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], third["model.embed_tokens.weight"])
