"""GenerationConfig: defaults, ranges, files."""

from __future__ import annotations

import json

import pytest

from puna import GenerationConfig, LlamaConfig
from puna.config import generation_notes
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
        ({"temperature": -0.1, "do_sample": True}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5, "do_sample": True}, "top_p is 1.5"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"eos_token_id": ["x"]}, "eos_token_id is 'x'"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
        ({"top_k": -2, "do_sample": True}, "top_k is -2"),
        ({"max_time": "x"}, "max_time is 'x'"),
        ({"typical_p": [0.5]}, r"typical_p is \[0.5\]"),
        ({"length_penalty": 1e6}, "length_penalty is 1000000.0"),
        ({"suppress_tokens": "x"}, "suppress_tokens is 'x'"),
        ({"forced_eos_token_id": 1.5}, "forced_eos_token_id is 1.5"),
        ({"exponential_decay_length_penalty": 5}, "exponential_decay_length_penalty is 5"),
        ({"forced_decoder_ids": [1]}, "forced_decoder_ids has 1"),
        ({"constraints": 3}, "constraints is 3"),
        ({"sequence_bias": 3}, "sequence_bias is 3"),
        ({"guidance_scale": {}}, "guidance_scale is {}"),
        ({"assistant_early_exit": "x"}, "assistant_early_exit is 'x'"),
        ({"low_memory": 3}, "low_memory is 3"),
    ],
)
def test_errors_name_the_field_and_its_value(fields, words):
    with pytest.raises(ConfigError, match=words):
        GenerationConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "0.6"}, "temperature is '0.6'"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_unusable_settings_of_a_file_are_ignored_and_named(tmp_path, fields, words):
    (tmp_path / "generation_config.json").write_text(json.dumps({**fields, "num_beams": 3}))
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config == GenerationConfig(num_beams=3)
    (note,) = config.unusable
    assert words in note and "is used" in note
    assert any(words in line for line in generation_notes(config))
    with pytest.raises(ConfigError):
        GenerationConfig.from_pretrained(tmp_path, eos_token_id="2")


def test_numbers_of_another_type_are_read_with_a_note(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"top_k": 40.0, "do_sample": 1}')
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config == GenerationConfig(top_k=40, do_sample=True)
    assert config.notes == ("top_k 40.0 is read as 40", "do_sample 1 is read as True")
    assert config.unusable == ()


def test_a_token_id_of_minus_one_means_none():
    config = GenerationConfig.from_dict({"pad_token_id": -1, "eos_token_id": [2, -1]})
    assert (config.pad_token_id, config.eos_token_ids) == (None, (2,))


def test_notes_on_absent_token_ids_name_the_reason():
    config = GenerationConfig.from_stored({"pad_token_id": -1, "eos_token_id": []})
    assert config.notes == (
        "pad_token_id -1: -1 means that there is no such token",
        "eos_token_id []: an empty list means that there is no such token",
    )


@pytest.mark.parametrize("fields", [{"temperature": -0.1}, {"top_p": 1.5}, {"min_p": 3.0}, {"top_k": -2}])
def test_values_out_of_range_that_only_sampling_uses_are_warnings_without_sampling(fields):
    (name,) = fields
    with pytest.warns(UserWarning, match=f"{name} is .* only sampling uses"):
        config = GenerationConfig(**fields)
    assert config.update(**fields) == {} and getattr(config, name) == fields[name]
    with pytest.raises(ConfigError, match=f"{name} is"):
        config.update(do_sample=True, **fields)
    assert len(GenerationConfig.from_stored(fields).unusable) == 1
