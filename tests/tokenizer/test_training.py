"""Tokenizers trained on other texts, and settings of the pipeline: equal to those of transformers 5.23."""

from __future__ import annotations

import pytest

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import TokenizerError
from puna.tokenizer import AddedToken
from tests.helpers.vocabularies import CORPUS, random_texts


@pytest.fixture
def pair(sp_model, byte_level_json, tmp_path, request):
    """A tokenizer, and the tokenizer of transformers for the same tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    tokenizer = LlamaTokenizerFast(sp_model) if request.param == "sp" else load_tokenizer(byte_level_json)
    tokenizer.save_pretrained(tmp_path)
    return tokenizer, transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)


@pytest.mark.parametrize("pair", ["sp", "byte-level"], indirect=True)
def test_trained_tokenizers_equal_those_of_transformers(pair):
    ours, reference = pair
    options = {"new_special_tokens": ["<new>"], "show_progress": False, "length": 2 * len(CORPUS)}
    trained = ours.train_new_from_iterator(CORPUS * 2, 350, **options)
    expected = reference.train_new_from_iterator(CORPUS * 2, 350, **options)
    assert type(trained) is type(ours) and len(trained) == 350
    assert trained.get_vocab() == expected.backend_tokenizer.get_vocab(with_added_tokens=False)
    for text in [*random_texts(50, seed=8), f"a{ours.bos_token}<new>b"]:
        assert trained.encode(text) == expected.encode(text)
    assert trained.bos_token == ours.bos_token and "<new>" in trained.additional_special_tokens
    assert trained.padding_side == ours.padding_side


@pytest.mark.parametrize("pair", ["sp", "byte-level"], indirect=True)
def test_special_tokens_can_be_renamed(pair):
    ours, _ = pair
    names = {ours.bos_token: "<begin>"}
    trained = ours.train_new_from_iterator(CORPUS, 350, special_tokens_map=names, show_progress=False)
    assert trained.bos_token == "<begin>" and ours.bos_token not in trained.get_vocab()
    assert trained.encode("a<begin>")[-1] == trained.bos_token_id and len(trained) == 350
    assert (trained.encode("")[:1] == [trained.bos_token_id]) is bool(ours.encode(""))


def test_a_model_that_cannot_be_trained_is_refused(byte_level_json, monkeypatch):
    tokenizer = load_tokenizer(byte_level_json)
    monkeypatch.setattr("puna.tokenizer.huggingface.training._TRAINERS", {})
    with pytest.raises(TokenizerError, match="type BPE cannot be trained"):
        tokenizer.train_new_from_iterator(["a"], 300)


def test_settings_of_the_pipeline_end_with_the_next_call(sp_model):
    tokenizer = LlamaTokenizerFast(sp_model, pad_token="</s>")
    expected = tokenizer(CORPUS[0])["input_ids"]
    tokenizer.set_truncation_and_padding("max_length", "longest_first", 4, 1, None)
    assert tokenizer.backend_tokenizer.encode(CORPUS[0]).ids == expected[:4]
    assert tokenizer.backend_tokenizer.encode("").ids == [2, 2, 2, 1]
    assert tokenizer(CORPUS[0])["input_ids"] == expected
    assert tokenizer.backend_tokenizer.truncation is None and tokenizer.backend_tokenizer.padding is None
    with pytest.raises(TokenizerError, match="set pad_token"):
        LlamaTokenizerFast(sp_model).set_truncation_and_padding("longest", "do_not_truncate", 4, 0, None)


def test_the_slow_class_is_imported_when_it_is_read():
    assert LlamaTokenizerFast.slow_tokenizer_class is LlamaTokenizer
    assert LlamaTokenizer.slow_tokenizer_class is None


def test_normalized_follows_special_unless_it_is_given():
    """The rule of the library tokenizers."""
    tokenizers = pytest.importorskip("tokenizers")
    for arguments in ({}, {"special": True}, {"normalized": True, "special": True}, {"normalized": False}):
        ours, reference = AddedToken("<x>", **arguments), tokenizers.AddedToken("<x>", **arguments)
        assert ours == reference and ours.normalized is reference.normalized and repr(ours) == repr(reference)
        assert ours.__getstate__() == reference.__getstate__()
    assert not AddedToken("<x>").with_flags(special=True).normalized
    assert AddedToken("<x>", normalized=True).with_flags(special=True).normalized
