"""Calling a tokenizer: padding, truncation, columns and tensors. transformers 5.23 is the oracle for most columns."""

from __future__ import annotations

import enum
import random
import sys

import numpy as np
import pytest

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import TokenizerError
from puna.tokenizer import BatchEncoding
from tests.helpers.vocabularies import random_texts

TEXTS = [text for text in random_texts(40, seed=5) if text]


@pytest.fixture(scope="module")
def reference(byte_level_json):
    """The tokenizer of transformers for the same tokenizer.json."""
    tokenizer = pytest.importorskip("transformers").PreTrainedTokenizerFast.from_pretrained(byte_level_json)
    tokenizer.pad_token = "<plain>"
    return tokenizer


@pytest.fixture
def fast(byte_level_json):
    tokenizer = load_tokenizer(byte_level_json)
    tokenizer.pad_token = "<plain>"
    return tokenizer


COLUMNS = {
    "return_token_type_ids": True,
    "return_attention_mask": True,
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": "longest", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 20, "truncation": True},
        {"truncation": True, "max_length": 5},
        {"truncation": "longest_first", "max_length": 7, "padding": True},
        {"truncation": "longest_first", "max_length": 4, "padding": True, "add_special_tokens": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("paired", [False, True])
def test_columns_of_the_fast_tokenizer_equal_those_of_transformers(fast, reference, options, side, bos, paired):
    fast.padding_side = reference.padding_side = side
    fast.truncation_side = reference.truncation_side = "left" if bos else "right"
    fast.add_bos_token = bos
    reference.backend_tokenizer.post_processor = fast.backend_tokenizer.post_processor
    batch = [TEXTS, TEXTS[::-1]] if paired else [TEXTS]
    expected = reference(*batch, **options, **COLUMNS)
    result = fast(*batch, **options, **COLUMNS)
    assert result.keys() == expected.keys()
    for name, column in expected.items():
        assert [list(row) for row in result[name]] == [list(row) for row in column], name
    for index in (0, 3):
        assert result.tokens(index) == expected.tokens(index)
        assert result.word_ids(index) == expected.word_ids(index)
        assert result.sequence_ids(index) == expected.sequence_ids(index)


def test_character_token_and_word_lookups_equal_those_of_transformers(fast, reference):
    reference.backend_tokenizer.post_processor = fast.backend_tokenizer.post_processor
    text = "the llama 🦙 learns"
    result, expected = fast(text), reference(text)
    for char in range(len(text)):
        assert result.char_to_token(char) == expected.char_to_token(char)
    for token in range(len(result.input_ids)):
        assert result.token_to_chars(token) == tuple(expected.token_to_chars(token))
        assert result.token_to_word(token) == expected.token_to_word(token)
        assert result.token_to_sequence(0, token) == expected.token_to_sequence(0, token)
    for word in {w for w in result.word_ids() if w is not None}:
        assert tuple(result.word_to_tokens(word)) == tuple(expected.word_to_tokens(word))
    assert result.word_to_tokens(99) is None and result.char_to_token(10**6) is None


def test_offsets_shift_with_padding_and_truncation(fast):
    encoded = fast(["the llama learns", "a"], padding=True, return_offsets_mapping=True)
    assert encoded.char_to_token(1, 0) == len(encoded.input_ids[1]) - 1
    assert encoded.offset_mapping[1][0] == (0, 0)
    truncated = fast("the llama learns", truncation=True, max_length=2)
    assert truncated.char_to_token(len("the llama learns") - 1) is None


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_batches_are_returned_as_numpy_arrays(sp_model, cls):
    tokenizer = cls(sp_model)
    tokenizer.pad_token = "</s>"
    single = tokenizer("the llama", return_tensors="np")
    assert single["input_ids"].shape == (1, len(tokenizer.encode("the llama"))) and single.input_ids.dtype == np.int64
    batch = tokenizer(["the llama", "a"], padding=True, return_tensors="np", return_length=True)
    assert batch.input_ids.shape == batch.attention_mask.shape
    lengths = [len(tokenizer.encode(text)) for text in ("the llama", "a")]
    assert batch.length.tolist() == ([max(lengths)] * 2 if tokenizer.is_fast else lengths)  # as in transformers 4.34
    assert batch.attention_mask.sum(axis=1).tolist() == [len(tokenizer.encode(t)) for t in ("the llama", "a")]
    ragged = tokenizer(["the llama", "a"], return_tensors="np")["input_ids"]
    assert ragged.dtype == object and [len(row) for row in ragged] == lengths
    with pytest.raises(TokenizerError, match="'tf'"):
        tokenizer("a", return_tensors="tf")


def test_batches_are_returned_as_torch_tensors(fast):
    torch = pytest.importorskip("torch")
    encoded = fast(["the llama", "a"], padding=True, return_tensors="pt").to("cpu")
    assert isinstance(encoded, BatchEncoding) and encoded.input_ids.dtype == torch.int64
    assert fast.batch_decode(encoded.input_ids, skip_special_tokens=True)[1].endswith("a")
    assert fast.decode(encoded["input_ids"][0]) == fast.decode(encoded["input_ids"][0].tolist())
    with pytest.raises(TokenizerError, match="return_tensors='pt'"):
        fast("a").to("cpu")
    with pytest.raises(TokenizerError, match="padding=True"):
        fast(["the llama", "a"], return_tensors="pt")


def test_target_texts_become_labels(tokenizer):
    encoded = tokenizer("the", text_target="llama")
    assert encoded["labels"] == tokenizer("llama")["input_ids"]
    assert tokenizer(text_target="llama")["input_ids"] == encoded["labels"]
    with pytest.raises(TokenizerError, match="nothing to encode"):
        tokenizer()


def test_encode_equals_call(tokenizer):
    for text in TEXTS:
        assert tokenizer.encode(text) == tokenizer(text).input_ids == tokenizer([text])["input_ids"][0]
        assert tokenizer.encode(text, "pair") == tokenizer(text, "pair")["input_ids"]
    assert tokenizer([])["input_ids"] == []


def test_words_are_encoded_separately(tokenizer):
    words = ["the", "llama"]
    separate = [i for word in words for i in tokenizer.encode(word, add_special_tokens=False)]
    result = tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert result == separate
    assert tokenizer([words], is_split_into_words=True, add_special_tokens=False)["input_ids"] == [separate]


def test_pad_collates_rows_and_columns(tokenizer):
    rows = [tokenizer("the llama"), tokenizer("a")]
    padded = tokenizer.pad(rows, return_tensors="np")
    direct = tokenizer(["the llama", "a"], padding=True, return_tensors="np")
    assert (padded["input_ids"] == direct["input_ids"]).all()
    assert (padded["attention_mask"] == direct["attention_mask"]).all()
    columns = tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, padding="max_length", max_length=30)
    assert [len(row) for row in columns["input_ids"]] == [len(row) for row in columns["attention_mask"]] == [30, 30]
    one = tokenizer.pad({"input_ids": np.array([5, 6])}, padding="max_length", max_length=4)
    assert sum(one["attention_mask"]) == 2 and len(one["input_ids"]) == 4


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_an_empty_text_is_padded_alone_and_in_a_batch(sp_model, cls):
    tokenizer = cls(str(sp_model))
    tokenizer.pad_token = "</s>"
    for text, ids in (("", [2, 2, 2]), ([""], [[2, 2, 2]])):
        result = tokenizer(text, add_special_tokens=False, padding="max_length", max_length=3)
        assert result["input_ids"] == ids


def test_the_error_of_pad_names_the_column(tokenizer):
    rows = [{**tokenizer(text), "labels": tokenizer.encode(text)} for text in ("the llama", "a")]
    assert [len(row) for row in tokenizer.pad(rows)["labels"]] == [len(row["labels"]) for row in rows]
    with pytest.raises(TokenizerError, match="labels: pad fills only input_ids"):
        tokenizer.pad(rows, return_tensors="np")


def test_padding_side_is_an_argument(tokenizer):
    for side in ("left", "right"):
        padded = tokenizer("the llama", padding="max_length", max_length=40, truncation=True, padding_side=side)
        mask = padded["attention_mask"]
        assert mask == sorted(mask, reverse=side == "right") and 0 in mask
        assert tokenizer.pad(tokenizer("the llama"), "max_length", 40, padding_side=side)["attention_mask"] == mask
        ids = tokenizer.encode("the llama", padding="max_length", max_length=40, truncation=True, padding_side=side)
        assert ids == padded["input_ids"]
    with pytest.raises(TokenizerError, match="padding_side='up'"):
        tokenizer("a", padding_side="up")


def test_a_list_of_pairs_equals_two_lists(tokenizer):
    assert tokenizer([("a", "b"), ("the", "llama")]).data == tokenizer(["a", "the"], ["b", "llama"]).data
    assert tokenizer([["a", "b"], "the"]).data == tokenizer([("a", "b"), "the"]).data
    assert tokenizer([("a", "b"), "the"])["input_ids"][1] == tokenizer.encode("the")
    with pytest.raises(TokenizerError, match="has 3 items"):
        tokenizer([("a", "b", "c")])


def test_vocab_equals_get_vocab(tokenizer):
    assert tokenizer.vocab == tokenizer.get_vocab()


def test_the_error_without_a_padding_token_says_how_to_add_one(sp_model):
    tokenizer = LlamaTokenizer(sp_model)
    with pytest.raises(TokenizerError, match=r"add_special_tokens\(\{'pad_token'"):
        tokenizer(["a", "the llama"], padding=True)
    assert tokenizer.add_special_tokens({"pad_token": "<pad>"}) == 1
    assert tokenizer.pad_token_id == 420
    assert tokenizer(["a", "the llama"], padding=True)["attention_mask"][0][-1] == 0
    tokenizer.pad_token_id = 2
    assert tokenizer.pad_token == "</s>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "sideways"}, "padding='sideways'"),
        ({"truncation": "half"}, "truncation='half'"),
        ({"max_length": 0, "truncation": True}, "max_length=0"),
        ({"max_length": 10, "truncation": True, "padding": True, "pad_to_multiple_of": 4}, "pad_to_multiple_of=4"),
    ],
)
def test_invalid_options_are_refused(tokenizer, options, message):
    with pytest.raises(TokenizerError, match=message):
        tokenizer("the llama", "learns", **options)


def test_truncation_that_cannot_reach_the_length_is_reported(tokenizer, caplog):
    options = {"max_length": 1, "truncation": "only_second"}
    if tokenizer.is_fast:
        with pytest.raises(TokenizerError, match="raise max_length"):
            tokenizer("the llama", "learns", **options)
    else:  # as in transformers, which logs an error and does not truncate
        assert tokenizer("the llama", "learns", **options).data == tokenizer("the llama", "learns").data
        assert "is not truncated" in caplog.text


class Strategy(str, enum.Enum):
    """A string enumeration, like PaddingStrategy and TruncationStrategy of transformers."""

    MAX_LENGTH = "max_length"
    ONLY_FIRST = "only_first"
    NO_PADDING = "do_not_pad"
    NO_TRUNCATION = "do_not_truncate"


def test_strategies_can_be_enumerations(tokenizer):
    padded = tokenizer("a", padding=Strategy.MAX_LENGTH, max_length=9, truncation=Strategy.NO_TRUNCATION)
    assert len(padded["input_ids"]) == 9
    truncated = tokenizer(
        "the llama", "learns", truncation=Strategy.ONLY_FIRST, max_length=7, padding=Strategy.NO_PADDING
    )
    expected = tokenizer("the llama", "learns", truncation="only_first", max_length=7)
    assert truncated["input_ids"] == expected["input_ids"]


def test_truncation_without_a_limit_is_logged_once(tokenizer, caplog):
    tokenizer.deprecation_warnings.clear()
    assert tokenizer("the llama", truncation=True, verbose=False)["input_ids"] == tokenizer.encode("the llama")
    assert caplog.text == ""
    for _ in range(2):
        assert tokenizer("the llama", truncation=True)["input_ids"] == tokenizer.encode("the llama")
        assert len(tokenizer("the llama", max_length=2)["input_ids"]) == 2
    assert caplog.text.count("no maximum is known") == 1 and caplog.text.count("pass truncation=True") == 1


def test_model_max_length_limits_truncation(sp_model):
    tokenizer = LlamaTokenizer(sp_model, model_max_length=4)
    assert len(tokenizer.encode("the llama learns tasks", truncation=True)) == 4
    assert len(tokenizer.encode("the llama learns tasks")) > 4


@pytest.mark.parametrize("text", [5, None, b"bytes", 1.5, {"a": 1}, ["ok", 5], [["nested"]]])
def test_inputs_that_are_not_text_are_refused(tokenizer, text):
    with pytest.raises(TokenizerError):
        tokenizer(text)


def test_the_error_names_a_lone_surrogate(tokenizer):
    with pytest.raises(TokenizerError, match=r"U\+D800.*replace"):
        tokenizer.encode("a\ud800b")


@pytest.mark.parametrize("ids", [[-1], [10**6], [2**70], "text", [1.5], [[1], [-2]], None, [None]])
def test_values_that_are_not_ids_are_refused(tokenizer, ids):
    with pytest.raises(TokenizerError):
        tokenizer.decode(ids)


def test_ids_may_be_numbers_or_arrays(tokenizer):
    ids = tokenizer.encode("the llama")
    assert tokenizer.decode(ids[-1]) == tokenizer.decode([ids[-1]]) == tokenizer.decode(np.array([ids[-1]]))
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(tuple(np.int64(i) for i in ids)) == tokenizer.decode(ids)
    assert tokenizer.batch_decode([ids, ids]) == tokenizer.decode([ids, ids]) == [tokenizer.decode(ids)] * 2


def test_special_tokens_are_listed_with_their_ids(tokenizer):
    assert tokenizer.all_special_ids == tokenizer.convert_tokens_to_ids(tokenizer.all_special_tokens)
    assert "<extra>" in tokenizer.additional_special_tokens
    assert tokenizer.additional_special_tokens_ids == [tokenizer.convert_tokens_to_ids("<extra>")]
    assert tokenizer.added_tokens_decoder[tokenizer.additional_special_tokens_ids[0]].special
    assert tokenizer.get_vocab()["<new>"] == tokenizer.get_added_vocab()["<new>"]
    assert len(tokenizer) == len(tokenizer.get_vocab())
    with pytest.raises(TokenizerError, match="'best_token'"):
        tokenizer.add_special_tokens({"best_token": "x"})
    with pytest.raises(TokenizerError, match="empty"):
        tokenizer.add_tokens([""])


def test_the_slow_tokenizer_refuses_offsets_and_word_ids(sp_model):
    encoded = LlamaTokenizer(sp_model)("the llama")
    assert encoded.encodings is None and not encoded.is_fast
    for use in (encoded.tokens, encoded.word_ids, lambda: encoded.char_to_token(0)):
        with pytest.raises(TokenizerError, match="fast"):
            use()
    with pytest.raises(TokenizerError, match="LlamaTokenizerFast"):
        LlamaTokenizer(sp_model)("a", return_offsets_mapping=True)


def test_threads_can_share_a_tokenizer(fast):
    from concurrent.futures import ThreadPoolExecutor

    texts = random_texts(200, seed=6)
    expected = [fast(text, truncation=True, max_length=5)["input_ids"] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(fast, text, truncation=True, max_length=5) for text in texts]
        random.Random(0).shuffle(texts)
        splits = [pool.submit(fast, text, split_special_tokens=True) for text in texts]
    assert [job.result()["input_ids"] for job in jobs] == expected
    assert all(isinstance(job.result(), BatchEncoding) for job in splits)


def test_each_class_imports_only_its_own_library():
    """LlamaTokenizer imports `sentencepiece`, LlamaTokenizerFast `tokenizers`; neither imports Jinja or PyTorch."""
    import subprocess

    for name, absent in (("LlamaTokenizer", "tokenizers"), ("LlamaTokenizerFast", "sentencepiece")):
        code = (
            f"import sys; from puna.tokenizer import {name}; "
            f"print([m for m in ({absent!r}, 'jinja2', 'torch', 'transformers') if m in sys.modules])"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("options", [{"max_length": 10**12}, {"max_length": 8, "pad_to_multiple_of": 10**30}])
def test_padding_beyond_the_limit_is_refused(tokenizer, options):
    with pytest.raises(TokenizerError, match="the limit is 16777216"):
        tokenizer(["hi"], padding="max_length", truncation=False, **options)
