"""The defaults of `LLM` from a generation configuration, and the notes on settings that are ignored."""

from __future__ import annotations

import pytest

from puna import GenerationConfig
from puna.config import GenerationDefaults, generation_notes
from puna.config.generation.defaults import ignored_settings
from puna.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "temperature": 0.7}, {}),  # without do_sample, transformers ignores the temperature
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),  # the defaults of transformers
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": -1},
            {"temperature": 0.6, "top_p": 0.9},
        ),
        ({"do_sample": True, "temperature": 0.0, "top_k": 3}, {"top_k": 3}),
        ({"do_sample": True, "min_p": 0.1, "top_k": 0}, {"temperature": 1.0, "min_p": 0.1}),
        ({"top_k": 20, "top_p": 0.8}, {"top_k": 20, "top_p": 0.8}),  # used if a call sets a temperature
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"max_new_tokens": 5, "max_length": 40}, {"max_tokens": 5, "max_length": 40}),
        ({"stop_strings": "END"}, {"stop": ("END",)}),
        ({"stop_strings": ["a", "b"]}, {"stop": ("a", "b")}),
    ],
)
def test_defaults_are_the_settings_of_the_file(fields, expected):
    assert GenerationDefaults.of(GenerationConfig.from_dict(fields)) == GenerationDefaults(**expected)


def test_typical_p_and_min_new_tokens_are_defaults():
    config = GenerationConfig.from_dict({"typical_p": 0.4, "min_new_tokens": 3})
    assert GenerationDefaults.of(config) == GenerationDefaults(typical_p=0.4, min_tokens=3)
    assert generation_notes(config) == []
    for value in (None, 1.0, 1.5):
        assert GenerationDefaults.of(GenerationConfig.from_stored({"typical_p": value})).typical_p == 1
    with pytest.raises(ConfigError, match="typical_p is"):
        GenerationDefaults.of(GenerationConfig.from_stored({"typical_p": 0}))
    for value in ("x", True):
        config = GenerationConfig.from_stored({"typical_p": value})
        assert GenerationDefaults.of(config).typical_p == 1 and "typical_p is" in config.unusable[0]


@pytest.mark.parametrize("value", [3, ["a", 3], [""], {"a": 1}])
def test_stop_strings_of_a_wrong_type_are_an_error(value):
    with pytest.raises(ConfigError, match="stop_strings is"):
        GenerationDefaults.of(GenerationConfig(stop_strings=value))


@pytest.mark.parametrize(
    "fields",
    [
        {"suppress_tokens": [11]},
        {"no_repeat_ngram_size": 2},
        {"epsilon_cutoff": 0.1},
        {"num_beams": 4},
        {"num_return_sequences": 2, "do_sample": True},
        {"bad_words_ids": [[3]]},
        {"presence_penalty": 0.5},  # unknown to transformers
        {"general.sampling.mirostat": 2},
        {"general.sampling.penalty_last_n": 64, "repetition_penalty": 1.1},
    ],
)
def test_a_note_names_a_setting_that_would_change_answers(fields):
    config = GenerationConfig.from_stored(fields)
    name, value = next(iter(fields.items()))
    assert ignored_settings(config) == {name: value}
    (note,) = generation_notes(config)
    assert f"{name} ({value!r})" in note


def test_settings_that_change_nothing_are_not_reported():
    neutral = {"bad_words_ids": [], "begin_suppress_tokens": [], "diversity_penalty": 0.0, "guidance_scale": 1.0,
               "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "epsilon_cutoff": 0.0,
               "eta_cutoff": 0.0, "force_words_ids": [], "forced_decoder_ids": [], "min_length": 0, "num_beams": 1,
               "no_repeat_ngram_size": 0, "penalty_alpha": 0.0, "sequence_bias": {}, "suppress_tokens": [],
               "token_healing": False, "typical_p": 1.0, "num_return_sequences": 1}  # fmt: skip
    harmless = {"transformers_version": "4.57.1", "_from_model_config": True, "output_attentions": True}
    harmless |= {"cache_implementation": "static", "early_stopping": True, "length_penalty": 2.0}
    harmless |= {"general.sampling.penalty_last_n": 64, "general.sampling.mirostat_tau": 5.0, "foo": None, "bar": []}
    for fields in (neutral, harmless):
        assert generation_notes(GenerationConfig.from_stored(fields)) == []


def test_an_extreme_repetition_penalty_is_reported():
    (note,) = generation_notes(GenerationConfig(repetition_penalty=1e5))
    assert "repetition_penalty is 100000.0" in note
    assert generation_notes(GenerationConfig(repetition_penalty=1.3)) == []


def test_default_settings_of_transformers_are_not_reported():
    transformers = pytest.importorskip("transformers")
    fields = vars(transformers.GenerationConfig())
    assert len(fields) > 60
    assert generation_notes(GenerationConfig.from_dict(fields)) == []
