"""SentencePiece vocabularies: BPE with Llama 2's settings, and single characters.

The settings are those of the trainer_spec and normalizer_spec in Llama 2's tokenizer.model.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import sentencepiece

from puna.errors import PunaError, TokenizerError, first_line
from puna.tokenizer.sentencepiece.engine import SPACE
from puna.tokenizer.sentencepiece.proto import PieceType, write_model
from puna.tokenizer.slow import LlamaTokenizer

if TYPE_CHECKING:
    from puna.training.tokenizer.train import TokenizerTraining

_LLAMA2: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}

_LONGEST = 2**13
"""Characters of the longest sentence that SentencePiece gets; it ignores sentences of more than max_sentence_length."""

_SPECIAL = ("<unk>", "<s>", "</s>")

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def train(blocks: Iterator[str], settings: TokenizerTraining) -> LlamaTokenizer:
    """Trains a SentencePiece vocabulary.

    Raises:
        TokenizerError: the text is too small for the vocabulary, or the vocabulary is too small for its characters.
    """
    model = _characters(blocks, settings) if settings.kind == "char" else _bpe(blocks, settings)
    return LlamaTokenizer(model_proto=model, behaviour="sp", add_bos_token=settings.kind != "char")


def _bpe(blocks: Iterator[str], settings: TokenizerTraining) -> bytes:
    """Returns a BPE model that the library `sentencepiece` has trained."""
    failures: list[PunaError] = []
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(blocks, failures),
            model_writer=model,
            vocab_size=settings.size,
            byte_fallback=settings.has_bytes,
            max_sentence_length=8 * _LONGEST,
            minloglevel=2,
            **_LLAMA2,
        )
    except RuntimeError as exc:
        if failures:
            raise failures[0] from None
        raise _training_error(exc, settings) from exc
    return model.getvalue()


def _sentences(blocks: Iterable[str], failures: list[PunaError]) -> Iterator[str]:
    """Yields the lines of the blocks; a long line in parts that end at spaces. Keeps an error of the blocks."""
    rest = ""
    try:
        for block in blocks:
            *lines, rest = (rest + block).split("\n")
            for line in lines:
                yield from _parts(line)
        yield from _parts(rest)
    except PunaError as exc:  # SentencePiece would turn it into a RuntimeError
        failures.append(exc)
        raise


def _parts(line: str) -> Iterator[str]:
    while len(line) > _LONGEST:
        space = line.rfind(" ", 1, _LONGEST)
        end = space if space > 0 else _LONGEST
        yield line[:end]
        line = line[end + (space > 0) :]  # SentencePiece adds a space before each part
    yield line


def _training_error(exc: RuntimeError, settings: TokenizerTraining) -> TokenizerError:
    """Returns an error with the sizes in the message of SentencePiece, and a remedy."""
    if match := re.search(r"too high \(\d+\).*<= (\d+)", str(exc)):
        return TokenizerError(_too_large(settings.size, int(match[1])))
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(exc)):
        return TokenizerError(
            f"vocab_size is {settings.size}, but the characters of the text, bytes and special tokens are {match[1]} "
            f"tokens; use at least {match[1]}"
        )
    return TokenizerError(f"SentencePiece cannot train a vocabulary on this text ({first_line(exc)})")


def _too_large(size: int | None, limit: int) -> str:
    return (
        f"vocab_size is {size}, but this text has material for {limit} tokens only; use at most {limit}, or give more "
        "text"
    )


def _characters(blocks: Iterable[str], settings: TokenizerTraining) -> bytes:
    """Returns a model whose pieces are the most frequent characters, in the order of Unicode."""
    counts: Counter[str] = Counter()
    for block in blocks:
        counts.update(block.replace(" ", SPACE))
    first = [*_SPECIAL, *(_BYTES if settings.has_bytes else ())]
    size = len(first) + len(counts) if settings.size is None else settings.size
    if size > len(first) + len(counts):
        raise TokenizerError(_too_large(size, len(first) + len(counts)))
    if size <= len(first):
        raise TokenizerError(f"vocab_size is {size}; special tokens and bytes alone are {len(first)}, use more")
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    pieces = [*first, *sorted(ranked[: size - len(first)])]
    kinds = [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL] + [PieceType.BYTE] * (len(first) - 3)
    return write_model(
        pieces,
        [0.0] * len(first) + [-float(rank) for rank in range(size - len(first))],
        [*kinds, *[PieceType.NORMAL] * (size - len(first))],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        ids={"unk": 0, "bos": 1, "eos": 2},
    )
