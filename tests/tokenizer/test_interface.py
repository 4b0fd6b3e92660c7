"""The tokenizer classes have the members and arguments of transformers 4.34.1 and 5.23 (recorded in interface.json).

`tests/oracles/tokenizer_interface.py` recorded them.
"""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import puna.tokenizer
from puna import CodeLlamaTokenizer, LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import TokenizerError
from puna.tokenizer import AddedToken, BatchEncoding
from tests.golden.files import TOKENIZER

RECORDED: dict[str, dict[str, dict[str, list[str] | None]]] = json.loads(
    (Path(__file__).parent / "interface.json").read_text()
)

INTERNAL = {
    "tokens_trie": "how 4.34 splits a text at added tokens",
    "prepare_for_tokenization": "a hook for subclasses of 4.34, which changes nothing for LLaMA",
    "add_prefix_space": "a setting of 5.x's pipeline; the files decide here",
    "backend": "the name of the implementation in 5.x",
    "files_loaded": "how 5.x found the files",
    "model": "the class of the pipeline's model in 5.x",
    "convert_to_native_format": "a step of 5.x's from_pretrained",
    "save_chat_templates": "a step of 5.x's save_pretrained; here save_jinja_files=True",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": "a key of tokenizer_config.json here",
    "chat_control_tokens": "for sanitize_control_tokens of 5.x, which is refused",
    "response_template": "no LLaMA checkpoint has one",
    "parse_response": "needs a response_template",
    "get_response_parser": "needs a response_template",
}
"""Members without a counterpart, and why."""

FAST_ONLY = {
    "backend_tokenizer", "can_save_slow_tokenizer", "decoder", "set_infilling_processor", "set_truncation_and_padding",
    "train_new_from_iterator", "update_post_processor",
}  # fmt: skip
"""Members of `LlamaTokenizer` in 5.x, where it is the fast class."""

RENAMED = {("clean_up_tokenization", "text")}
"""Arguments that 5.x renamed; the name is that of 4.34."""


def make(name: str, vocab: Path) -> Any:
    cls = getattr(puna.tokenizer, name)
    return cls({}) if name == "BatchEncoding" else cls(vocab_file=vocab)


@pytest.mark.parametrize("release", RECORDED)
@pytest.mark.parametrize("name", RECORDED["4.34.1"])
def test_members_and_arguments_are_there(release, name, sp_model):
    cls, instance = getattr(puna.tokenizer, name), make(name, sp_model)
    own = {key for base in cls.__mro__ if base.__module__.startswith(("puna", "collections")) for key in vars(base)}
    for member, arguments in RECORDED[release][name].items():
        fast_only = member in FAST_ONLY | {"legacy"} and release == "5.23.0"
        if member in INTERNAL or (fast_only and ("Fast" not in name or member == "legacy")):
            continue
        assert member in own or member in vars(instance), member
        if arguments is None:
            continue
        parameters = inspect.signature(getattr(cls, member)).parameters
        if member == "__init__" and release == "5.23.0":
            continue  # takes a vocabulary instead of a file
        for argument in arguments:
            takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
            assert argument in parameters or takes_any or (member, argument) in RENAMED, (member, argument)


def test_every_exception_is_needed():
    recorded = {member for classes in RECORDED.values() for members in classes.values() for member in members}
    assert INTERNAL.keys() <= recorded and recorded >= FAST_ONLY


@pytest.fixture(params=[LlamaTokenizer, LlamaTokenizerFast])
def tokenizer(request, sp_model):
    return request.param(vocab_file=sp_model)


def test_a_token_outside_the_vocabulary_has_the_unknown_id(tokenizer, caplog):
    tokenizer.pad_token = "[PAD]"
    assert tokenizer.pad_token == "[PAD]" and tokenizer.pad_token_id == tokenizer.unk_token_id == 0
    assert "pad_token_id is 0" in caplog.text and "add_special_tokens" in caplog.text
    assert tokenizer("the", padding="max_length", max_length=8)["input_ids"].count(0) > 0
    assert tokenizer.add_tokens(["[PAD]"]) == 1 and tokenizer.pad_token_id == 420
    assert tokenizer.added_tokens_decoder[420].special


def test_a_named_token_is_not_an_additional_token(tokenizer, tmp_path):
    assert tokenizer.add_special_tokens({"pad_token": "[PAD]"}) == 1
    assert tokenizer.additional_special_tokens == [] and tokenizer._pad_token == AddedToken("[PAD]", special=True)
    tokenizer.save_pretrained(tmp_path)
    assert "additional_special_tokens" not in json.loads((tmp_path / "special_tokens_map.json").read_text())
    ids = [*tokenizer.encode("the", add_special_tokens=False), 420]
    assert tokenizer.decode(ids) == ("the[PAD]" if tokenizer.is_fast else " the[PAD]")  # as 4.34.1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the"


def test_additional_special_tokens_can_be_replaced_and_extended(tokenizer):
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]}) == 2
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<c>"]}, replace_additional_special_tokens=False) == 1
    assert tokenizer.additional_special_tokens == tokenizer.extra_special_tokens == ["<a>", "<b>", "<c>"]
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<b>"]}) == 0
    assert tokenizer.additional_special_tokens == ["<b>"] and len(tokenizer) == 423
    tokenizer.additional_special_tokens_ids = [100, 101]
    assert tokenizer.additional_special_tokens_ids == tokenizer.extra_special_tokens_ids == [100, 101]
    tokenizer.additional_special_tokens = None
    assert tokenizer.additional_special_tokens is None and tokenizer.extra_special_tokens == []
    assert tokenizer.sanitize_special_tokens() == 0
    assert tokenizer.all_special_tokens == ["<s>", "</s>", "<unk>"]


def test_private_names_that_collators_read(tokenizer):
    assert tokenizer._pad_token is None and str(tokenizer._bos_token) == "<s>"
    assert tokenizer._convert_id_to_token(1) == "<s>" and tokenizer._convert_token_to_id("<nowhere>") == 0
    tokenizer._pad_token = "</s>"
    assert tokenizer.pad_token_id == 2 and tokenizer.pad_token_type_id == 0
    assert tokenizer.convert_tokens_to_ids(None) is None
    assert tokenizer.max_len_single_sentence == tokenizer.model_max_length - 1
    assert tokenizer.max_len_sentences_pair == tokenizer.model_max_length - 2
    with pytest.raises(TokenizerError, match="set model_max_length"):
        tokenizer.max_len_single_sentence = 5
    assert type(tokenizer).model_input_names == ["input_ids", "attention_mask"]
    assert type(tokenizer).padding_side == tokenizer.padding_side and type(tokenizer).truncation_side == "right"
    assert type(tokenizer).max_model_input_sizes == (
        {} if tokenizer.is_fast else {"hf-internal-testing/llama-tokenizer": 2048}
    )
    assert set(type(tokenizer).pretrained_vocab_files_map) == {"vocab_file", "tokenizer_file"}


def test_ids_and_tokens_are_accepted(tokenizer):
    ids = tokenizer.encode("the llama", add_special_tokens=False)
    assert tokenizer.encode(ids) == tokenizer.prepare_for_model(ids)["input_ids"] == [1, *ids]
    assert tokenizer.truncate_sequences([1, 2, 3], None, 1, stride=1) == ([1, 2], None, [2, 3])
    tensors = tokenizer.prepare_for_model(ids, return_tensors="np", prepend_batch_axis=True)
    assert tensors["input_ids"].shape == (1, len(ids) + 1)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    if tokenizer.is_fast:
        with pytest.raises(TokenizerError, match="not tokens"):
            tokenizer.encode([*tokens, "x"])
    else:
        assert tokenizer.encode(tokens) == [1, *ids]


def test_deprecated_arguments(tokenizer, caplog):
    tokenizer.pad_token = "</s>"
    with pytest.warns(FutureWarning, match="padding='max_length'"):
        assert len(tokenizer("the", max_length=9, pad_to_max_length=True)["input_ids"]) == 9
    with pytest.warns(FutureWarning, match="truncation='only_first'"):
        assert len(tokenizer.encode("the llama", max_length=2, truncation_strategy="only_first", padding=True)) == 2
    with pytest.warns(UserWarning, match="text_target"), tokenizer.as_target_tokenizer():
        assert tokenizer("the")["input_ids"] == tokenizer.encode("the")
    with pytest.warns(FutureWarning, match="text_target"):
        batch = tokenizer.prepare_seq2seq_batch(["the"], ["llama"], max_length=9, src_lang="en")
    assert batch["labels"] == [tokenizer.encode("llama")]
    if tokenizer.is_fast:
        with pytest.raises(TypeError, match="max_target_length"):
            tokenizer("the", max_target_length=6)
    else:
        assert tokenizer("the", max_target_length=6)["input_ids"] == tokenizer.encode("the")
        assert "max_target_length" in caplog.text and "not recognized" in caplog.text


def test_a_text_that_is_too_long_is_reported_once(sp_model, caplog):
    for cls in (LlamaTokenizer, LlamaTokenizerFast):
        tokenizer = cls(sp_model, model_max_length=3)
        tokenizer("the llama learns", verbose=False)
        tokenizer("the llama learns", truncation=True)
        assert "longer than" not in caplog.text
        tokenizer("the llama learns"), tokenizer.encode("the llama learns")
        assert caplog.text.count("longer than the specified maximum sequence length") == 1
        caplog.clear()
    load_tokenizer(sp_model, model_max_length=3)("the llama learns")
    assert caplog.text == ""


def test_the_default_behaviour_is_reported_once(sp_model, caplog):
    from puna.tokenizer import slow

    slow._report_legacy.cache_clear()
    for legacy in (None, None, True, False):
        LlamaTokenizer(sp_model, legacy=legacy)
    load_tokenizer(sp_model)
    assert caplog.text.count("legacy=False") == 1


def test_pieces_of_unknown_text_are_shown(tmp_path):
    from tests.helpers.vocabularies import train_sentencepiece

    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_sentencepiece(byte_fallback=False))
    for legacy in (True, False):
        tokenizer = LlamaTokenizer(path, legacy=legacy)
        assert tokenizer.tokenize("the ☃")[-1] == "☃" and tokenizer.encode("the ☃")[-1] == 0


@pytest.mark.parametrize("kind", [LlamaTokenizer, CodeLlamaTokenizer])
def test_every_argument_of_the_slow_tokenizers_is_recorded(kind):
    tokenizer = kind(TOKENIZER)
    names = {name for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    assert names <= tokenizer.init_kwargs.keys()
    assert tokenizer.init_kwargs["vocab_file"] == str(TOKENIZER)


def test_tokenizers_can_be_copied(tokenizer):
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": [AddedToken("<x>", lstrip=True)]})
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer), copy.copy(tokenizer)):
        assert repr(again) == repr(tokenizer) and again("a <x>[PAD]") == tokenizer("a <x>[PAD]")
        assert again.init_kwargs == tokenizer.init_kwargs


def test_batch_encodings_can_be_pickled_and_converted(tokenizer):
    encoded = tokenizer(["the llama", "a b"])
    again = pickle.loads(pickle.dumps(encoded))
    assert again.data == encoded.data and again.is_fast == encoded.is_fast == tokenizer.is_fast
    assert isinstance(encoded[0:1] if not tokenizer.is_fast else encoded[0].ids, (dict, list))
    assert BatchEncoding({"a": [1, 2]}, tensor_type="np", prepend_batch_axis=True)["a"].tolist() == [[1, 2]]
    assert BatchEncoding({"a": [0.5]}, tensor_type="np")["a"].dtype == np.float64
    assert BatchEncoding({"a": [True]}, tensor_type="np")["a"].dtype == bool
    assert BatchEncoding({"a": 1}, n_sequences=2).n_sequences == 2


def test_batch_encodings_become_tensors():
    torch = pytest.importorskip("torch")
    encoded = BatchEncoding({"ids": [[1, 2]], "score": [0.5], "flag": [True], "done": torch.ones(1)}, tensor_type="pt")
    kinds = [column.dtype for column in encoded.values()]
    assert kinds == [torch.int64, torch.float32, torch.bool, torch.float32]
    encoded["names"] = ["a"]
    assert (
        encoded.to("cpu", non_blocking=True)["names"] == ["a"] and encoded.to(torch.float16)["score"].dtype == kinds[1]
    )
    with pytest.raises(TokenizerError, match="names"):
        encoded.convert_to_tensors("pt")


def test_pad_keeps_the_kind_of_its_input(tokenizer):
    torch = pytest.importorskip("torch")
    tokenizer.pad_token = "</s>"
    rows = [{"input_ids": torch.tensor([5, 6, 7]), "label": 1}, {"input_ids": torch.tensor([5]), "label": 0}]
    padded = tokenizer.pad(rows)
    assert isinstance(padded["input_ids"], torch.Tensor) and padded["label"].tolist() == [1, 0]
    assert padded["attention_mask"].sum(1).tolist() == [3, 1]
    assert isinstance(tokenizer.pad({"input_ids": np.array([[5, 6]])})["input_ids"], np.ndarray)
    assert isinstance(tokenizer.pad({"input_ids": [[5, 6], [5]]})["input_ids"], list)
    with pytest.raises(TokenizerError, match="label has 1 rows"):
        tokenizer.pad({"input_ids": [[5], [6]], "label": [1]})


def test_words_is_deprecated(sp_model):
    encoded = LlamaTokenizerFast(sp_model)("the llama")
    with pytest.warns(FutureWarning, match="word_ids"):
        assert encoded.words() == encoded.word_ids()
    assert encoded.encodings[0].words == encoded.word_ids()


def test_added_tokens_are_converted_like_in_configuration_files():
    token = AddedToken("<x>", lstrip=True)
    saved = LlamaTokenizer.convert_added_tokens({"a": [token]}, save=True)
    assert saved["a"][0]["__type"] == "AddedToken" and LlamaTokenizer.convert_added_tokens(saved) == {"a": [token]}
    assert "special" not in LlamaTokenizer.convert_added_tokens(token, save=True, add_type_field=False)


@pytest.mark.parametrize("legacy", [True, False])
def test_sampling_changes_the_pieces_but_not_the_text(sp_model, legacy):
    options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    tokenizer = LlamaTokenizer(sp_model, sp_model_kwargs=options, legacy=legacy)
    results = {tuple(tokenizer.encode("the llama learns simple tasks")) for _ in range(20)}
    assert len(results) > 1
    if legacy:
        assert {tokenizer.decode(ids, skip_special_tokens=True) for ids in results} == {"the llama learns simple tasks"}
    assert pickle.loads(pickle.dumps(tokenizer)).sp_model_kwargs == options


def test_uploads_use_the_saved_files(tokenizer, tmp_path, monkeypatch, caplog):
    from puna.tokenizer.files import config
    from puna.tokenizer.huggingface import interface

    uploads = []
    for module in (config, interface):
        monkeypatch.setattr(
            module, "upload_files", lambda folder, names, repo_id, **k: uploads.append((sorted(names), repo_id, k))
        )
    tokenizer.save_pretrained(tmp_path / "name", push_to_hub=False, token=None)
    assert uploads == []
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    tokenizer.save_pretrained(tmp_path / "name", push_to_hub=True, private=True, save_jinja_files=True)
    with pytest.warns(FutureWarning, match="its new name is token"):
        tokenizer.push_to_hub(
            "name", organization="owner", commit_message="m", use_temp_dir=True, use_auth_token="t", strange=1
        )
    (names, repository, options), (more, other, message) = uploads
    assert repository == "name" and options == {"commit_message": "Upload tokenizer", "private": True}
    assert {"tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"} <= set(names)
    assert other == "owner/name" and message == {"commit_message": "m", "token": "t"} and "strange" in caplog.text
    assert "tokenizer_config.json" in more
    assert type(tokenizer).from_pretrained(tmp_path / "name").chat_template == tokenizer.chat_template
