"""For every decoder of `tokenizers`, a stream returns the text of `Tokenizer.decode`, also after a prompt."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import (
    CTC,
    BPEDecoder,
    ByteFallback,
    ByteLevel,
    Fuse,
    Metaspace,
    Replace,
    Sequence,
    Strip,
    WordPiece,
)
from tokenizers.models import WordLevel

from puna.tokenizer import LlamaTokenizerFast, StreamDecoder
from puna.tokenizer.files.byte_level import BYTE_TO_CHARACTER
from tests.helpers.properties import settings
from tests.helpers.vocabularies import answer_after

TEXTS = [
    *("a", "ab", ".", ",", "'s", "n't", " ", "  ", " a ", "▁", "▁▁a", "▁a", "a▁b", "##", "##a", "a##", "</w>", "a</w>"),
    *("é", "漢字", "😀", "Ġa", "ĠĠ", "Ċ", "do not", " do not", "<pad>", "|", "x|y", "<0x", "<0x+1>", "<0x_1>", "a b"),
    *("A", "aba", "aab", "e\u0301", ""),
]
BYTES = [*"é€😀".encode(), 0x20, 0x41, 0xFF, 0x80]
VOCAB = list(dict.fromkeys([*TEXTS, *(f"<0x{b:02X}>" for b in BYTES), *(BYTE_TO_CHARACTER[b] for b in BYTES)]))
ADDED_TOKENS = [
    *(AddedToken(text, special=True) for text in ("<s>", "</s>", "<|im_end|>", "<0x41>")),
    *(AddedToken(text, special=False) for text in ("<plain>", "▁new", " new ")),
]
IDS = st.lists(st.integers(0, len(VOCAB) + len(ADDED_TOKENS) - 2), max_size=8)  # the added token <0x41> is in VOCAB too

LLAMA = [Replace("▁", " "), ByteFallback(), Fuse()]
DECODERS = {
    "none": None,
    "byte level": ByteLevel(),
    "byte level, fuse": Sequence([ByteLevel(), Fuse()]),
    "fuse, byte level": Sequence([Fuse(), ByteLevel()]),
    "byte level, strip": Sequence([ByteLevel(), Strip(" ", 2, 0)]),
    "byte level, replace": Sequence([ByteLevel(), Replace("aba", "-"), Replace(" ", "")]),
    "llama": Sequence([*LLAMA, Strip(" ", 1, 0)]),
    "llama without prefix space": Sequence(LLAMA),
    "llama in two sequences": Sequence([Sequence(LLAMA), Strip(" ", 1, 0)]),
    "byte fallback": ByteFallback(),
    "byte fallback, strip": Sequence([ByteFallback(), Strip("a", 1, 0)]),
    "fuse": Fuse(),
    "fuse, strip both": Sequence([Fuse(), Strip(" ", 1, 2)]),
    "strip": Strip(" ", 1, 0),
    "strip both": Strip("a", 1, 1),
    "metaspace": Metaspace(),
    "metaspace, first": Metaspace(prepend_scheme="first"),
    "metaspace, never": Metaspace(prepend_scheme="never"),
    "metaspace, byte fallback": Sequence([Metaspace(), ByteFallback(), Metaspace("a")]),
    "fuse, metaspace": Sequence([Fuse(), Metaspace()]),
    "wordpiece": WordPiece(),
    "wordpiece without cleanup": WordPiece("##", cleanup=False),
    "byte fallback, wordpiece": Sequence([ByteFallback(), WordPiece("a", cleanup=True)]),
    "bpe": BPEDecoder(),
    "bpe, fuse, strip": Sequence([BPEDecoder("a"), Fuse(), Strip(" ", 2, 1)]),
    "bpe, byte level": Sequence([BPEDecoder(), ByteLevel()]),
    "bpe, metaspace": Sequence([BPEDecoder(), Metaspace("a")]),
    "replace": Replace("ab", "a"),
    "replace a pattern": Replace(Regex("a+b?"), "-"),
    "fuse, replace": Sequence([Fuse(), Replace("aab", "b"), Replace("ab", "")]),
    "fuse, replace a pattern": Sequence([Fuse(), Replace(Regex("a+b?"), "-")]),
    "ctc": CTC(),
    "ctc, fuse, strip": Sequence([CTC(), Fuse(), Strip(" ", 1, 0)]),
}  # fmt: skip
WHOLE_SEQUENCE_DECODERS = {
    "fuse, byte level", "fuse, metaspace", "fuse, replace a pattern", "ctc", "ctc, fuse, strip",
}  # fmt: skip
"""Decoders that may return all text only at the end of a stream."""


def pipeline(name: str) -> Tokenizer:
    """Returns a pipeline of `tokenizers` with the vocabulary VOCAB and a decoder."""
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(VOCAB)}, unk_token="<s>"))
    for token in ADDED_TOKENS:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.decoder = DECODERS[name]
    return tokenizer


def tokenizer_with(name: str) -> LlamaTokenizerFast:
    """Returns puna's tokenizer for `pipeline(name)`."""
    return LlamaTokenizerFast(
        tokenizer_object=pipeline(name), literal=True, unk_token=None, bos_token="<s>", eos_token="</s>"
    )


def stream_pieces(tokenizer, ids: list[int], skip: bool, prompt: list[int]) -> list[str]:
    """Returns the texts that a stream returns for each id, and at its end."""
    decoder = StreamDecoder(tokenizer, skip, prompt)
    return [*(decoder.push(index) for index in ids), decoder.finish()]


@pytest.fixture(scope="module", params=DECODERS)
def tokenizer_and_decode(request):
    """A tokenizer, and the function that decodes with `tokenizers`."""
    reference = pipeline(request.param)

    def decode(ids: list[int], skip: bool) -> str:
        try:
            return reference.decode(ids, skip_special_tokens=skip)
        except BaseException as exc:  # tokenizers 0.23: Strip panics if `stop` exceeds the length of a token
            if "Strip" not in str(reference.decoder) or "index" not in str(exc):
                raise
            assume(False)
            raise

    return tokenizer_with(request.param), decode


@settings(max_examples=50)
@given(prompt=IDS, ids=IDS, skip=st.booleans())
@example(prompt=[], ids=[], skip=True)
def test_an_answer_is_the_decoded_text_after_the_text_of_the_prompt(tokenizer_and_decode, prompt, ids, skip):
    tokenizer, decode = tokenizer_and_decode
    full_text, prompt_text = decode(prompt + ids, skip), decode(prompt, skip)
    answer = answer_after(prompt_text, full_text)
    if full_text.startswith(prompt_text):
        assert answer == full_text.removeprefix(prompt_text)
    pieces = stream_pieces(tokenizer, ids, skip, prompt)
    assert "".join(pieces) == answer
    assert "".join(stream_pieces(tokenizer, prompt + ids, skip, [])) == full_text


@pytest.mark.parametrize("name", DECODERS)
def test_text_is_held_back_only_if_a_later_token_can_change_it(name):
    ids = [VOCAB.index(text) for text in ("a", "A", "漢字", "A", "A", "漢字", "A")]
    pieces = stream_pieces(tokenizer_with(name), ids, True, [])
    if name in WHOLE_SEQUENCE_DECODERS:
        assert not any(pieces[:-1]) and pieces[-1]
    else:
        assert all(pieces[3:-1])
