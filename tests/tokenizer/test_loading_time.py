"""Loading a vocabulary of 32,000 tokens takes less than 0.2 s of processor time, and one of 128,000 less than 0.6 s."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable

import pytest

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.tokenizer.files.byte_level import BYTE_TO_CHARACTER
from puna.tokenizer.sentencepiece.proto import PieceType, write_model


def words(count: int) -> list[str]:
    """Returns different words of one to four letters; all prefixes of a word precede it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tuples = itertools.chain.from_iterable(itertools.product(letters, repeat=length) for length in (1, 2, 3, 4))
    return ["".join(item) for item in itertools.islice(tuples, count)]


def processor_seconds(load: Callable[[], object]) -> float:
    """Returns the processor time of the fastest of three calls."""

    def once() -> float:
        start = time.process_time()
        load()
        return time.process_time() - start

    load()
    return min(once() for _ in range(3))


@pytest.mark.timing
@pytest.mark.slow
def test_32000_pieces_load_fast(tmp_path):
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*special, "▁", *words(31_740)]
    kinds = [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL, *[PieceType.BYTE] * 256]
    types = [*map(int, kinds), *[int(PieceType.NORMAL)] * (len(pieces) - len(kinds))]
    model = tmp_path / "tokenizer.model"
    settings = {"add_dummy_prefix": True, "remove_extra_whitespaces": False, "ids": {"unk": 0, "bos": 1, "eos": 2}}
    scores = [-float(index) for index in range(len(pieces))]
    model.write_bytes(write_model(pieces, scores, types, **settings))
    assert processor_seconds(lambda: LlamaTokenizer(model, legacy=True)) < 0.2
    assert processor_seconds(lambda: LlamaTokenizerFast(model)) < 0.25  # also converts the model
    LlamaTokenizerFast(model).save_pretrained(tmp_path)
    assert processor_seconds(lambda: LlamaTokenizerFast.from_pretrained(tmp_path)) < 0.2


@pytest.mark.timing
@pytest.mark.slow
def test_128000_tokens_load_fast(tmp_path):
    tokens = [*dict.fromkeys([*BYTE_TO_CHARACTER.values(), *words(127_744)])]
    merges = [f"{word[:-1]} {word[-1]}" for word in tokens if len(word) > 1]
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges}
    pipeline = {"version": "1.0", "model": model, "decoder": {"type": "ByteLevel", "add_prefix_space": False,
                "trim_offsets": True, "use_regex": False}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline))
    assert processor_seconds(lambda: LlamaTokenizerFast.from_pretrained(tmp_path)) < 0.6


@pytest.mark.timing
@pytest.mark.slow
def test_tiktoken_files_of_128000_tokens_load_fast(tmp_path):
    tokens = [*(bytes((byte,)) for byte in range(256)), *(word.encode() for word in words(127_770) if len(word) > 1)]
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    assert processor_seconds(lambda: load_tokenizer(tmp_path / "tokenizer.model")) < 0.6
