"""The joined texts of a stream equal the decoded text, and none of them splits a character."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import TokenizerError
from puna.tokenizer import StreamDecoder
from puna.tokenizer.files.byte_level import BYTE_TO_CHARACTER
from tests.helpers.properties import settings
from tests.helpers.vocabularies import SNIPPETS, answer_after, random_texts


def streamed_texts(tokenizer, ids: list[int], skip: bool, prompt: Sequence[int] = ()) -> list[str]:
    """Returns the texts that a stream returns for each id, and at its end."""
    decoder = StreamDecoder(tokenizer, skip, prompt)
    return [*(decoder.push(index) for index in ids), decoder.finish()]


def id_sequences(size: int) -> st.SearchStrategy[list[int]]:
    """Generates id sequences in which special, byte and added tokens are frequent."""
    ids = st.one_of(st.integers(0, size - 1), st.integers(0, 2), st.integers(3, 258), st.integers(size - 4, size - 1))
    return st.lists(ids, max_size=16)


@settings(max_examples=150)
@given(data=st.data(), skip=st.booleans())
@pytest.mark.slow
def test_streamed_random_ids_equal_the_decoded_text(tokenizer, data, skip):
    ids = data.draw(id_sequences(len(tokenizer)))
    assert "".join(streamed_texts(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), skip=st.booleans())
def test_streamed_text_is_complete_and_splits_no_character(tokenizer, text, skip):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed_texts(tokenizer, ids, skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


def test_an_emoji_of_several_tokens_is_streamed_without_replacement_characters(tokenizer):
    ids = tokenizer.encode("a 🏳️‍🌈 b", add_special_tokens=False)
    assert len(ids) > 8
    pieces = streamed_texts(tokenizer, ids, True)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "🏳️‍🌈" in "".join(pieces) and "\ufffd" not in "".join(pieces)


def test_words_are_returned_with_their_token(tokenizer):
    """Text that no later token can change is returned with its token."""
    ids = tokenizer.encode("the llama can learn simple tasks", add_special_tokens=False)
    pieces = streamed_texts(tokenizer, ids, True)
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
        assert "".join(streamed_texts(tokenizer, sequence, True)) == text
        assert "\ufffd" in text


CLEAN_UP_TEXTS = ["x != y ; cd .. && ls . | wc ' abc ' n't", "a .", "a , b", "don 't we 're"]


@pytest.mark.parametrize("text", CLEAN_UP_TEXTS)
@pytest.mark.parametrize("clean_up", [False, True])
def test_streams_never_clean_up(tokenizer, text, clean_up):
    tokenizer = copy(tokenizer)
    tokenizer.clean_up_tokenization_spaces = clean_up
    ids = tokenizer.encode(text, add_special_tokens=False)
    unchanged = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(streamed_texts(tokenizer, ids, False)) == unchanged and text in unchanged
    assert tokenizer.decode(ids) == unchanged  # the attribute has no effect on BPE, as in transformers 5.23
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == tokenizer.clean_up_tokenization(unchanged)


TEXT = st.lists(st.sampled_from([*SNIPPETS, *CLEAN_UP_TEXTS]), max_size=4).map("".join)


@settings(max_examples=120)
@given(data=st.data(), text=TEXT, skip=st.booleans(), clean_up=st.booleans())
def test_an_answer_is_the_decoded_text_after_the_text_of_its_prompt(tokenizer, clean_up, data, text, skip):
    """Prompts and answers are ids of texts or random ids, among them incomplete characters and special tokens."""
    tokenizer = copy(tokenizer)
    tokenizer.clean_up_tokenization_spaces = clean_up
    encoded = tokenizer.encode(text, add_special_tokens=False)
    at = data.draw(st.integers(0, len(encoded)))
    prompt = data.draw(st.sampled_from([[], [1]])) + data.draw(id_sequences(len(tokenizer))) + encoded[:at]
    ids = encoded[at:] + data.draw(id_sequences(len(tokenizer)))

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    full_text, prompt_text = decode(prompt + ids), decode(prompt)
    answer = answer_after(prompt_text, full_text)
    pieces = streamed_texts(tokenizer, ids, skip, prompt)
    assert "".join(pieces) == answer
    has_byte_tokens = any(token.startswith("<0x") for token in tokenizer.convert_ids_to_tokens(prompt))
    if (
        "\ufffd" not in prompt_text
        and not has_byte_tokens
        and (skip or getattr(tokenizer, "behaviour", None) != "hf-legacy")
    ):
        assert answer == full_text.removeprefix(prompt_text) and full_text.startswith(prompt_text)
    if "\ufffd" not in full_text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_an_answer_completes_belongs_to_the_answer(tokenizer):
    vocab = tokenizer.get_vocab()
    spelled = "<0x{:02X}>".format if "<0x80>" in vocab else BYTE_TO_CHARACTER.__getitem__
    first, *rest = (vocab[spelled(byte)] for byte in "€".encode())
    a = tokenizer.convert_tokens_to_ids("a")
    assert "".join(streamed_texts(tokenizer, [*rest, a], True, [a, first])) == "€a"
    assert "".join(streamed_texts(tokenizer, rest[1:], True, [a, first, rest[0]])) == "€"
    assert "".join(streamed_texts(tokenizer, [a, a], True, [a, first])) == "aa"
    assert "".join(streamed_texts(tokenizer, [], True, [a, first])) == ""


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (-1, "token id -1"), (10**6, "token id 1000000"), (2**40, f"token id {2**40}"), (10**30, f"token id {10**30}"),
        pytest.param(10**5000, "token id a whole number of more than 80 digits", id="5,000 digits"),
        (1.5, "integer|float"), ("a", "integer|str"),
    ],
)  # fmt: skip
def test_ids_outside_the_vocabulary_are_refused(tokenizer, index, words):
    for decode in (StreamDecoder(tokenizer).push, tokenizer.decode, tokenizer.convert_ids_to_tokens):
        with pytest.raises(TokenizerError, match=words):
            decode(index)


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
