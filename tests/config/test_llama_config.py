"""LlamaConfig: documented defaults, every form of the rope settings, errors, and files that round-trip."""

from __future__ import annotations

import json

import pytest

from puna import LlamaConfig
from puna.errors import ConfigError, ModelNotFoundError

SMALL = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2, "intermediate_size": 96}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_defaults_equal_those_in_the_documentation_of_transformers():
    config = LlamaConfig()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (32000, 4096, 11008)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (32, 32, 32)
    assert (config.hidden_act, config.max_position_embeddings, config.initializer_range) == ("silu", 2048, 0.02)
    assert (config.rms_norm_eps, config.use_cache, config.pretraining_tp) == (1e-6, True, 1)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, 1, 2)
    assert (config.tie_word_embeddings, config.rope_theta, config.rope_scaling) == (False, 10000.0, None)
    assert (config.attention_bias, config.attention_dropout, config.mlp_bias) == (False, 0.0, False)
    assert (config.head_dim, config.num_labels, config.use_return_dict) == (128, 2, True)
    assert (config.model_type, config.problem_type, config.dtype) == ("llama", None, None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "linear", "factor": 2}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}),
        ({"type": "dynamic", "factor": 1}, {"rope_type": "dynamic", "factor": 1.0}),
        ({"type": "linear", "factor": 1}, None),
        ({"rope_type": "linear", "type": "linear", "factor": 2}, {"rope_type": "linear", "factor": 2.0}),
        ({"type": "default"}, None),
        (LLAMA3, LLAMA3),
        (
            {"type": "yarn", "factor": 2.0},
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048},
        ),
        (
            {"type": "yarn", "original_max_position_embeddings": 512},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        ),
    ],
)
def test_every_form_of_the_rope_settings_is_read(settings, expected):
    assert LlamaConfig(rope_scaling=settings, rope_theta=5e5).rope_scaling == expected
    config = LlamaConfig(rope_parameters={**settings, "rope_theta": 5e5})
    assert (config.rope_theta, config.rope_scaling) == (5e5, expected)
    assert config.rope_parameters == {**(expected or {"rope_type": "default"}), "rope_theta": 5e5}


def test_longrope_factors_are_derived_as_in_the_paper():
    config = LlamaConfig(
        **SMALL,
        max_position_embeddings=4096,
        original_max_position_embeddings=1024,
        rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    )
    assert config.rope_scaling["factor"] == 4.0
    assert config.rope_scaling["attention_factor"] == pytest.approx(1.0954451150103321)  # sqrt(1 + ln 4 / ln 1024)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": -1}, ["vocab_size is -1", "0 or more"]),
        ({"vocab_size": True}, ["vocab_size is True"]),
        ({"num_hidden_layers": 2.5}, ["num_hidden_layers is 2.5"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps is nan"]),
        ({"attention_dropout": 1.5}, ["attention_dropout is 1.5", "1.0"]),
        ({"eos_token_id": [2, -5]}, ["eos_token_id is -5"]),
        ({"problem_type": "guess"}, ["problem_type is 'guess'", "regression"]),
        ({"dtype": "int3"}, ["dtype is 'int3'", "bfloat16"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings is 'no'"]),
        ({"hidden_act": 3}, ["hidden_act is 3"]),
        ({"id2label": {"a": "b"}}, ["id2label"]),
        ({"num_labels": 10**9}, ["num_labels is 1000000000", "1048576"]),
        ({"label2id": 3}, ["label2id is 3"]),
        ({"id2label": {"1": [1]}}, ["id2label is {'1': [1]}"]),
        ({"id2label": {}}, ["id2label is {}"]),
        ({"id2label": {0: "a", 5: "b"}}, ["[0, 5]", "0 to 1"]),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2.0}}, ["rope_theta is 1.0", "yarn"]),
        (
            {"max_position_embeddings": 10**400},
            ["max_position_embeddings", "more than 80", "from 1 to 2^63 - 1"],
        ),
        ({"initializer_range": 10**400}, ["initializer_range", "more than 80 digits"]),
        ({"vocab_size": "9" * 500}, ["vocab_size", "..."]),
        ({"rope_theta": 10**5000}, ["rope_theta", "more than 80 digits"]),
        ({"rope_theta": 0}, ["rope_theta is 0", "positive"]),
        ({"rope_scaling": "linear"}, ["rope_scaling is 'linear'"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling", "lacks factor"]),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, ["factor is 0.5", "at least 1"]),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, ["factor is 1e+300", "1000000000"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1e-300}}, ["beta_fast is 1e-300"]),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, ["factor is '2'", "positive number"]),
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, ["'spiral'", "linear, dynamic, yarn, llama3, longrope"]),
        ({"rope_scaling": {"factor": 2.0}}, ["unknown rope type None"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "base": 3}}, ["unknown keys base"]),
        ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, ["'linear'", "'dynamic'"]),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 9.0}}, ["low_freq_factor is 9.0", "4.0"]),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, ["list of 64"]),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            ["disagree"],
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
    ],
)
def test_errors_name_the_field_its_value_and_the_limit(fields, words):
    with pytest.raises(ConfigError) as error:
        LlamaConfig(**fields)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 65, "num_attention_heads": 8}, ["hidden_size is 65", "num_attention_heads, 8"]),
        ({"num_attention_heads": 32, "num_key_value_heads": 7}, ["num_key_value_heads is 7", "32"]),
        ({"head_dim": 5}, ["head_dim is 5", "even"]),
        ({"pad_token_id": 32000}, ["pad_token_id is 32000", "31999"]),
        ({"hidden_size": 0}, ["hidden_size is 0", "1 or more"]),
        ({"pretraining_tp": 3}, ["pretraining_tp is 3", "intermediate_size, 11008"]),
    ],
)
def test_fields_that_do_not_fit_together_are_errors_of_models_and_checkpoints_only(fields, words, tmp_path):
    """As in transformers, code may assign one field after the other, and resize the embedding later."""
    config = LlamaConfig(**fields)
    config.save_pretrained(tmp_path)
    assert LlamaConfig.from_pretrained(tmp_path) == config
    for check in (config.validate, lambda: LlamaConfig.from_checkpoint(tmp_path)):
        with pytest.raises(ConfigError) as error:
            check()
        assert all(word in str(error.value) for word in words)
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_padding_id_of_minus_one_means_no_padding_token():
    assert LlamaConfig(pad_token_id=-1).pad_token_id is None


def test_the_error_for_another_architecture_names_it():
    with pytest.raises(ConfigError, match="'mistral'"):
        LlamaConfig.from_dict({"model_type": "mistral"})
    with pytest.raises(ConfigError, match="MistralForCausalLM"):
        LlamaConfig.from_dict({"architectures": ["MistralForCausalLM"]})


@pytest.mark.parametrize("value", [0.0, 1.5, False, "", "LlamaForCausalLM", {}, [None]])
def test_architectures_is_a_list_of_names(value):
    with pytest.raises(ConfigError, match="must be a list of class names"):
        LlamaConfig.from_dict({"model_type": "llama", "architectures": value})


def test_unknown_keys_are_kept_and_written_back(tmp_path):
    config = LlamaConfig(**SMALL, my_own_key={"deep": [1, 2]}, self=1, architectures=["LlamaForCausalLM"])
    assert config.my_own_key == {"deep": [1, 2]}
    config.save_pretrained(tmp_path)
    assert LlamaConfig.from_pretrained(tmp_path) == config
    assert json.loads((tmp_path / "config.json").read_text())["my_own_key"] == {"deep": [1, 2]}
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = config.absent


def test_label_fields_are_derived_from_each_other():
    config = LlamaConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config.num_labels = 1
    assert config.label2id == {"LABEL_0": 0}
    assert LlamaConfig.from_dict({"id2label": {"0": "ham", "1": "spam"}}).label2id == {"ham": 0, "spam": 1}


def test_overrides_take_precedence_over_every_form_of_the_rope_settings():
    fields = LlamaConfig(rope_theta=5e5, rope_scaling=LLAMA3, dtype="bfloat16").to_dict()
    config = LlamaConfig.from_dict(fields, rope_scaling={"type": "linear", "factor": 3})
    assert (config.rope_theta, config.rope_scaling) == (5e5, {"rope_type": "linear", "factor": 3.0})
    assert LlamaConfig.from_dict(fields, rope_theta=1e6).rope_parameters == {**LLAMA3, "rope_theta": 1e6}
    assert LlamaConfig.from_dict(fields, rope_parameters={"rope_type": "default"}).rope_scaling is None
    assert LlamaConfig.from_dict(fields, torch_dtype="float16").dtype_name == "float16"
    assert LlamaConfig.from_dict(fields, num_labels=5).num_labels == 5


def test_linear_scaling_extends_the_context_and_llama3_does_not():
    assert LlamaConfig(rope_scaling={"type": "linear", "factor": 2.5}).context_length == 5120
    assert LlamaConfig(rope_scaling=LLAMA3, max_position_embeddings=131072).context_length == 131072


def test_a_callable_activation_works_but_cannot_be_saved(tmp_path):
    config = LlamaConfig(hidden_act=abs)
    with pytest.raises(ConfigError, match="hidden_act"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"vocab_size": "many"}', b'{"model_type": null}x']
)
def test_the_error_for_an_invalid_file_names_the_file(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        LlamaConfig.from_pretrained(tmp_path)


def test_the_error_for_a_missing_file_names_it(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        LlamaConfig.from_pretrained(tmp_path)


def test_assigned_fields_are_checked_like_arguments(tmp_path):
    config = LlamaConfig(**SMALL, rope_theta=5e5)
    config.rope_scaling = {"type": "linear", "factor": 2}
    assert config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    config.rope_parameters = {"rope_type": "dynamic", "factor": 3, "rope_theta": 1e6}
    assert (config.rope_theta, config.rope_scaling) == (1e6, {"rope_type": "dynamic", "factor": 3.0})
    config.torch_dtype = "torch.float16"
    assert (config.dtype_name, config.to_dict()["torch_dtype"]) == ("float16", "float16")
    with pytest.raises(ConfigError, match="spiral"):
        config.rope_scaling = {"type": "spiral"}
    config.rope_scaling = {"type": "linear", "factor": 2}
    config.rope_scaling["factor"] = "two"
    with pytest.raises(ConfigError, match="factor is 'two'"):
        config.validate()


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_files_with_contradictory_rope_settings_are_errors(fields):
    with pytest.raises(ConfigError, match="keep one of them"):
        LlamaConfig.from_dict(fields)


def test_nulls_and_unused_keys_are_written_back():
    fields = LlamaConfig.from_dict({"mine": None, "original_max_position_embeddings": 7}).to_dict()
    assert fields["mine"] is None
    assert fields["original_max_position_embeddings"] == 7
    assert LlamaConfig.from_dict(fields).to_dict() == fields


def test_files_of_early_conversions_are_read():
    config = LlamaConfig.from_dict({"architectures": ["LLaMAForCausalLM"], "pad_token_id": -1, "eos_token_id": [-1]})
    assert (config.pad_token_id, config.eos_token_id) == (None, None)
    assert json.loads(config.to_json_string())["architectures"] == ["LLaMAForCausalLM"]


def test_the_context_of_yarn_is_at_least_its_original_context_times_the_factor():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert LlamaConfig(max_position_embeddings=32768, rope_scaling=scaling).context_length == 131072
    assert LlamaConfig(max_position_embeddings=131072, rope_scaling=scaling).context_length == 131072


def test_label2id_alone_determines_the_number_of_labels():
    assert LlamaConfig(label2id={"ham": 0, "spam": 1, "other": 2}).num_labels == 3
