"""GenerationConfig: defaults, ranges, files."""

from __future__ import annotations

import json

import pytest

from puna import GenerationConfig, LlamaConfig
from puna.errors import ConfigError


def test_defaults_equal_those_of_transformers():
    config = GenerationConfig()
    assert (config.max_length, config.max_new_tokens, config.do_sample, config.top_k) == (20, None, False, 50)
    assert (config.temperature, config.top_p, config.repetition_penalty, config.num_beams) == (1.0, 1.0, 1.0, 1)
    assert config.eos_token_ids == ()


def test_only_fields_that_differ_from_the_defaults_are_written(tmp_path):
    config = GenerationConfig(eos_token_id=[128001, 128009], temperature=0.6, do_sample=True, transformers_version="4")
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "eos_token_id": [128001, 128009],
        "temperature": 0.6,
        "do_sample": True,
        "transformers_version": "4",
    }
    assert GenerationConfig.from_pretrained(tmp_path) == config


def test_a_null_means_the_default():
    assert GenerationConfig.from_dict({"temperature": None, "top_k": None}).top_k == 50


def test_token_ids_come_from_the_model_configuration():
    config = GenerationConfig.from_model_config(LlamaConfig(eos_token_id=[2, 3], pad_token_id=0))
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2, 3), 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"eos_token_id": ["x"]}, "eos_token_id is 'x'"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
    ],
)
def test_errors_name_the_field_and_its_value(fields, words):
    with pytest.raises(ConfigError, match=words):
        GenerationConfig(**fields)


def test_a_token_id_of_minus_one_means_none():
    config = GenerationConfig.from_dict({"pad_token_id": -1, "eos_token_id": [2, -1]})
    assert (config.pad_token_id, config.eos_token_ids) == (None, (2,))
