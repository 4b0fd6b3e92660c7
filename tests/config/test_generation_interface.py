"""The interface of `GenerationConfig` compared with that of transformers: fields, methods, files, validation."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import pytest

from puna import GenerationConfig, LlamaConfig
from puna.config import GenerationMode, GenerationOptions
from puna.config.generation.fields import CALL_ARGUMENTS, DEFAULTS
from puna.errors import ConfigError

RECORDED = {  # transformers 4.34.1: vars(GenerationConfig()), without those that are None
    "max_length": 20, "min_length": 0, "early_stopping": False, "do_sample": False, "num_beams": 1,
    "num_beam_groups": 1, "use_cache": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "diversity_penalty": 0.0, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "renormalize_logits": False,
    "remove_invalid_values": False, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "return_dict_in_generate": False,
    "encoder_no_repeat_ngram_size": 0, "generation_kwargs": {}, "_from_model_config": False,
}  # fmt: skip
RECORDED_NONE = [
    "max_new_tokens", "min_new_tokens", "max_time", "penalty_alpha", "bad_words_ids", "force_words_ids", "constraints",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "forced_decoder_ids", "sequence_bias", "guidance_scale", "low_memory", "pad_token_id",
    "bos_token_id", "eos_token_id", "decoder_start_token_id", "_commit_hash",
]  # fmt: skip


def plain_config(**fields: object) -> GenerationConfig:
    """Returns a configuration whose fields were assigned after its construction, as scripts do."""
    config = GenerationConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def test_fields_and_defaults_are_those_of_4_34():
    config = GenerationConfig()
    assert {name: getattr(config, name) for name in RECORDED} == RECORDED
    assert [name for name in RECORDED_NONE if getattr(config, name) is not None] == []


def test_every_field_of_transformers_5_exists():
    transformers = pytest.importorskip("transformers")
    names = vars(transformers.GenerationConfig()).keys() - {"_original_object_hash"}
    assert [name for name in names if not hasattr(GenerationConfig(), name)] == []
    defaults = transformers.GenerationConfig()._get_default_generation_params()
    assert {name: DEFAULTS[name] for name in defaults} == defaults


def test_type_checkers_know_every_field():
    assert list(GenerationOptions.__annotations__) == list(DEFAULTS)


def test_new_attributes_are_kept_written_and_read(tmp_path):
    config = plain_config(foo="bar", length_penalty=1.2)
    assert config.to_dict()["foo"] == "bar" and '"foo": "bar"' in repr(config)
    config.num_beams = 2
    config.save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path)
    assert (loaded.foo, loaded.length_penalty, loaded.extra) == ("bar", 1.2, {"foo": "bar"})
    assert loaded == config and loaded != GenerationConfig(num_beams=2, length_penalty=1.2)
    assert not hasattr(GenerationConfig.from_model_config(config), "foo")
    with pytest.raises(AttributeError, match="bar"):
        _ = config.bar


def test_equality_and_hash_ignore_metadata():
    first, second = GenerationConfig(max_length=9), GenerationConfig(max_length=9, transformers_version="4.34.0")
    second._from_model_config = True
    assert first == second and hash(first) == hash(second)
    assert first != GenerationConfig(max_length=10) and first != {"max_length": 9}
    second.foo = {"a": 1}
    assert first != second and hash(first) != hash(second)
    for duplicate in (copy.copy(second), copy.deepcopy(second), pickle.loads(pickle.dumps(second))):
        assert duplicate == second and hash(duplicate) == hash(second)


def test_a_copy_is_independent():
    config = GenerationConfig(max_length=9)
    duplicate = copy.copy(config)
    duplicate.top_k = 7
    assert config.top_k == 50 and "top_k" not in config.assigned and "top_k" in duplicate.assigned
    assert "max_length" in config.assigned and GenerationConfig().assigned == ()


def test_to_dict_has_all_fields_and_to_diff_dict_those_that_differ():
    config = GenerationConfig(eos_token_id=[2, 3], do_sample=True, top_k=7, foo=1)
    fields = config.to_dict()
    assert fields.keys() >= DEFAULTS.keys() and fields["top_k"] == 7 and fields["max_length"] == 20
    assert config.to_diff_dict() == {"do_sample": True, "top_k": 7, "eos_token_id": [2, 3], "foo": 1}
    fields["eos_token_id"].append(4)
    assert config.eos_token_id == [2, 3]
    assert GenerationConfig.from_dict(config.to_dict()) == config


def test_json_text_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    fields = {"do_sample": True, "top_k": 7, "eos_token_id": [2, 3], "bad_words_ids": [[5, 6]], "foo": {"a": 1}}
    reference = transformers.GenerationConfig(**fields)
    config = GenerationConfig(**fields)
    assert config.to_json_string(ignore_metadata=True) == reference.to_json_string(ignore_metadata=True)
    assert repr(config) == repr(reference)
    assert json.loads(config.to_json_string(use_diff=False)).keys() >= DEFAULTS.keys()
    assert "foo" not in config.to_json_string(keys_to_pop=["foo"])


def test_types_of_torch_and_biases_of_sequences_can_be_written(tmp_path):
    torch = pytest.importorskip("torch")
    config = GenerationConfig(sequence_bias={(7, 8): -5.0}, torch_dtype=torch.float16, eos_token_id=torch.tensor([2]))
    config.to_json_file(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    assert content == {"sequence_bias": [[[7, 8], -5.0]], "torch_dtype": "float16", "eos_token_id": [2]}
    assert config.eos_token_ids == (2,)
    with pytest.raises(ConfigError, match="JSON cannot hold"):
        GenerationConfig(constraints=[object()]).to_json_string()


def test_files_have_names_and_folders(tmp_path):
    config = GenerationConfig(max_new_tokens=3)
    config.save_pretrained(save_directory=tmp_path / "sub", config_file_name="a.json")
    path = tmp_path / "sub" / "a.json"
    assert GenerationConfig.from_pretrained(pretrained_model_name=tmp_path / "sub", config_file_name="a.json") == config
    assert GenerationConfig.from_pretrained(tmp_path, "a.json", subfolder="sub") == config
    assert GenerationConfig.from_pretrained(path, top_k=4, do_sample=True).top_k == 4
    loaded, unused = GenerationConfig.from_pretrained(path, max_length=7, return_unused_kwargs=True)
    assert (loaded.max_length, loaded.max_new_tokens, unused) == (7, 3, {})
    assert GenerationConfig.from_dict({"top_k": 3}, foo=2, return_unused_kwargs=True)[1] == {}
    with pytest.raises(OSError, match=r"generation_config\.json: no such file"):
        GenerationConfig.from_pretrained(tmp_path)


def test_update_returns_unknown_fields():
    config = GenerationConfig(do_sample=False)
    assert config.update(max_new_tokens=3, foo=1) == {"foo": 1}
    assert (config.max_new_tokens, hasattr(config, "foo")) == (3, False)
    assert config.update(defaults_only=True, do_sample=True, max_length=7) == {}
    assert (config.do_sample, config.max_length) == (False, 7)
    assert config.update(allow_custom_entries=True, foo=1) == {} and config.foo == 1
    with pytest.raises(ConfigError, match="top_p is 2"):
        config.update(top_p=2, do_sample=True)


def test_settings_in_the_model_configuration_are_read():
    model = LlamaConfig(do_sample=True, temperature=0.7, top_k=7, use_cache=False, max_length=9, eos_token_id=[2, 3])
    config = GenerationConfig.from_model_config(model_config=model)
    assert (config.do_sample, config.temperature, config.top_k, config.use_cache) == (True, 0.7, 7, False)
    assert (config.max_length, config.eos_token_ids, config._from_model_config) == (9, (2, 3), True)
    assert "max_length" in config.assigned and "num_beams" not in config.assigned
    assert GenerationConfig.from_model_config({"max_length": 9, "vocab_size": 5}).to_diff_dict() == {
        "max_length": 9, "_from_model_config": True
    }  # fmt: skip


MODES = [
    ({}, "greedy_search"),
    ({"do_sample": True}, "sample"),
    ({"num_beams": 2}, "beam_search"),
    ({"num_beams": 2, "do_sample": True}, "beam_sample"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group_beam_search"),
    ({"num_beams": 2, "force_words_ids": [[3]]}, "constrained_beam_search"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search"),
    ({"prompt_lookup_num_tokens": 3}, "assisted_generation"),
    ({"dola_layers": "low"}, "dola_generation"),
]


@pytest.mark.parametrize(("fields", "mode"), MODES)
def test_the_mode_is_that_of_transformers(fields, mode):
    transformers = pytest.importorskip("transformers")
    assert GenerationConfig(**fields).get_generation_mode() == mode
    assert transformers.GenerationConfig(**fields).get_generation_mode() == mode
    if mode in ("greedy_search", "sample"):
        assisted = GenerationConfig(**fields).get_generation_mode(assistant_model=object())
        assert assisted is GenerationMode.ASSISTED_GENERATION


CONTRADICTIONS = [
    ({"num_return_sequences": 2}, "num_return_sequences is 2"),
    ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences is 3.*num_beams, 2"),
    ({"early_stopping": "sometimes"}, "early_stopping is 'sometimes'"),
    ({"suppress_tokens": [5, 7], "forced_eos_token_id": 7}, "forced_eos_token_id is 7"),
]
GROUPS = [
    ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 0.5}, "num_beams is 4.*num_beam_groups, 3"),
    ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty 0"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "do_sample": True}, "do_sample is True"),
    ({"num_beams": 4, "constraints": [1], "do_sample": True}, "do_sample is True"),
    ({"num_beams": 4, "constraints": [1], "num_beam_groups": 2}, "num_beam_groups=1"),
    ({"logits_processor": 1}, "pass it to generate"),
]


@pytest.mark.parametrize(("fields", "text"), CONTRADICTIONS + GROUPS)
def test_contradictions_are_errors(fields, text):
    with pytest.raises(ConfigError, match=text):
        GenerationConfig(**fields)
    with pytest.raises(ValueError, match=text):
        plain_config(**fields).validate()


@pytest.mark.parametrize("fields", [fields for fields, _ in CONTRADICTIONS])
def test_transformers_refuses_the_same_contradictions(fields):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError):
        transformers.GenerationConfig(**fields)


def test_arguments_of_a_call_are_not_settings():
    for name in CALL_ARGUMENTS:
        with pytest.raises(ConfigError, match=name):
            GenerationConfig.from_dict({name: 1})


NO_EFFECT = [
    {"temperature": 0.5}, {"top_p": 0.9}, {"typical_p": 0.9}, {"top_k": 3}, {"epsilon_cutoff": 0.1},
    {"eta_cutoff": 0.1}, {"min_p": 0.1}, {"top_h": 0.4}, {"early_stopping": True}, {"length_penalty": 2.0},
    {"diversity_penalty": 0.5}, {"num_beam_groups": 2}, {"output_scores": True},
]  # fmt: skip


@pytest.mark.parametrize("fields", NO_EFFECT)
def test_a_setting_without_effect_is_a_warning(fields, tmp_path):
    (name,) = fields
    with pytest.warns(UserWarning, match=name) as caught:
        config = GenerationConfig(**fields)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match=name):
        config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=name):
        config.validate(strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GenerationConfig.from_dict(fields)
        loaded = GenerationConfig.from_pretrained(tmp_path)  # the file's author may not be the reader
        loaded.save_pretrained(tmp_path / "again")
        config.validate(user_set_attributes={"max_length"})
    assert loaded == config


def test_contrastive_search_uses_top_k_without_sampling():
    GenerationConfig(penalty_alpha=0.6, top_k=4)


def test_a_configuration_can_be_uploaded(tmp_path, monkeypatch):
    uploads = []
    monkeypatch.setattr(
        "puna.config.generation.config.upload_files", lambda *args, **options: uploads.append((*args, options))
    )
    config = GenerationConfig(max_length=9)
    config.save_pretrained(tmp_path / "tiny")
    assert not uploads
    config.save_pretrained(tmp_path / "tiny", push_to_hub=True)
    with pytest.warns(FutureWarning, match="its new name is token"):
        config.save_pretrained(
            tmp_path / "tiny", "a.json", push_to_hub=True, repo_id="other", organization="me", use_auth_token="t"
        )
    message = {"commit_message": "Upload config"}
    assert uploads == [
        (tmp_path / "tiny", ["generation_config.json"], {"repo_id": "tiny"} | message),
        (tmp_path / "tiny", ["a.json"], {"repo_id": "me/other", "token": "t"} | message),
    ]
    with pytest.raises(TypeError, match="there is no argument colour"):
        config.save_pretrained(tmp_path / "tiny", push_to_hub=True, colour=1)


def test_the_older_name_of_the_token_reaches_the_hub(tmp_path, monkeypatch):
    received = []

    def local_path(name, need, subfolder, **arguments):
        received.append(arguments)
        return tmp_path

    monkeypatch.setattr("puna.config.generation.config.local_path", local_path)
    GenerationConfig(max_length=9).save_pretrained(tmp_path)
    with pytest.warns(FutureWarning, match="its new name is token"):
        config = GenerationConfig.from_pretrained("me/private", use_auth_token="t", _from_model_config=True)
    assert received == [{"token": "t"}] and config.max_length == 9 and not config.extra


def test_keywords_without_effect_are_warnings_when_a_configuration_is_read(tmp_path):
    GenerationConfig().save_pretrained(tmp_path)
    for read in (lambda **fields: GenerationConfig.from_pretrained(tmp_path, **fields),
                 lambda **fields: GenerationConfig.from_dict({}, **fields)):  # fmt: skip
        with pytest.warns(UserWarning, match="top_k is 4, which only sampling uses"):
            assert read(top_k=4).top_k == 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(top_k=4, do_sample=True)
