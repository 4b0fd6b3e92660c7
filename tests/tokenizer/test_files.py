"""Every kind of tokenizer file, detected by content; configuration files; damaged files."""

from __future__ import annotations

import json
import random
import shutil
import time

import pytest

from puna import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import ModelNotFoundError, PunaError, TokenizerError
from puna.tokenizer import AddedToken
from puna.tokenizer.arguments import NO_LIMIT
from puna.tokenizer.files.config import read_folder
from tests.helpers.vocabularies import random_texts

TEXTS = random_texts(60, seed=7)


def write_json(path, value):
    path.write_text(json.dumps(value))


@pytest.fixture
def folder(sp_model, tmp_path):
    """A folder with a SentencePiece model, to which tests add configuration files."""
    shutil.copy(sp_model, tmp_path / "tokenizer.model")
    return tmp_path


def test_the_kind_of_a_tokenizer_file_is_detected_by_its_content(sp_model, byte_level_json, tmp_path):
    shutil.copy(byte_level_json / "tokenizer.json", tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path).is_fast
    shutil.copy(sp_model, tmp_path / "anything.bin")
    assert isinstance(load_tokenizer(tmp_path / "anything.bin"), LlamaTokenizer)


def test_tokenizer_json_overrides_the_model_and_the_class_name(folder, byte_level_json):
    reference = load_tokenizer(byte_level_json)
    shutil.copy(byte_level_json / "tokenizer.json", folder)
    for name in ("LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "NoSuchTokenizer", None):
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": name})
        for load in (load_tokenizer, AutoTokenizer.from_pretrained):
            tokenizer = load(folder)
            assert isinstance(tokenizer, LlamaTokenizerFast)
            assert [tokenizer.encode(t) for t in TEXTS] == [reference.encode(t) for t in TEXTS]
    assert LlamaTokenizer.from_pretrained(folder).vocab_size == 420  # the class reads tokenizer.model


def test_auto_tokenizer_with_use_fast_false_is_llama_tokenizer(sp_model, byte_level_json):
    assert AutoTokenizer.from_pretrained(sp_model, use_fast=False).behaviour == "hf-legacy"
    with pytest.warns(UserWarning, match="no SentencePiece vocabulary"):
        tokenizer = AutoTokenizer.from_pretrained(byte_level_json, use_fast=False)
    assert tokenizer.is_fast
    with pytest.raises(TokenizerError, match="from_pretrained"):
        AutoTokenizer()
    with pytest.raises(TokenizerError, match="tokenizer_type is 'bert'"):
        AutoTokenizer.from_pretrained(sp_model, tokenizer_type="bert")
    AutoTokenizer.register(dict, fast_tokenizer_class=LlamaTokenizerFast)  # has no effect


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", None])
def test_auto_tokenizer_reads_special_tokens_in_a_text_and_load_tokenizer_does_not(folder, name):
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": name})
    auto, own = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert isinstance(auto, LlamaTokenizerFast)
    assert auto.encode("a</s>b") == LlamaTokenizerFast.from_pretrained(folder).encode("a</s>b")
    assert 2 in auto.encode("a</s>b") and 2 not in own.encode("a</s>b")


@pytest.mark.parametrize("settings", [{"tokenizer_class": "PreTrainedTokenizerFast"}, {"padding_side": "left"}, {}])
def test_auto_tokenizer_equals_that_of_transformers_for_other_classes(byte_level_json, tmp_path, settings):
    transformers = pytest.importorskip("transformers")
    shutil.copy(byte_level_json / "tokenizer.json", tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.padding_side == theirs.padding_side
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]


HUB_ARGUMENTS = {
    "trust_remote_code": True,
    "local_files_only": True,
    "revision": "main",
    "token": "secret",
    "cache_dir": "/nowhere",
    "force_download": True,
}


def test_tokenizer_json_is_parsed_once(byte_level_json, monkeypatch):
    from puna.tokenizer.files import recipes

    parsed_paths = []
    read = recipes.read_pipeline
    monkeypatch.setattr(recipes, "read_pipeline", lambda file: parsed_paths.append(str(file)) or read(file))
    LlamaTokenizerFast.from_pretrained(byte_level_json)
    assert parsed_paths == [str(byte_level_json / "tokenizer.json")]


@pytest.mark.parametrize("cls", [AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast])
def test_arguments_of_the_hub_have_no_effect_on_a_path(cls, folder):
    tokenizer = cls.from_pretrained(folder, **HUB_ARGUMENTS, pad_token="</s>")
    assert tokenizer.pad_token == "</s>" and tokenizer.encode("a") == cls.from_pretrained(folder).encode("a")
    in_subfolder = cls.from_pretrained(folder.parent, subfolder=folder.name)
    assert in_subfolder.encode("a") == tokenizer.encode("a")


@pytest.mark.parametrize("cls", [AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast])
def test_unknown_arguments_are_kept(cls, folder, tmp_path):
    tokenizer = cls.from_pretrained(folder, use_fast=True, random_argument=True)
    assert tokenizer.init_kwargs["random_argument"] is True
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["random_argument"] is True
    again = cls.from_pretrained(tmp_path, random_argument=False)
    assert again.init_kwargs["random_argument"] is False and "use_fast" not in again.init_kwargs


def test_constructors_keep_unknown_arguments(sp_model):
    for cls in (LlamaTokenizer, LlamaTokenizerFast):
        tokenizer = cls(sp_model, foo=1, max_len=8)
        assert tokenizer.init_kwargs["foo"] == 1 and not hasattr(tokenizer, "foo")
        assert tokenizer.model_max_length == 8


def test_load_tokenizer_names_an_unknown_argument(sp_model):
    for arguments in ({"no_such": 1}, {"revision": "main"}):
        with pytest.raises(TokenizerError, match=next(iter(arguments))):
            load_tokenizer(sp_model, **arguments)


def test_flags_in_the_configuration_are_applied(folder, byte_level_json, sp_model):
    write_json(folder / "tokenizer_config.json", {"add_bos_token": False, "add_eos_token": True, "legacy": False})
    assert load_tokenizer(folder).encode("a")[-1] == 2
    assert load_tokenizer(folder).behaviour == "sp"
    assert LlamaTokenizer.from_pretrained(folder).behaviour == "hf"
    assert LlamaTokenizer.from_pretrained(folder, legacy=True, add_eos_token=False).encode("a")[-1] != 2
    assert LlamaTokenizerFast.from_pretrained(folder).encode("a")[-1] == 2


@pytest.mark.parametrize(("name", "honoured"), [("LlamaTokenizerFast", True), ("PreTrainedTokenizerFast", False)])
def test_only_llama_classes_apply_add_bos_token_to_tokenizer_json(byte_level_json, tmp_path, name, honoured):
    """As in transformers 4.34.1, all other classes keep the post-processor of tokenizer.json."""
    shutil.copy(byte_level_json / "tokenizer.json", tmp_path)
    config = json.loads((byte_level_json / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", config | {"tokenizer_class": name, "add_bos_token": True})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.add_bos_token is honoured
    assert (tokenizer.encode("a")[0] == tokenizer.bos_token_id) is honoured
    assert load_tokenizer(tmp_path, add_bos_token=True).encode("a")[0] == tokenizer.bos_token_id
    saved = tmp_path / "saved"
    tokenizer.save_pretrained(saved)
    assert load_tokenizer(saved).encode("a") == tokenizer.encode("a")


@pytest.mark.parametrize("legacy_format", [None, True, False])
@pytest.mark.parametrize("split", [None, True, False])
def test_sentencepiece_ids_survive_saving_twice(sp_model, tmp_path, legacy_format, split):
    arguments = {} if split is None else {"split_special_tokens": split}
    tokenizer = load_tokenizer(sp_model, **arguments)
    ids = [tokenizer.encode(text) for text in ("x</s>", "<s>", "a<s> b")]
    tokenizer.save_pretrained(tmp_path / "once", legacy_format)
    load_tokenizer(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for folder in ("once", "twice"):
        reloaded = load_tokenizer(tmp_path / folder)
        assert [reloaded.encode(text) for text in ("x</s>", "<s>", "a<s> b")] == ids
        assert json.loads((tmp_path / folder / "tokenizer_config.json").read_text()).get("split_special_tokens") in (
            None,
            False,
        )
    ids = LlamaTokenizer.from_pretrained(sp_model).encode("x</s>")
    if legacy_format is not False:
        assert LlamaTokenizer.from_pretrained(tmp_path / "once").encode("x</s>") == ids


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_splitting_special_tokens_survives_saving(sp_model, tmp_path, cls):
    tokenizer = cls(sp_model, split_special_tokens=True)
    assert 2 not in tokenizer.encode("x</s>")
    tokenizer.save_pretrained(tmp_path)
    assert cls.from_pretrained(tmp_path).encode("x</s>") == tokenizer.encode("x</s>")


def test_added_tokens_in_old_and_new_files_are_read(folder):
    write_json(folder / "added_tokens.json", {"<old>": 420, "<pad>": 421})
    write_json(folder / "special_tokens_map.json", {"pad_token": "<pad>", "bos_token": {"content": "<s>"}})
    for load in (load_tokenizer, LlamaTokenizer.from_pretrained, LlamaTokenizerFast.from_pretrained):
        tokenizer = load(folder)
        assert tokenizer.convert_tokens_to_ids(["<old>", "<pad>"]) == [420, 421]
        assert tokenizer.pad_token_id == 421 and len(tokenizer) == 422
        assert not tokenizer.added_tokens_decoder[420].special and tokenizer.added_tokens_decoder[421].special
    decoder = {"420": {"content": "<new>", "special": True, "lstrip": True}}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, "sep_token": "<new>"})
    for load in (load_tokenizer, LlamaTokenizer.from_pretrained, LlamaTokenizerFast.from_pretrained):
        tokenizer = load(folder)
        assert tokenizer.added_tokens_decoder[420] == AddedToken("<new>", lstrip=True, normalized=False, special=True)
        assert tokenizer.sep_token == "<new>" and tokenizer.pad_token is None and "<old>" not in tokenizer.get_vocab()


def test_chat_templates_are_read_from_every_file(folder):
    assert load_tokenizer(folder).chat_template is None
    write_json(folder / "chat_template.json", {"chat_template": "json"})
    assert load_tokenizer(folder).chat_template == "json"
    write_json(folder / "tokenizer_config.json", {"chat_template": "config"})
    assert load_tokenizer(folder).chat_template == "config"
    templates = [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]
    write_json(folder / "tokenizer_config.json", {"chat_template": templates})
    assert load_tokenizer(folder).chat_template == {"default": "d", "rag": "r"}
    load_tokenizer(folder).save_pretrained(folder / "saved")
    assert json.loads((folder / "saved/tokenizer_config.json").read_text())["chat_template"] == templates
    (folder / "chat_template.jinja").write_text("jinja é")
    assert load_tokenizer(folder).chat_template == "jinja é"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("tools")
    assert load_tokenizer(folder).chat_template == {"default": "jinja é", "tool_use": "tools"}
    assert load_tokenizer(folder, chat_template="mine").chat_template == "mine"


def test_sides_limits_and_unknown_keys_of_the_configuration_are_applied(folder):
    config = {
        "model_max_length": 1e30,
        "padding_side": "left",
        "truncation_side": "left",
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids"],
        "additional_special_tokens": ["<a>", {"content": "<b>"}],
        "my_own_key": {"kept": True},
        "tokenizer_class": "LlamaTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    tokenizer = LlamaTokenizer.from_pretrained(folder, padding_side="right", model_max_length=9)
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length) == ("right", "left", 9)
    assert tokenizer.clean_up_tokenization_spaces and list(tokenizer("a")) == ["input_ids"]
    assert tokenizer.additional_special_tokens == ["<a>", "<b>"] and len(tokenizer) == 422
    assert tokenizer.name_or_path == str(folder)
    tokenizer.save_pretrained(folder / "saved", filename_prefix="x")
    assert json.loads((folder / "saved/x-tokenizer_config.json").read_text())["my_own_key"] == {"kept": True}


def test_bos_and_eos_are_found_without_tokenizer_config_json(byte_level_json, tmp_path):
    shutil.copy(byte_level_json / "tokenizer.json", tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        None,
    )
    write_json(tmp_path / "config.json", {"bos_token_id": 400, "eos_token_id": [404, 401]})
    assert load_tokenizer(tmp_path).eos_token == "<|eot_id|>"
    assert len(load_tokenizer(tmp_path)) == len(LlamaTokenizerFast.from_pretrained(tmp_path)) == 406


@pytest.mark.parametrize(
    "config",
    [
        {"add_bos_token": "yes"},
        {"padding_side": 5},
        {"padding_side": "up"},
        {"model_max_length": -4},
        {"model_max_length": "long"},
        {"chat_template": 5},
        {"chat_template": [{"name": "x"}]},
        {"bos_token": 5},
        {"bos_token": {"text": "<s>"}},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": "<s>"}},
        {"added_tokens_decoder": {"420": {"content": "<x>", "special": 1}}},
        {"additional_special_tokens": 7},
        {"sp_model_kwargs": 5},
        {"model_input_names": "input_ids"},
    ],
    ids=str,
)
def test_invalid_values_in_the_configuration_are_refused(folder, config):
    write_json(folder / "tokenizer_config.json", config)
    with pytest.raises(TokenizerError) as raised:
        load_tokenizer(folder)
    assert next(iter(config)).split("_")[0] in str(raised.value)


def test_missing_files_and_impossible_saves_are_refused(tmp_path, sp_model, byte_level_json):
    with pytest.raises(ModelNotFoundError, match="hub"):
        load_tokenizer("meta-llama/Llama-2-7b-hf")
    with pytest.raises(TokenizerError, match=r"has no tokenizer \(tokenizer.json, tokenizer.model or a GGUF"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="LlamaTokenizer needs"):
        LlamaTokenizer.from_pretrained(byte_level_json)
    with pytest.raises(TokenizerError, match="save_pretrained"):
        load_tokenizer(byte_level_json).save_vocabulary(tmp_path)
    with pytest.raises(TokenizerError, match="legacy_format"):
        LlamaTokenizer(sp_model).save_pretrained(tmp_path, legacy_format=False)
    with pytest.raises(TokenizerError, match="legacy_format"):
        load_tokenizer(byte_level_json).save_pretrained(tmp_path, legacy_format=True)
    with pytest.raises(TokenizerError, match="is a file"):
        LlamaTokenizer(sp_model).save_pretrained(sp_model)


@pytest.mark.parametrize("content", [b"", b"\n", b"{", b"{}", b"[]", b"\x00" * 99, b"GGUF", b"IQ== 0\n", b"IQ== x\n"])
def test_short_invalid_files_are_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(PunaError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Returns the data truncated, or with some bytes changed, inserted or deleted."""
    out = bytearray(data)
    kind = rng.random()
    if kind < 0.2:
        return bytes(out[: rng.randrange(len(out))])
    if kind < 0.7:
        for _ in range(rng.randint(1, 6)):
            out[rng.randrange(len(out))] = rng.randrange(256)
    else:
        at = rng.randrange(len(out))
        out[at : at + rng.randint(0, 40)] = rng.randbytes(rng.randint(0, 10))
    return bytes(out)


@pytest.mark.parametrize("kind", ["sentencepiece", "json"])
def test_mutated_files_load_or_are_refused(kind, sp_model, byte_level_json, tmp_path):
    source = sp_model if kind == "sentencepiece" else byte_level_json / "tokenizer.json"
    data = source.read_bytes()
    rng = random.Random(8)
    path = tmp_path / "mutated"
    refused = 0
    for number in range(400):
        path.write_bytes(mutate(data, rng) if number else data)
        try:
            tokenizer = load_tokenizer(path)
            tokenizer.decode(tokenizer.encode("the llama 🦙"))
        except PunaError:
            refused += 1
    assert 50 < refused < 400


@pytest.mark.timing
def test_loading_is_fast(byte_level_json, sp_model):
    for path in (byte_level_json, sp_model):
        start = time.process_time()
        load_tokenizer(path)
        assert time.process_time() - start < 0.5


@pytest.mark.parametrize("length", [0, -1, 0.5, float("nan"), -(10**400), True, "9"])
def test_a_model_max_length_that_is_not_a_positive_number_is_refused(tmp_path, length):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    with pytest.raises(TokenizerError, match=r"model_max_length = .*; expected a positive number"):
        read_folder(tmp_path)


def test_a_huge_model_max_length_means_no_limit(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**400}))
    assert read_folder(tmp_path)[0]["model_max_length"] == NO_LIMIT
