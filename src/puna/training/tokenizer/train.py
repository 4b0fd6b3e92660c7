"""`train_tokenizer`: trains a tokenizer on text files and saves it as a Hugging Face folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from puna.errors import TokenizerError, show
from puna.files import folder_path
from puna.files.text_files import find_text_files, text_blocks

if TYPE_CHECKING:
    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.slow import LlamaTokenizer

TokenizerKind = Literal["llama2", "llama3", "char"]

Progress = Callable[[str, int, int], None]
"""Called with the step ("reading" or "training"), and with the bytes that have been read and their total."""

_BLOCK = 2**16
"""Bytes of a block of text; the library `tokenizers` counts the words of several blocks at the same time."""

_DEFAULT_SIZES: dict[str, int | None] = {"llama2": 32_000, "llama3": 128_256, "char": None}
"""Sizes of the vocabularies of Llama 2 and Llama 3; by default a vocabulary of characters has all of the text."""

_MAX_SIZE = 2**22
"""Limit on the size of a vocabulary; known ones have up to 262,144 tokens."""


@dataclass(frozen=True)
class TokenizerTraining:
    """The settings of a new vocabulary.

    Attributes:
        kind: "llama2" is SentencePiece BPE: text without pre-tokenizer, single digits, bytes for rare characters.
            "llama3" is byte-level BPE with Llama 3's pre-tokenizer. "char" has a token for each character, and adds no
            BOS to texts.
        vocab_size: number of tokens, special tokens and bytes included; None means the size of the model of this name,
            and all characters of the text for "char".
        byte_fallback: whether 256 tokens represent the bytes of characters without a token, which otherwise become
            <unk>; None means True for "llama2" and False for "char". "llama3" always represents all bytes.
        special_tokens: for "llama3", how many of Llama 3's 256 special tokens the vocabulary gets. The first 11 include
            all that have a meaning; 256 gives a vocabulary that can also be saved in Meta's layout.

    Raises:
        TokenizerError: a value is out of range.
    """

    kind: TokenizerKind = "llama2"
    vocab_size: int | None = None
    byte_fallback: bool | None = None
    special_tokens: int = 11

    def __post_init__(self) -> None:
        if self.kind not in get_args(TokenizerKind):
            raise TokenizerError(f"kind is {show(self.kind)}; it must be one of {', '.join(get_args(TokenizerKind))}")
        size = self.vocab_size
        if size is not None and not (isinstance(size, int) and 0 < size <= _MAX_SIZE):
            raise TokenizerError(f"vocab_size is {show(size)}; it must be a number from 1 to {_MAX_SIZE}")
        if not 11 <= self.special_tokens <= 256:
            raise TokenizerError(f"special_tokens is {show(self.special_tokens)}; it must be a number from 11 to 256")
        if self.kind == "llama3" and self.byte_fallback is False:
            raise TokenizerError(
                "byte_fallback is False; a vocabulary of the kind llama3 consists of bytes, leave it out"
            )

    @property
    def size(self) -> int | None:
        """The number of tokens, with the default of the kind; None means all characters of the text."""
        return self.vocab_size if self.vocab_size is not None else _DEFAULT_SIZES[self.kind]

    @property
    def has_bytes(self) -> bool:
        """Whether all bytes have tokens."""
        return self.kind != "char" if self.byte_fallback is None else self.byte_fallback


def train_tokenizer(
    texts: Sequence[str | Path],
    output: str | Path | None = None,
    kind: TokenizerKind = "llama2",
    vocab_size: int | None = None,
    *,
    byte_fallback: bool | None = None,
    special_tokens: int = 11,
    progress: Progress = lambda step, done, total: None,
) -> LlamaTokenizer | LlamaTokenizerFast:
    """Trains a tokenizer on text files.

    The same files and settings always give the same vocabulary.

    Args:
        texts: UTF-8 text files, or folders of .txt and .md files.
        output: folder to save the tokenizer into; None saves nothing.
        kind, vocab_size, byte_fallback, special_tokens: see `TokenizerTraining`.
        progress: called while the texts are read, and before the vocabulary is computed.

    Raises:
        ModelNotFoundError: there is no such file.
        TokenizerError: a setting is out of range, a file is not text, or the texts are too small for the vocabulary.
        StorageError: the folder cannot be written.
    """
    settings = TokenizerTraining(kind, vocab_size, byte_fallback, special_tokens)
    folder = None if output is None else folder_path(output)
    if folder is not None and folder.is_file():
        raise TokenizerError(f"{folder} is a file; give a folder to save the tokenizer into")
    files = find_text_files(texts, TokenizerError)
    total = sum(file.stat().st_size for file in files)
    module = importlib.import_module("puna.training.tokenizer." + ("byte_level" if kind == "llama3" else "pieces"))
    tokenizer: LlamaTokenizer | LlamaTokenizerFast = module.train(_blocks(files, total, progress), settings)
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def _blocks(files: Sequence[Path], total: int, progress: Progress) -> Iterator[str]:
    """Yields the texts in blocks.

    Raises:
        TokenizerError: no file contains anything but white space.
    """
    done, is_empty = 0, True
    for file in files:
        for block in text_blocks(file, TokenizerError, _BLOCK):
            is_empty = is_empty and not block.strip()
            yield block
            done += len(block.encode())
            progress("reading", done, total)
    if is_empty:
        names = ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")
        raise TokenizerError(f"{names}: no text; a tokenizer needs text to learn its vocabulary from")
    progress("training", total, total)
