"""The joined pieces of a stream equal the decoded text, and no piece splits a character."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from puna.errors import TokenizerError
from puna.tokenizer import LlamaTokenizerFast, StreamDecoder, load_tokenizer
from puna.tokenizer.files.byte_level import BYTE_TO_CHARACTER
from puna.tokenizer.streams import clean_up
from tests.helpers.vocabularies import random_texts


def streamed(tokenizer, ids: list[int], skip: bool) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    return [*(decoder.push(index) for index in ids), decoder.finish()]


def id_sequences(size: int) -> st.SearchStrategy[list[int]]:
    """Generates id sequences in which special, byte and added tokens are frequent."""
    ids = st.one_of(st.integers(0, size - 1), st.integers(0, 2), st.integers(3, 258), st.integers(size - 4, size - 1))
    return st.lists(ids, max_size=16)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), skip=st.booleans())
@pytest.mark.slow
def test_streamed_random_ids_equal_the_decoded_text(tokenizer, data, skip):
    ids = data.draw(id_sequences(len(tokenizer)))
    assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), skip=st.booleans())
def test_streamed_text_is_complete_and_splits_no_character(tokenizer, text, skip):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(tokenizer, ids, skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


def test_an_emoji_of_several_tokens_is_returned_once(tokenizer):
    ids = tokenizer.encode("a 🏳️‍🌈 b", add_special_tokens=False)
    assert len(ids) > 8
    pieces = streamed(tokenizer, ids, True)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "🏳️‍🌈" in "".join(pieces) and "\ufffd" not in "".join(pieces)


def test_words_are_returned_with_their_token(tokenizer):
    """Text that no later token can change is returned with its token."""
    ids = tokenizer.encode("the llama can learn simple tasks", add_special_tokens=False)
    pieces = streamed(tokenizer, ids, True)
    assert all(pieces[1:-1]) and pieces[-1] == ""


@pytest.mark.parametrize(
    "invalid", [[0xF0, 0x9F], [0x80], [0xC3, 0x28], [0xE2, 0x82, 0xF0], [0xED, 0xA0, 0x80], [0xFF, 0xFE]]
)
def test_invalid_bytes_are_streamed_as_decoded(tokenizer, invalid):
    vocab = tokenizer.get_vocab()
    spelled = "<0x{:02X}>".format if "<0x80>" in vocab else BYTE_TO_CHARACTER.__getitem__
    ids = [vocab[spelled(byte)] for byte in invalid]
    for sequence in (ids, [*ids, 300], [300, *ids, 300], [*ids, 1, *ids]):
        text = tokenizer.decode(sequence, skip_special_tokens=True)
        assert "".join(streamed(tokenizer, sequence, True)) == text
        assert "\ufffd" in text


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*" .,!?'nsmtvredx", "  ", " ' ", " n't", "é"]), max_size=14))
def test_streams_clean_up_text(byte_level_json, pieces):
    tokenizer = load_tokenizer(byte_level_json, clean_up_tokenization_spaces=True)
    ids = tokenizer.encode("".join(pieces), add_special_tokens=False)
    assert tokenizer.decode(ids) == clean_up("".join(pieces))
    assert "".join(streamed(tokenizer, ids, True)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_text_of_an_unknown_decoder_is_held_until_the_end():
    pipeline = Tokenizer(BPE({"ab": 0, "c": 1, "d": 2}, []))
    pipeline.decoder = decoders.Metaspace()
    tokenizer = LlamaTokenizerFast(
        tokenizer_object=pipeline, literal=True, unk_token=None, bos_token=None, eos_token=None
    )
    assert streamed(tokenizer, [0, 1, 2], True) == ["", "", "", "abcd"]


@pytest.mark.parametrize("index", [-1, 10**6, 2**40])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, index):
    with pytest.raises(TokenizerError, match=str(index)):
        StreamDecoder(tokenizer).push(index)


@pytest.mark.timing
def test_cost_per_token_does_not_grow_with_the_text(tokenizer):
    ids = [index for text in random_texts(400) for index in tokenizer.encode(text, add_special_tokens=False)]
    decoder = StreamDecoder(tokenizer)
    costs = []
    for _ in range(2):
        start = time.process_time()
        for index in ids[:2000]:
            decoder.push(index)
        costs.append(time.process_time() - start)
        for _ in range(4):
            for index in ids:
                decoder.push(index)
    assert costs[1] < 4 * costs[0] + 0.02
