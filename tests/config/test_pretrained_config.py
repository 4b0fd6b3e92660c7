"""The interface of `PretrainedConfig`: attributes, dictionaries, JSON, files; equal to that of transformers 5.23."""

from __future__ import annotations

import copy
import json
import pickle
from typing import ClassVar

import pytest

from puna import LlamaConfig
from puna.config.base_defaults import DEFAULTS
from puna.config.pretrained import PretrainedConfig
from puna.errors import ArgumentError, ConfigError, ModelNotFoundError, RequestError

SMALL = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2, "intermediate_size": 96}

BASE_4_34 = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "torch_dtype": None, "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "tie_word_embeddings": True, "is_encoder_decoder": False, "is_decoder": False, "cross_attention_hidden_size": None,
    "add_cross_attention": False, "tie_encoder_decoder": False, "max_length": 20, "min_length": 0, "do_sample": False,
    "early_stopping": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "num_return_sequences": 1,
    "chunk_size_feed_forward": 0, "output_scores": False, "return_dict_in_generate": False, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "architectures": None, "finetuning_task": None,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": None,
    "prefix": None, "bos_token_id": None, "pad_token_id": None, "eos_token_id": None, "sep_token_id": None,
    "decoder_start_token_id": None, "task_specific_params": None, "problem_type": None, "_name_or_path": "",
    "_commit_hash": None, "transformers_version": None,
}  # fmt: skip
"""`vars(PretrainedConfig())` in transformers 4.34.1."""

OTHER = {
    "return_dict": False, "output_hidden_states": True, "output_attentions": True, "torchscript": True,
    "use_bfloat16": True, "tf_legacy_loss": True, "pruned_heads": {0: [1]}, "tie_word_embeddings": True,
    "is_decoder": True, "cross_attention_hidden_size": 128, "add_cross_attention": True, "tie_encoder_decoder": True,
    "max_length": 50, "min_length": 3, "do_sample": True, "early_stopping": True, "num_beams": 3, "num_beam_groups": 3,
    "diversity_penalty": 0.5, "temperature": 2.0, "top_k": 10, "top_p": 0.7, "typical_p": 0.2,
    "repetition_penalty": 0.8, "length_penalty": 0.8, "no_repeat_ngram_size": 5, "encoder_no_repeat_ngram_size": 5,
    "bad_words_ids": [[1], [2, 3]], "num_return_sequences": 3, "chunk_size_feed_forward": 5, "output_scores": True,
    "return_dict_in_generate": True, "forced_bos_token_id": 2, "forced_eos_token_id": 3, "remove_invalid_values": True,
    "exponential_decay_length_penalty": [5, 1.01], "suppress_tokens": [0, 1], "begin_suppress_tokens": [2],
    "architectures": ["LlamaForCausalLM"], "finetuning_task": "translation", "id2label": {0: "label"},
    "label2id": {"label": "0"}, "tokenizer_class": "LlamaTokenizerFast", "prefix": "prefix", "bos_token_id": 6,
    "pad_token_id": 7, "eos_token_id": 8, "sep_token_id": 9, "decoder_start_token_id": 10,
    "task_specific_params": {"translation": "some"}, "problem_type": "regression", "my_own": {"a": [1]},
}  # fmt: skip
"""A value other than its default for each attribute of every configuration, and one attribute more."""


def test_variables_are_those_of_release_4_34():
    assert vars(PretrainedConfig()) == BASE_4_34


@pytest.mark.parametrize(("name", "value"), BASE_4_34.items())
def test_every_configuration_has_the_attributes_of_release_4_34(name, value):
    assert getattr(PretrainedConfig(), name) == value
    if name not in ("tie_word_embeddings", "bos_token_id", "eos_token_id"):  # LLaMA's defaults: False, 1 and 2
        assert getattr(LlamaConfig(), name) == value


def test_every_configuration_has_the_attributes_of_release_5():
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaConfig()
    for name, value in vars(reference).items():
        if name not in ("transformers_version", "_output_attentions") and not name.endswith(("_internal", "_done")):
            assert getattr(LlamaConfig(), name) == value, name


def test_no_attribute_shares_its_default_between_configurations():
    LlamaConfig().pruned_heads[0] = [1]
    assert LlamaConfig().pruned_heads == {}
    assert all(
        OTHER[name] != value for name, value in DEFAULTS.items() if name in OTHER and name != "tie_word_embeddings"
    )


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_attributes_are_kept_saved_and_replaced(tmp_path, name, value):
    config = LlamaConfig(**SMALL, **{name: value})
    assert getattr(config, name) == value
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored[name] == json.loads(json.dumps(value))
    assert getattr(LlamaConfig.from_pretrained(tmp_path), name) == value
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    assert (name in json.loads((tmp_path / "config.json").read_text())) == (
        name in ("bos_token_id", "eos_token_id", "tie_word_embeddings")
    )
    if name != "my_own":
        assert getattr(LlamaConfig.from_pretrained(tmp_path, **{name: value}), name) == value


def test_files_are_stable(tmp_path):
    """A configuration that is loaded and saved again gives the same bytes."""
    config = LlamaConfig(**SMALL, **OTHER, dtype="bfloat16", rope_scaling={"type": "dynamic", "factor": 2})
    config.save_pretrained(tmp_path)
    data = (tmp_path / "config.json").read_bytes()
    for _ in range(2):
        LlamaConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
        assert (tmp_path / "config.json").read_bytes() == data
    config.to_json_file(tmp_path / "other.json")
    assert (tmp_path / "other.json").read_bytes() == data == config.to_json_string().encode()


def test_dictionaries_hold_all_attributes_or_those_that_differ(tmp_path):
    config = LlamaConfig(**SMALL, max_length=9, my_own=1)
    complete, differing = config.to_dict(), config.to_diff_dict()
    assert complete.keys() >= BASE_4_34.keys() - {"_commit_hash"} | {"model_type", "vocab_size", "my_own"}
    assert differing.items() <= complete.items()
    assert {"max_length": 9, "my_own": 1, "vocab_size": 32000, "bos_token_id": 1}.items() <= differing.items()
    assert not differing.keys() & {"min_length", "torchscript", "pad_token_id", "id2label", "_name_or_path", "dtype"}
    assert "bos_token_id" in LlamaConfig(bos_token_id=None).to_diff_dict()
    assert json.loads(config.to_json_string()) == differing
    assert json.loads(config.to_json_string(use_diff=False)).keys() == complete.keys()
    config.to_json_file(tmp_path / "all.json", use_diff=False)
    assert LlamaConfig.from_json_file(tmp_path / "all.json") == config
    complete["rope_parameters"]["rope_theta"] = 5  # a copy
    assert config.rope_theta == 10000


def test_types_are_those_of_torch():
    torch = pytest.importorskip("torch")
    config = LlamaConfig(torch_dtype="float16")
    assert config.torch_dtype is config.dtype is torch.float16
    assert config.to_dict()["torch_dtype"] == config.to_dict()["dtype"] == config.dtype_name == "float16"
    config.torch_dtype = torch.bfloat16
    assert json.loads(config.to_json_string())["dtype"] == "bfloat16"
    nested = {"torch_dtype": torch.float32, "inner": {"dtype": torch.float16, "other": 1}, "dtype": None}
    again = copy.deepcopy(nested)
    config.dict_torch_dtype_to_str(nested)
    config.dict_dtype_to_str(again)
    assert again == nested
    assert nested == {"torch_dtype": "float32", "inner": {"dtype": "float16", "other": 1}, "dtype": None}


def test_arguments_that_are_not_fields_are_returned_or_reported(tmp_path):
    LlamaConfig(**SMALL, mine=1).save_pretrained(tmp_path)
    config, unused = LlamaConfig.from_pretrained(
        tmp_path, foo=False, mine=2, use_cache=False, torch_dtype="float16", return_unused_kwargs=True
    )
    assert (config.mine, config.use_cache, config.dtype_name, unused) == (2, False, "float16", {"foo": False})
    assert LlamaConfig.from_dict({}, return_unused_kwargs=True, a=1)[1] == {"a": 1}
    with pytest.warns(UserWarning, match="foo ignored: LlamaConfig has no such field"):
        assert not hasattr(LlamaConfig.from_pretrained(tmp_path, foo=1), "foo")
    assert LlamaConfig.from_dict({}, return_unused_kwargs=False) == LlamaConfig()


def test_arguments_of_reading_have_the_names_and_order_of_transformers(tmp_path):
    LlamaConfig(**SMALL).save_pretrained(save_directory=tmp_path / "inner", push_to_hub=False)
    config = LlamaConfig.from_pretrained(
        pretrained_model_name_or_path=tmp_path, cache_dir=tmp_path, force_download=False, local_files_only=True,
        token=None, revision="main", subfolder="inner", proxies={}, resume_download=False, trust_remote_code=True,
        _from_auto=True,
    )  # fmt: skip
    assert config == LlamaConfig(**SMALL) == LlamaConfig.from_pretrained(tmp_path / "inner", None, False, True, None)
    assert LlamaConfig.from_pretrained(tmp_path / "inner" / "config.json", revision="x") == config
    assert LlamaConfig.from_json_file(json_file=tmp_path / "inner" / "config.json") == config
    assert LlamaConfig.from_dict(config_dict=config.to_dict()) == config
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        LlamaConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="absent has no config"):
        LlamaConfig.from_pretrained(tmp_path, subfolder="absent")
    with (
        pytest.warns(FutureWarning, match="use_auth_token"),
        pytest.raises(RequestError, match="are both given; keep token"),
    ):
        LlamaConfig.from_pretrained(tmp_path, token="a", use_auth_token="b")


def test_the_content_of_a_file_can_be_read_without_a_class(tmp_path):
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    fields, unused = LlamaConfig.get_config_dict(tmp_path, subfolder="", cache_dir=None, vocab_size=3, foo=1)
    assert fields == json.loads((tmp_path / "config.json").read_text())
    assert unused == {"vocab_size": 3, "foo": 1}


def test_attributes_are_updated_from_dictionaries_and_texts():
    config = LlamaConfig(**SMALL, mine="a")
    config.update({"vocab_size": 7, "new": 1, "rope_scaling": {"type": "linear", "factor": 2}})
    assert (config.vocab_size, config.new, config.context_length) == (7, 1, 4096)
    config.update_from_string("vocab_size=9,rms_norm_eps=1e-05,use_cache=n,mine=b=c")
    assert (config.vocab_size, config.rms_norm_eps, config.use_cache, config.mine) == (9, 1e-5, False, "b=c")
    config.update_from_string("use_cache=TRUE")
    assert config.use_cache is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent=1", "'absent=1' must be NAME=VALUE"),
        ("vocab_size", "'vocab_size' must be NAME=VALUE"),
        ("use_cache=maybe", "use_cache='maybe': the value must be true or false"),
        ("vocab_size=many", "vocab_size='many': the value must be a number, such as 32000"),
        ("pruned_heads=1", "pruned_heads is {}; only numbers, booleans and strings"),
    ],
)
def test_errors_of_texts_name_the_part(text, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig().update_from_string(text)


def test_attributes_can_be_assigned_deleted_copied_and_pickled():
    config = LlamaConfig(**SMALL, mine=[1])
    config.added = 2
    assert (config.to_dict()["added"], vars(config)["mine"]) == (2, [1])
    for copied in (copy.deepcopy(config), copy.copy(config), pickle.loads(pickle.dumps(config))):
        assert copied == config and copied is not config
    del config.added
    assert not hasattr(config, "added") and "added" not in config.to_dict()
    with pytest.raises(AttributeError, match="'LlamaConfig' object has no attribute 'added'"):
        _ = config.added
    with pytest.raises(TypeError, match="unhashable"):
        hash(config)
    assert config != LlamaConfig(**SMALL) != PretrainedConfig()
    assert repr(config) == f"LlamaConfig {config.to_json_string()}" == str(config)
    assert "built-in" in repr(LlamaConfig(hidden_act=abs))


def test_names_of_the_source_are_texts_and_do_not_distinguish_configurations(tmp_path):
    config = LlamaConfig(name_or_path=tmp_path, transformers_version="4.1")
    assert config.name_or_path == config._name_or_path == str(tmp_path)
    config.name_or_path = 3
    assert (config._name_or_path, config) == ("3", LlamaConfig())
    assert LlamaConfig(_name_or_path="x").name_or_path == "x"


def test_classes_of_a_head_are_renamed_only_when_their_number_changes():
    config = LlamaConfig(id2label={"0": "ham", 1: "spam"})
    config.num_labels = 2
    assert config.id2label == {0: "ham", 1: "spam"}
    config.num_labels = 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    with pytest.warns(UserWarning, match="num_labels=3 ignored"):
        assert LlamaConfig(num_labels=3, id2label={0: "x"}).num_labels == 1
    with pytest.raises(ValueError, match="num_labels is 3"):
        LlamaConfig.from_dict({}, num_labels=3, id2label={0: "x"})


def test_tuples_are_returned_without_return_dict_or_with_torchscript():
    assert LlamaConfig().use_return_dict
    assert not LlamaConfig(return_dict=False).use_return_dict
    assert not LlamaConfig(torchscript=True).use_return_dict


def test_rope_settings_have_the_spelling_of_both_releases():
    config = LlamaConfig(rope_scaling={"type": "linear", "factor": 2.0})
    assert config.rope_scaling == {"type": "linear", "factor": 2.0} == config.to_dict()["rope_scaling"]
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0} != {"type": "linear", "factor": 3.0}
    assert config.rope_scaling["type"] == config.rope_scaling["rope_type"] == config.rope_scaling.get("type")
    assert "type" in config.rope_scaling and config.rope_scaling.get("missing", 5) == 5
    config.rope_scaling["type"] = "dynamic"
    config.rope_scaling["factor"] = 4.0
    assert config.rope_parameters == {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config.rope_parameters["rope_theta"] = 5e5
    config.rope_parameters.update(factor=3)
    assert (config.rope_theta, config.rope_scaling["factor"]) == (5e5, 3.0)
    with pytest.raises(ConfigError, match="lacks factor"):
        LlamaConfig().rope_parameters["rope_type"] = "linear"
    assert json.dumps(config.rope_parameters) == '{"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500000.0}'


def test_the_width_of_heads_follows_the_other_fields_unless_it_is_given():
    config = LlamaConfig(**SMALL)
    config.hidden_size = 128
    assert (config.head_dim, config.to_dict()["head_dim"]) == (16, 16)
    config.head_dim = 6
    config.hidden_size = 64
    assert config.head_dim == 6
    loaded = LlamaConfig.from_dict(LlamaConfig(**SMALL).to_dict(), hidden_size=256)
    assert loaded.head_dim == 8  # the width in the file was that of 64 / 8, and is kept with another hidden size


def test_padding_ids_of_minus_one_mean_no_token_when_they_are_assigned():
    config = LlamaConfig(eos_token_id=[2, 3])
    config.pad_token_id = config.bos_token_id = -1
    config.eos_token_id = [-1, 5]
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, [5])


def test_other_names_of_attributes_belong_to_subclasses(tmp_path):
    class Renamed(LlamaConfig):
        model_type = "renamed"
        attribute_map: ClassVar = {"n_embd": "hidden_size"}

        def __init__(self, extra_size=5, **kwargs):
            super().__init__(**kwargs)
            self.extra_size = extra_size

    config = Renamed(**SMALL, extra_size=6)
    config.n_embd = 32
    assert (config.hidden_size, config.n_embd, config.to_dict().get("n_embd")) == (32, 32, None)
    config.save_pretrained(tmp_path)
    loaded = Renamed.from_pretrained(tmp_path, n_embd=16)
    assert (loaded.hidden_size, loaded.extra_size, loaded.model_type) == (16, 6, "renamed")
    assert json.loads((tmp_path / "config.json").read_text())["extra_size"] == 6
    with pytest.raises(ConfigError, match="'renamed'"):
        LlamaConfig.from_pretrained(tmp_path)


def test_attributes_of_the_class_are_those_of_transformers():
    assert (LlamaConfig.model_type, LlamaConfig.is_composition, LlamaConfig.attribute_map) == ("llama", False, {})
    assert LlamaConfig.keys_to_ignore_at_inference == ["past_key_values"]
    config = LlamaConfig()
    assert config.get_text_config() is config.get_text_config(decoder=True) is config
    assert config._attn_implementation is None
    config._attn_implementation = "eager"
    assert config.attn_implementation == "eager" and "attn_implementation" not in config.to_dict()
    LlamaConfig.register_for_auto_class()
    assert LlamaConfig._auto_class == "AutoConfig"
    LlamaConfig._auto_class = None
    with pytest.raises(ValueError, match="name of an Auto class"):
        LlamaConfig.register_for_auto_class("Mine")


def test_settings_of_generation_are_found_in_the_model_configuration():
    config = LlamaConfig(max_length=9, do_sample=True, top_k=50)
    assert config.generation_parameters() == {"max_length": 9, "do_sample": True}
    assert dict(config.extra) == {"max_length": 9, "do_sample": True}


def test_the_file_is_uploaded_with_the_arguments_of_the_hub(tmp_path, monkeypatch):
    calls = []

    def upload(folder, names, repo_id, **options):
        calls.append((repo_id, [(folder / name).read_text() for name in names], options))
        return "commit"

    monkeypatch.setattr("puna.config.pretrained.upload_files", upload)
    config = LlamaConfig(**SMALL)
    assert config.push_to_hub("a/b", private=True, use_temp_dir=True, commit_message=None) == "commit"
    config.save_pretrained(tmp_path / "mine", push_to_hub=True, token="t", revision="dev")
    config.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="c/d", commit_message="new")
    config.push_to_hub("e/f", commit_description="more", create_pr=True)
    text = [config.to_json_string()]
    assert calls == [
        ("a/b", text, {"commit_message": "Upload config", "private": True}),
        ("mine", text, {"commit_message": "Upload config", "token": "t", "revision": "dev"}),
        ("c/d", text, {"commit_message": "new"}),
        ("e/f", text, {"commit_message": "Upload config", "commit_description": "more", "create_pr": True}),
    ]
    with pytest.raises(ArgumentError, match="there is no argument colour"):
        config.push_to_hub("a/b", colour=1)


def test_deprecated_arguments_warn():
    with pytest.warns(FutureWarning, match="gradient_checkpointing_enable"):
        assert LlamaConfig(gradient_checkpointing=True).gradient_checkpointing
    with pytest.warns(UserWarning, match="xla_device has no effect"):
        LlamaConfig(xla_device=True)


@pytest.mark.parametrize("name", ["to_dict", "attribute_map", "from_pretrained"])
def test_a_key_cannot_replace_a_method(name):
    with pytest.raises(ConfigError, match=f"the key '{name}', the name of a method"):
        LlamaConfig.from_dict({name: 1})


def test_a_key_with_the_name_of_a_read_only_property_is_kept_for_files():
    config = LlamaConfig.from_dict({"context_length": 7, "use_return_dict": False, "kwargs": 2})
    assert (config.context_length, config.use_return_dict) == (2048, True)
    assert {"context_length": 7, "use_return_dict": False, "kwargs": 2}.items() <= config.to_diff_dict().items()


def test_settings_of_other_libraries_are_saved_as_dictionaries():
    class Settings:
        def to_dict(self):
            return {"quant_method": "mine"}

    assert LlamaConfig(quantization_config=Settings()).to_diff_dict()["quantization_config"] == {"quant_method": "mine"}
