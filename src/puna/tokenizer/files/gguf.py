"""Tokenizers in GGUF files, in both directions: SentencePiece vocabularies ("llama") and byte-level BPE ("gpt2").

The written metadata give the same ids in llama.cpp as the tokenizer does in puna.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from puna.errors import TokenizerError
from puna.tokenizer.files.byte_level import name_of
from puna.tokenizer.sentencepiece.proto import PieceType, read_pieces, read_spec, write_model
from puna.tokenizer.special import AddedToken

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from puna.formats.gguf_writer import Value
    from puna.tokenizer.arguments import ChatTemplate

PREFIX = "tokenizer.ggml."

LLAMA3_BOS = 128000
"""The id of Llama 3's <|begin_of_text|>."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_ADDED_SCORE = -1000.0
"""Score of tokens beyond the vocabulary, so that no merge produces them (llama.cpp's converter)."""


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
    """Reads the metadata that both kinds share.

    Raises:
        TokenizerError: a key is missing, has the wrong type or length, or specifies another kind of tokenizer.
    """
    model = _get(metadata, PREFIX + "model", str, None)
    if model not in ("llama", "gpt2"):
        raise TokenizerError(
            f"tokenizer.ggml.model = {model!r}; LLaMA models use 'llama' (SentencePiece) or 'gpt2' (byte-level BPE)"
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
        index = _get(metadata, f"{PREFIX}{key}_token_id", int, -1)
        if index >= len(tokens):
            raise TokenizerError(f"tokenizer.ggml.{key}_token_id = {index}, but there are {len(tokens)} tokens")
        if index >= 0:
            ids[name] = index
    if model == "llama":  # the ids of all LLaMA models before these keys existed, if the token types agree
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
    for index in unknown:  # SentencePiece requires exactly one
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
    """Returns the tokens with the spaces of user-defined ones as U+2581.

    llama.cpp matches user-defined tokens in the unchanged text, SentencePiece after spaces have become U+2581. If
    another token has the new spelling already, the user-defined one keeps its space, and SentencePiece never finds it.
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
    """Returns the merges of a "gpt2" tokenizer, stored as two tokens and a space, which no token contains."""
    texts = _strings(vocabulary.metadata, PREFIX + "merges", None)
    halves = " ".join(texts).split(" ") if texts else []
    if not (set(map(operator.methodcaller("count", " "), texts)) <= {1} and all(halves)):
        number = next(number for number, text in enumerate(texts) if text.count(" ") != 1 or "" in text.split(" "))
        raise TokenizerError(f"tokenizer.ggml.merges[{number}] = {texts[number]!r}; expected two tokens and a space")
    return list(zip(halves[::2], halves[1::2], strict=True))


def pre_name(vocabulary: GgufVocabulary) -> str:
    """Returns the name of the pre-tokenizer of a "gpt2" tokenizer.

    Files converted before April 2024 have none; only those of Llama 3 are recognised, by the first special token.

    Raises:
        TokenizerError: there is no name. A guess could give other ids (github.com/ggml-org/llama.cpp/pull/6920).
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
        raise TokenizerError(f"{key} = {value!r:.60}; expected a value of type {kind.__name__}")
    return value


def _strings(metadata: Mapping[str, Any], key: str, default: list[str] | None) -> list[str]:
    values: list[str] = _get(metadata, key, list, default)
    if not set(map(type, values)) <= {str}:
        wrong = next(value for value in values if type(value) is not str)
        raise TokenizerError(f"{key} contains {wrong!r:.60}; expected strings")
    return values


def _numbers(metadata: Mapping[str, Any], key: str, count: int, default: float) -> list[float]:
    """Returns an array of `count` numbers, stored as a list or a numpy array; if missing, `default` for each."""
    if key not in metadata:
        return [default] * count
    try:
        values = np.asarray(metadata[key], dtype=np.float64)
    except (TypeError, ValueError) as exc:
        raise TokenizerError(f"{key}: expected an array of numbers ({exc})") from exc
    if values.shape != (count,) or not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise TokenizerError(f"{key}: {values.shape} values, or some not finite; expected one finite number per token")
    numbers: list[float] = values.tolist()
    return numbers


def model_metadata(model: bytes, added: Mapping[int, AddedToken]) -> dict[str, Value]:
    """Returns the vocabulary keys of a SentencePiece model and its added tokens."""
    pieces, scores, types = read_pieces(model)
    spec = read_spec(model, "the SentencePiece model")
    return _scored(pieces, scores, types, added) | {
        f"{PREFIX}add_space_prefix": spec.add_dummy_prefix,
        f"{PREFIX}remove_extra_whitespaces": spec.remove_extra_whitespaces,
    }


def pipeline_metadata(pipeline: Tokenizer, added: Mapping[int, AddedToken], unk_id: int | None) -> dict[str, Value]:
    """Returns the vocabulary keys of a pipeline: BPE over bytes, or over characters with bytes as a fallback.

    Raises:
        TokenizerError: the pipeline is not BPE, or its pre-tokenizer has no name in GGUF.
    """
    model = json.loads(pipeline.to_str())["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"a tokenizer of type {model.get('type')!r}; GGUF files of LLaMA models need BPE")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    tokens = [_filler(index) for index in range(token_count(model["vocab"]))]
    for token, index in model["vocab"].items():
        tokens[index] = token
    if model.get("byte_fallback"):
        return _character_bpe(pipeline, tokens, pairs, added, unk_id)
    types = [int(PieceType.NORMAL)] * len(tokens)
    _place(added, tokens, types)
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": name_of(pipeline.pre_tokenizer, bool(model.get("ignore_merges"))),
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}token_type": np.array(types, np.int32),
        f"{PREFIX}merges": [" ".join(pair) for pair in pairs],
    }


def _place(added: Mapping[int, AddedToken], tokens: list[str], types: list[int]) -> None:
    """Writes added tokens into the lists of a vocabulary: they replace ordinary tokens or follow the last one."""
    for index, token in added.items():
        while len(tokens) <= index:
            tokens.append(_filler(len(tokens)))
            types.append(PieceType.UNUSED)
        if types[index] not in (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.BYTE):
            tokens[index] = token.content
            types[index] = PieceType.CONTROL if token.special else PieceType.USER_DEFINED


def _character_bpe(
    pipeline: Tokenizer,
    tokens: list[str],
    pairs: list[list[str]],
    added: Mapping[int, AddedToken],
    unk_id: int | None,
) -> dict[str, Value]:
    """Returns the keys of a SentencePiece vocabulary in a tokenizer.json: the score of a piece is its first merge."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        rank.setdefault("".join(pair), number)
    last = len(pairs)
    scores = [-float(rank.get(token, last)) for token in tokens]
    types = [int(PieceType.BYTE if _BYTE.fullmatch(token) else PieceType.NORMAL) for token in tokens]
    for index, kind in ((unk_id, PieceType.UNKNOWN), *((i, PieceType.CONTROL) for i in added)):
        if index is not None and index < len(tokens) and (index not in added or added[index].special):
            types[index] = int(PieceType.UNKNOWN if index == unk_id else kind)
            scores[index] = 0.0
    first = pipeline.encode("a", add_special_tokens=False).tokens
    return _scored(tokens, scores, types, added) | {f"{PREFIX}add_space_prefix": first[:1] != ["a"]}


def _scored(
    tokens: list[str], scores: list[float], types: list[int], added: Mapping[int, AddedToken]
) -> dict[str, Value]:
    """Returns the keys of a "llama" vocabulary."""
    _place(added, tokens, types)
    scores += [_ADDED_SCORE] * (len(tokens) - len(scores))
    # llama.cpp matches user-defined tokens in the unchanged text, where spaces are not U+2581 yet.
    texts = [
        token.replace("▁", " ") if kind == PieceType.USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}pre": "default",
        f"{PREFIX}tokens": texts,
        f"{PREFIX}scores": np.array(scores, np.float32),
        f"{PREFIX}token_type": np.array(types, np.int32),
    }


def settings_metadata(
    ids: Mapping[str, int | None], add_bos: bool, add_eos: bool, templates: ChatTemplate | None
) -> dict[str, Value]:
    """Returns the keys of special ids ("bos", "eos", "unknown", "padding"), of their use, and of chat templates."""
    keys: dict[str, Value] = {f"{PREFIX}{name}_token_id": index for name, index in ids.items() if index is not None}
    keys[f"{PREFIX}add_bos_token"] = add_bos
    keys[f"{PREFIX}add_eos_token"] = add_eos
    named = {"default": templates} if isinstance(templates, str) else dict(templates or {})
    if "default" in named:
        keys["tokenizer.chat_template"] = named.pop("default")
    if named:
        keys["tokenizer.chat_templates"] = list(named)
        keys |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    return keys


def token_count(vocabulary: Mapping[str, int]) -> int:
    """Returns the number of tokens up to the highest id."""
    return max(vocabulary.values(), default=-1) + 1


def check_count(tokens: int, rows: int) -> None:
    """Raises TokenizerError if an embedding of `rows` rows has no row for some of the tokens."""
    if tokens > rows:
        raise TokenizerError(
            f"the tokenizer has {tokens} tokens and the embedding {rows} rows, so tokens lack a row; convert with "
            f"--vocab-size {tokens} or more, or give the model another tokenizer first"
        )


def _filler(index: int) -> str:
    """Returns a name for an id without a token; no text contains it."""
    return f"[PAD{index}]"


def filled(keys: dict[str, Any], rows: int) -> dict[str, Value]:
    """Returns the keys with one token per row of the embedding, as llama.cpp requires."""
    tokens = list(keys.get(f"{PREFIX}tokens", []))
    if not tokens:
        raise TokenizerError("the GGUF file has no tokens; give the folder of the model's own tokenizer")
    check_count(len(tokens), rows)
    missing = range(len(tokens), rows)
    if missing:
        keys[f"{PREFIX}tokens"] = tokens + [_filler(index) for index in missing]
        types = np.asarray(keys.get(f"{PREFIX}token_type", [PieceType.NORMAL] * len(tokens)), np.int32)
        keys[f"{PREFIX}token_type"] = np.append(types, np.full(len(missing), PieceType.UNUSED, np.int32))
        if f"{PREFIX}scores" in keys:
            scores = np.asarray(keys[f"{PREFIX}scores"], np.float32)
            keys[f"{PREFIX}scores"] = np.append(scores, np.full(len(missing), _ADDED_SCORE, np.float32))
    return keys
