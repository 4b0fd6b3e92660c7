"""Loading a vocabulary takes at most a few times as long as reading and sorting 128,000 tokens in Python.

Processors differ in speed, and other programs slow them down. Both affect the work that loading is compared with as
well, so these tests need no idle machine. Each limit is at least twice the ratio on a server of 2021, where reading and
sorting takes 0.4 s, also while it runs a dozen other programs.
"""

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


def processor_seconds(call: Callable[[], object]) -> float:
    """Returns the processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def read_and_sort() -> None:
    """Reads 128,000 tokens from JSON, sorts them and joins each with its successor."""
    tokens = json.loads(json.dumps({word: index for index, word in enumerate(words(128_000))}))
    ordered = sorted(tokens, key=lambda token: token[::-1])
    assert len({f"{first} {second}" for first, second in itertools.pairwise(ordered)}) == 127_999


def assert_time(load: Callable[[], object], limit: float) -> None:
    """Asserts that the fastest of up to four calls takes less than `limit` times the time of `read_and_sort`."""
    times: list[tuple[float, float]] = []
    for _ in range(4):
        times.append((processor_seconds(load), processor_seconds(read_and_sort)))
        ratio = min(time for time, _ in times) / min(time for _, time in times)
        if ratio < limit:
            return
    pytest.fail(f"loading takes {ratio:.2f} times the time of reading and sorting; the limit is {limit}")


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
    assert_time(lambda: LlamaTokenizer(model, legacy=True), 0.4)
    assert_time(lambda: LlamaTokenizerFast(model), 2)  # also converts the model
    LlamaTokenizerFast(model).save_pretrained(tmp_path)
    assert_time(lambda: LlamaTokenizerFast.from_pretrained(tmp_path), 0.8)


@pytest.mark.slow
def test_128000_tokens_load_fast(tmp_path):
    tokens = [*dict.fromkeys([*BYTE_TO_CHARACTER.values(), *words(127_744)])]
    merges = [f"{word[:-1]} {word[-1]}" for word in tokens if len(word) > 1]
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges}
    pipeline = {"version": "1.0", "model": model, "decoder": {"type": "ByteLevel", "add_prefix_space": False,
                "trim_offsets": True, "use_regex": False}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline))
    assert_time(lambda: LlamaTokenizerFast.from_pretrained(tmp_path), 3)


@pytest.mark.slow
def test_tiktoken_files_of_128000_tokens_load_fast(tmp_path):
    tokens = [*(bytes((byte,)) for byte in range(256)), *(word.encode() for word in words(127_770) if len(word) > 1)]
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    assert_time(lambda: load_tokenizer(tmp_path / "tokenizer.model"), 5)
