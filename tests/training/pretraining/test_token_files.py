"""Tokens of texts in files: compared with the encoding of the complete text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from puna.errors import DataError
from puna.files import text_files
from puna.training.pretraining.token_files import prepare_tokens
from puna.training.pretraining.windows import TokenWindows
from puna.training.tokenizer.train import train_tokenizer

WORDS = ["llama", "grassland", "wind.", "condor", "the", "a", "of,", "river", "1987", "don't", "Zoë", "sees", "green!"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    choose = random.Random(3)
    lines = (" " * choose.randrange(3) + " ".join(choose.choices(WORDS, k=choose.randrange(9))) for _ in range(500))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[("llama2", 360), ("llama3", 330), ("char", None)], ids=lambda item: item[0])
def tokenizer(request, text):
    return train_tokenizer([text], None, *request.param)


def all_tokens(tokens):
    return np.concatenate([np.asarray(shard) for shard in tokens.shards]).tolist()


@pytest.mark.parametrize("block", [300, 2**20])
def test_tokens_are_those_of_the_complete_text(text, tokenizer, tmp_path, monkeypatch, block):
    monkeypatch.setattr(text_files.text_blocks, "__defaults__", (block,))
    tokens = prepare_tokens([text, text], tokenizer, tmp_path, shard_tokens=700)
    one = [*tokenizer.encode(text.read_text(), add_special_tokens=False), tokenizer.eos_token_id]
    assert all_tokens(tokens) == one * 2
    assert len(tokens.shards) == -(-2 * len(one) // 700) and {len(shard) for shard in tokens.shards[:-1]} == {700}
    assert tokens.read(690, 25).tolist() == (one * 2)[690:715]


def test_large_vocabularies_have_four_bytes(text, tmp_path, monkeypatch):
    tokenizer = train_tokenizer([text], None, "char")
    assert prepare_tokens([text], tokenizer, tmp_path / "two").shards[0].dtype == np.uint16
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 2**16 + 1)
    assert prepare_tokens([text], tokenizer, tmp_path / "four").shards[0].dtype == np.uint32


def test_tokens_are_reused_until_something_changes(text, tmp_path, monkeypatch):
    copy = tmp_path / "copy.txt"
    copy.write_text(text.read_text())
    tokenizer = train_tokenizer([text], None, "char")
    calls = []
    encode = type(tokenizer).encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda *args, **kw: calls.append(1) or encode(*args, **kw))

    def is_encoded_again(used=tokenizer, paths=(copy,)):
        calls.clear()
        before = prepare_tokens(paths, used, tmp_path / "tokens")
        assert before.total == len(all_tokens(before))
        return bool(calls)

    assert is_encoded_again() and not is_encoded_again()
    copy.write_text(text.read_text() + "a")
    assert is_encoded_again() and not is_encoded_again()
    assert is_encoded_again(train_tokenizer([text], None, "char", byte_fallback=True))
    assert is_encoded_again()
    shard = tmp_path / "tokens" / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\1\0")  # damaged: the hash differs
    assert is_encoded_again() and not is_encoded_again()
    shard.unlink()
    assert is_encoded_again() and not is_encoded_again()
    (tmp_path / "tokens" / "tokens.json").write_text("{")
    assert is_encoded_again() and not is_encoded_again()


def test_an_interrupted_preparation_leaves_nothing_that_is_used(text, tmp_path, monkeypatch):
    tokenizer = train_tokenizer([text], None, "char")
    with pytest.raises(KeyboardInterrupt):
        prepare_tokens([text], tokenizer, tmp_path, interrupt)
    assert not list(tmp_path.iterdir())


def interrupt(done, total):
    raise KeyboardInterrupt


def test_progress_counts_the_bytes_of_the_texts(text, tmp_path):
    seen = []
    prepare_tokens([text, text], train_tokenizer([text], None, "char"), tmp_path, lambda *item: seen.append(item))
    size = text.stat().st_size
    assert seen[-1] == (2 * size, 2 * size) and seen == sorted(seen)


def test_empty_texts_are_an_error(tmp_path, text):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        prepare_tokens([tmp_path / "empty.txt"], train_tokenizer([text], None, "char"), tmp_path / "tokens")


def test_windows_predict_every_token_once(text, tmp_path):
    tokens = prepare_tokens([text], train_tokenizer([text], None, "char"), tmp_path)
    windows, everything = TokenWindows(tokens, 50), all_tokens(tokens)
    assert len(windows) == (len(everything) - 1) // 50
    predicted = [token for index in range(len(windows)) for token in windows[index].ids[1:].tolist()]
    assert predicted == everything[1 : len(windows) * 50 + 1]
    for index in (0, 7):
        assert windows[index].ids.tolist() == everything[index * 50 : index * 50 + 51]
        assert windows[index].weights.tolist() == [0.0] + [1.0] * 50
    with_bos = TokenWindows(tokens, 50, bos=1)[7]
    assert with_bos.ids.tolist() == [1, *everything[351:401]]
    assert TokenWindows(tokens, 50).digest() != TokenWindows(tokens, 51).digest()


def test_a_text_that_is_shorter_than_a_window_is_an_error(text, tmp_path):
    tokens = prepare_tokens([text], train_tokenizer([text], None, "char"), tmp_path)
    with pytest.raises(DataError, match=rf"have {tokens.total} tokens, but a window has 100001; .* smaller max_length"):
        TokenWindows(tokens, 100_000)
