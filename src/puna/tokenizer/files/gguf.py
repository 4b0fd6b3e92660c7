"""Tokenizers in GGUF files: SentencePiece vocabularies ("llama") and byte-level BPE ("gpt2")."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from puna.config.checks import absent_if_minus_one
from puna.errors import TokenizerError, show
from puna.tokenizer.sentencepiece.proto import PieceType, write_model

PREFIX = "tokenizer.ggml."

LLAMA3_BOS = 128000
"""The id of Llama 3's <|begin_of_text|>."""


@dataclass(frozen=True)
class GgufVocabulary:
    """The checked metadata under `tokenizer.ggml.`.

    Attributes:
        model: "llama" or "gpt2".
        types: `PieceType` of each token.
        ids: ids of "bos", "eos", "unk", "pad", if the file specifies them.
        templates: chat templates by name; "default" is the main template.
    """

    model: str
    tokens: list[str]
    types: list[int]
    ids: dict[str, int]
    templates: dict[str, str]
    metadata: Mapping[str, Any]

    def flag(self, name: str, default: bool) -> bool:
        """A boolean of the metadata."""
        return bool(_get(self.metadata, PREFIX + name, bool, default))

    def token(self, name: str) -> str | None:
        """The text of "bos", "eos", "unk" or "pad", or None."""
        return self.tokens[self.ids[name]] if name in self.ids else None


def read_vocabulary(metadata: Mapping[str, Any]) -> GgufVocabulary:
    """Reads the metadata that both kinds of vocabulary have.

    Raises:
        TokenizerError: a key is missing, has the wrong type or length, or specifies another kind of tokenizer.
    """
    model = _get(metadata, PREFIX + "model", str, None)
    if model not in ("llama", "gpt2"):
        raise TokenizerError(
            f"tokenizer.ggml.model = {show(model)}; LLaMA models use 'llama' (SentencePiece) or 'gpt2' (byte-level BPE)"
        )
    tokens = _strings(metadata, PREFIX + "tokens", None)
    types = list(map(int, _numbers(metadata, PREFIX + "token_type", len(tokens), int(PieceType.NORMAL))))
    unknown = set(types) - {int(kind) for kind in PieceType}
    if unknown:
        raise TokenizerError(
            f"tokenizer.ggml.token_type contains {min(unknown)}; the types are 1 to 6, download the file again"
        )
    ids = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = absent_if_minus_one(_get(metadata, f"{PREFIX}{key}_token_id", int, -1))
        if index is None:
            continue
        if index >= len(tokens):
            raise TokenizerError(f"tokenizer.ggml.{key}_token_id = {index}, but there are {len(tokens)} tokens")
        if index >= 0:
            ids[name] = index
    if model == "llama":  # older files lack these keys: use LLaMA's ids if they are control tokens
        for name, index in (("bos", 1), ("eos", 2)):
            if name not in ids and index < len(tokens) and types[index] == PieceType.CONTROL:
                ids[name] = index
    return GgufVocabulary(model, tokens, types, ids, _templates(metadata), metadata)


def sentencepiece_model(vocabulary: GgufVocabulary) -> bytes:
    """Returns the vocabulary of a "llama" tokenizer as a SentencePiece model."""
    scores = _numbers(vocabulary.metadata, PREFIX + "scores", len(vocabulary.tokens), 0.0)
    types = list(vocabulary.types)
    unknown = [index for index, kind in enumerate(types) if kind == PieceType.UNKNOWN]
    unk = vocabulary.ids.get("unk", unknown[0] if unknown else 0)
    for index in unknown:  # SentencePiece requires exactly one unknown piece
        types[index] = PieceType.CONTROL
    types[unk] = PieceType.UNKNOWN
    return write_model(
        _as_pieces(vocabulary.tokens, types),
        [float(score) for score in scores],
        types,
        add_dummy_prefix=vocabulary.flag("add_space_prefix", True),
        remove_extra_whitespaces=vocabulary.flag("remove_extra_whitespaces", False),
        ids={**vocabulary.ids, "unk": unk},
    )


def _as_pieces(tokens: list[str], types: list[int]) -> list[str]:
    """Returns the tokens, with U+2581 for each space of a user-defined token.

    llama.cpp matches user-defined tokens in the original text; SentencePiece matches them after it has replaced spaces
    by U+2581. If another token already has the new spelling, the token keeps its space and never matches.
    """
    used = set(tokens)
    pieces = []
    for token, kind in zip(tokens, types, strict=True):
        piece = token.replace(" ", "▁")
        if kind == PieceType.USER_DEFINED and piece not in used:
            used.add(piece)
            pieces.append(piece)
        else:
            pieces.append(token)
    return pieces


def merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Returns the merges of a "gpt2" tokenizer. Each is stored as two tokens with a space in between."""
    texts = _strings(vocabulary.metadata, PREFIX + "merges", None)
    halves = " ".join(texts).split(" ") if texts else []
    if not (set(map(operator.methodcaller("count", " "), texts)) <= {1} and all(halves)):
        number = next(number for number, text in enumerate(texts) if text.count(" ") != 1 or "" in text.split(" "))
        raise TokenizerError(
            f"tokenizer.ggml.merges[{number}] = {show(texts[number])}; expected two tokens and a space"
        )
    return list(zip(halves[::2], halves[1::2], strict=True))


def pre_name(vocabulary: GgufVocabulary) -> str:
    """Returns the name of the pre-tokenizer of a "gpt2" tokenizer.

    Files converted before April 2024 do not contain it; those of Llama 3 are detected by their first special token.

    Raises:
        TokenizerError: the name is missing; a wrong guess would give wrong ids (llama.cpp's pull request 6920).
    """
    llama3 = len(vocabulary.tokens) > LLAMA3_BOS and vocabulary.tokens[LLAMA3_BOS] == "<|begin_of_text|>"
    name: str = _get(vocabulary.metadata, PREFIX + "pre", str, "llama-bpe" if llama3 else None)
    return name


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    for name in ("", *(f".{name}" for name in _strings(metadata, "tokenizer.chat_templates", []))):
        template = _get(metadata, f"tokenizer.chat_template{name}", str, "")
        if template:
            templates[name[1:] or "default"] = template
    return templates


def _get(metadata: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = metadata.get(key, default)
    if value is None:
        raise TokenizerError(f"the metadata have no {key}; use a complete file, or the model's tokenizer.json")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TokenizerError(f"{key} = {show(value)}; expected a value of type {kind.__name__}")
    return value


def _strings(metadata: Mapping[str, Any], key: str, default: list[str] | None) -> list[str]:
    values: list[str] = _get(metadata, key, list, default)
    if not set(map(type, values)) <= {str}:
        wrong = next(value for value in values if type(value) is not str)
        raise TokenizerError(f"{key} contains {show(wrong)}; expected strings")
    return values


def _numbers(metadata: Mapping[str, Any], key: str, count: int, default: float) -> list[float]:
    """Returns `count` numbers, stored as a list or a NumPy array; `default` for each if the key is missing."""
    if key not in metadata:
        return [default] * count
    try:
        values = np.asarray(metadata[key], dtype=np.float64)
    except (TypeError, ValueError) as exc:
        raise TokenizerError(f"{key}: expected an array of numbers ({exc})") from exc
    if values.shape != (count,):
        raise TokenizerError(f"{key} has {values.size} values; expected {count}, one finite number per token")
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise TokenizerError(f"{key} has values that are not finite in float32; expected one finite number per token")
    numbers: list[float] = values.tolist()
    return numbers
