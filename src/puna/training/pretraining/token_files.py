"""The tokens of texts in files that are mapped into memory, and reused while texts and tokenizer are unchanged.

    FOLDER/tokens.json       written last: key, type, texts; name, tokens and SHA-256 of each shard
    FOLDER/tokens-00000.bin  a shard: tokens as little-endian uint16, or uint32 if the vocabulary needs it

All files are written atomically, and memory does not grow with the texts.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import DataError
from puna.files import atomic_write, make_folder, read_json, reading_errors, write_json
from puna.files.text_files import text_blocks
from puna.tokenizer import PreTrainedTokenizerBase

_INDEX = "tokens.json"

_VERSION = 1
"""Version of the layout; other versions are written again."""

_SHARD = 2**27
"""Tokens of a shard: 256 or 512 MB."""

_LETTER = "a"
"""Blocks end after a letter if possible. In front of the next block, any letter gives the tokens of the whole text."""

Progress = Callable[[int, int], None]
"""Called with the bytes of text that have been encoded, and their total."""


@dataclass(frozen=True)
class TokenFiles:
    """The tokens of some texts, one text after another.

    Attributes:
        folder: contains the files.
        key: hash of the texts and the tokenizer.
        shards: the tokens, mapped into memory.
        total: number of all tokens.
    """

    folder: Path
    key: str
    shards: tuple[NDArray[Any], ...]
    total: int

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Returns `count` tokens from token `start` on, (count,)."""
        parts, first = [], 0
        for shard in self.shards:
            if first < start + count and start < first + len(shard):
                parts.append(shard[max(0, start - first) : start + count - first])
            first += len(shard)
        return np.concatenate(parts).astype(np.int32)


def prepare_tokens(
    texts: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    progress: Progress | None = None,
    shard_tokens: int = _SHARD,
) -> TokenFiles:
    """Returns the tokens of texts; encodes the texts unless the folder has their tokens already.

    A text is encoded as a whole, without BOS, and its end is the tokenizer's EOS. Texts of more than a megabyte are
    encoded in blocks that end in front of line ends, which gives the same tokens.

    Raises:
        DataError: a text is not UTF-8, or all texts are empty.
        StorageError: the folder cannot be written.
    """
    key = _key(texts, tokenizer)
    earlier = _open(folder, key)
    if earlier is not None:
        return earlier
    make_folder(folder)
    (folder / _INDEX).unlink(missing_ok=True)
    kind = "<u2" if len(tokenizer) <= 2**16 else "<u4"
    writer = _Writer(folder, kind, shard_tokens)
    writer.write_all(_encoded(texts, tokenizer, progress))
    if not any(file.stat().st_size for file in texts):
        raise DataError(f"{', '.join(map(str, texts[:3]))}: no text; give a text file with something to learn from")
    index = {"version": _VERSION, "key": key, "type": kind, "texts": [str(path) for path in texts]}
    write_json(folder / _INDEX, {**index, "shards": writer.shards})
    tokens = _open(folder, key)
    assert tokens is not None, "the files have just been written"
    return tokens


def _encoded(
    texts: Sequence[Path], tokenizer: PreTrainedTokenizerBase, progress: Progress | None
) -> Iterator[NDArray[np.int64]]:
    """Yields the tokens of each block of the texts, and EOS after each text."""
    total, done = sum(path.stat().st_size for path in texts), 0
    prefix = list(tokenizer.encode(_LETTER, add_special_tokens=False))
    for path in texts:
        for index, block in enumerate(text_blocks(path, DataError)):
            ids = list(tokenizer.encode((_LETTER if index else "") + block, add_special_tokens=False))
            if index and ids[: len(prefix)] == prefix:
                del ids[: len(prefix)]
            elif index:
                ids = list(tokenizer.encode(block, add_special_tokens=False))
            yield np.array(ids, np.int64)
            done += len(block.encode())
            if progress is not None:
                progress(done, total)
        if tokenizer.eos_token_id is not None:
            yield np.array([tokenizer.eos_token_id], np.int64)


class _Writer:
    """Writes tokens into shards.

    Attributes:
        shards: the name, number of tokens and SHA-256 of each complete shard.
    """

    def __init__(self, folder: Path, kind: str, shard_tokens: int) -> None:
        self._folder, self._kind, self._limit = folder, kind, shard_tokens
        self.shards: list[dict[str, Any]] = []

    def write_all(self, blocks: Iterator[NDArray[np.int64]]) -> None:
        """Writes all blocks, a shard after another."""
        rest: NDArray[np.int64] | None = next(blocks, None)
        while rest is not None:
            name = f"tokens-{len(self.shards):05}.bin"
            with atomic_write(self._folder / name) as file:
                count, digest, rest = self._fill(file, rest, blocks)
            self.shards.append({"name": name, "tokens": count, "sha256": digest})

    def _fill(
        self, file: IO[bytes], first: NDArray[np.int64], blocks: Iterator[NDArray[np.int64]]
    ) -> tuple[int, str, NDArray[np.int64] | None]:
        """Writes one shard; returns its tokens, its hash, and the tokens that do not fit."""
        count, digest = 0, hashlib.sha256()
        block: NDArray[np.int64] | None = first
        while block is not None:
            part, rest = block[: self._limit - count], block[self._limit - count :]
            data = part.astype(self._kind).tobytes()
            file.write(data)
            digest.update(data)
            count += len(part)
            if len(rest):
                return count, digest.hexdigest(), rest
            block = next(blocks, None)
        return count, digest.hexdigest(), None


def _open(folder: Path, key: str) -> TokenFiles | None:
    """Returns the tokens in a folder; None if they belong to other texts or are damaged."""
    if not (folder / _INDEX).is_file():
        return None
    try:
        index = read_json(folder / _INDEX, DataError)
        if (index["version"], index["key"]) != (_VERSION, key):
            return None
        shards = []
        for item in index["shards"]:
            path = folder / item["name"]
            if _sha256(path) != item["sha256"]:
                return None
            shards.append(np.memmap(path, index["type"], "r", shape=(item["tokens"],)))
    except (DataError, KeyError, TypeError, ValueError, OSError):
        return None
    return TokenFiles(folder, key, tuple(shards), sum(map(len, shards)))


def _key(texts: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of the contents of the texts, in their order, and of the tokenizer."""
    digest = hashlib.sha256(json.dumps([_VERSION, tokenizer.eos_token_id]).encode())
    with reading_errors(DataError):
        for path in texts:
            digest.update(_sha256(path).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file_name in ("tokenizer.json", "tokenizer.model"):
            saved = Path(folder) / file_name
            digest.update(saved.read_bytes() if saved.exists() else b"")
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()
