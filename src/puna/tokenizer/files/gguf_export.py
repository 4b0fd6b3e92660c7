"""A tokenizer as the metadata of a GGUF file, from which llama.cpp gives the same ids: the inverse of `gguf_vocab`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna.errors import TokenizerError
from puna.formats.gguf import open_gguf
from puna.formats.gguf_writer import Value
from puna.tokenizer.added_token import AddedToken
from puna.tokenizer.base import TokenizerBase
from puna.tokenizer.chat.templates import LLAMA_3
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.files.byte_level import name_of
from puna.tokenizer.files.gguf import PREFIX
from puna.tokenizer.load import find, load_tokenizer
from puna.tokenizer.sentencepiece.proto import PieceType, read_pieces, read_spec
from puna.tokenizer.slow import LlamaTokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_ADDED_SCORE = -1000.0
"""Of tokens beside the vocabulary, which no merge makes (llama.cpp's converter)."""


def gguf_tokenizer(path: Path, rows: int, instruct: bool = False) -> dict[str, Value]:
    """The keys under `tokenizer.` for the tokenizer at `path`; a GGUF file's own are kept as they are.

    Args:
        path: a folder or file, as `load_tokenizer` takes it; a SentencePiece model wins over tokenizer.json.
        rows: of the model's embedding; the vocabulary is filled up to them.
        instruct: give Llama 3's chat template to its tokenizer, which has none.

    Raises:
        TokenizerError: there is no tokenizer, it has more tokens than `rows`, or llama.cpp has no such kind.
    """
    file, kind = find(path, prefer="tokenizer.model")
    if kind == "gguf":
        stored = open_gguf(file).metadata
        keys: dict[str, Any] = {key: stored[key] for key in stored if key.startswith("tokenizer.")}
        return _filled(keys | ({"tokenizer.chat_template": LLAMA_3} if instruct else {}), rows)
    if kind == "sentencepiece":
        slow = LlamaTokenizer.from_pretrained(path)
        check_count(token_count(slow), rows)
        return _filled(_sentencepiece(slow) | _common(slow), rows)
    fast = load_tokenizer(path)
    assert isinstance(fast, LlamaTokenizerFast)
    check_count(token_count(fast), rows)
    if instruct:
        fast.chat_template = LLAMA_3
    return _filled(_pipeline(fast) | _common(fast), rows)


def _common(tokenizer: TokenizerBase) -> dict[str, Value]:
    """Special ids, whether they are added, and chat templates."""
    keys: dict[str, Value] = {}
    for name, index in (
        ("bos", tokenizer.bos_token_id),
        ("eos", tokenizer.eos_token_id),
        ("unknown", tokenizer.unk_token_id),
        ("padding", tokenizer.pad_token_id),
    ):
        if index is not None:
            keys[f"{PREFIX}{name}_token_id"] = index
    keys[f"{PREFIX}add_bos_token"] = tokenizer.add_bos_token
    keys[f"{PREFIX}add_eos_token"] = tokenizer.add_eos_token
    templates = tokenizer.chat_template
    if isinstance(templates, str):
        keys["tokenizer.chat_template"] = templates
    elif isinstance(templates, Mapping):
        others = {name: text for name, text in templates.items() if name != "default"}
        if "default" in templates:
            keys["tokenizer.chat_template"] = templates["default"]
        if others:
            keys["tokenizer.chat_templates"] = list(others)
            keys |= {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    return keys


def _sentencepiece(tokenizer: LlamaTokenizer) -> dict[str, Value]:
    proto = tokenizer.sp_model.serialized_model_proto()
    pieces, scores, types = read_pieces(proto)
    spec = read_spec(proto, "the SentencePiece model")
    return _scored(pieces, scores, types, tokenizer.added_tokens_decoder) | {
        f"{PREFIX}add_space_prefix": spec.add_dummy_prefix,
        f"{PREFIX}remove_extra_whitespaces": spec.remove_extra_whitespaces,
    }


def _scored(
    tokens: list[str], scores: list[float], types: list[int], added: Mapping[int, AddedToken]
) -> dict[str, Value]:
    """A "llama" vocabulary; added tokens take their places in it or behind it."""
    fixed = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.BYTE)
    for index, token in added.items():
        while len(tokens) <= index:
            tokens.append(_filler(len(tokens)))
            scores.append(_ADDED_SCORE)
            types.append(PieceType.UNUSED)
        if types[index] not in fixed:
            tokens[index] = token.content
            types[index] = PieceType.CONTROL if token.special else PieceType.USER_DEFINED
    # User-defined tokens are looked for in the text as it stands, in which spaces are not U+2581 yet.
    whole = [kind == PieceType.USER_DEFINED for kind in types]
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}pre": "default",
        f"{PREFIX}tokens": [
            token.replace("▁", " ") if cut else token for token, cut in zip(tokens, whole, strict=True)
        ],
        f"{PREFIX}scores": np.array(scores, np.float32),
        f"{PREFIX}token_type": np.array(types, np.int32),
    }


def _pipeline(tokenizer: LlamaTokenizerFast) -> dict[str, Value]:
    """Either kind of vocabulary from a pipeline: BPE over bytes, or over characters with bytes for the rest."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"a tokenizer of type {model.get('type')!r}; GGUF files of LLaMAs hold BPE")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    tokens = _in_order(model["vocab"])
    added = tokenizer.added_tokens_decoder
    if model.get("byte_fallback"):
        return _characters(tokenizer, tokens, merges, added)
    types = [int(PieceType.NORMAL)] * len(tokens)
    for index, token in added.items():
        while len(tokens) <= index:
            tokens.append(_filler(len(tokens)))
            types.append(PieceType.UNUSED)
        tokens[index] = token.content
        types[index] = PieceType.CONTROL if token.special else PieceType.USER_DEFINED
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": name_of(tokenizer.backend_tokenizer.pre_tokenizer, bool(model.get("ignore_merges"))),
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}token_type": np.array(types, np.int32),
        f"{PREFIX}merges": [" ".join(pair) for pair in merges],
    }


def _characters(
    tokenizer: LlamaTokenizerFast, tokens: list[str], merges: list[list[str]], added: Mapping[int, AddedToken]
) -> dict[str, Value]:
    """A SentencePiece vocabulary of which only tokenizer.json is left: a piece scores by its first merge."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    last = len(merges)
    scores = [-float(rank.get(token, last)) for token in tokens]
    types = [int(PieceType.BYTE if _BYTE.fullmatch(token) else PieceType.NORMAL) for token in tokens]
    for index, kind in ((tokenizer.unk_token_id, PieceType.UNKNOWN), *((i, PieceType.CONTROL) for i in added)):
        if index is not None and index < len(tokens) and (index not in added or added[index].special):
            types[index] = int(PieceType.UNKNOWN if index == tokenizer.unk_token_id else kind)
            scores[index] = 0.0
    first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens
    return _scored(tokens, scores, types, added) | {f"{PREFIX}add_space_prefix": first[:1] != ["a"]}


def _in_order(vocab: Mapping[str, int]) -> list[str]:
    """The tokens by id; ids that have none get a name that no text has."""
    tokens = [_filler(index) for index in range(max(vocab.values(), default=-1) + 1)]
    for token, index in vocab.items():
        tokens[index] = token
    return tokens


def token_count(tokenizer: TokenizerBase) -> int:
    """Tokens, up to the highest id."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_count(tokens: int, rows: int) -> None:
    """Raises TokenizerError where an embedding of `rows` has none for some of the tokens."""
    if tokens > rows:
        raise TokenizerError(
            f"the tokenizer has {tokens} tokens and the embedding {rows} rows, which leaves some without; convert with "
            f"--vocab-size {tokens} or more, or give the model another tokenizer first"
        )


def _filler(index: int) -> str:
    return f"[PAD{index}]"


def _filled(keys: dict[str, Any], rows: int) -> dict[str, Value]:
    """The keys with a token for each row of the embedding, which llama.cpp asks for."""
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
