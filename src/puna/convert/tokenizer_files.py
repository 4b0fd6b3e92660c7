"""The tokenizer of a converted model: Hugging Face's files, copied or written; Meta's file; the keys of a GGUF file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from puna.errors import PunaError, TokenizerError, show
from puna.files import atomic_write, has_file
from puna.formats.gguf import open_gguf
from puna.formats.gguf_writer import Value
from puna.tokenizer import load_tokenizer
from puna.tokenizer.arguments import Arguments
from puna.tokenizer.chat.templates import LLAMA_3, LLAMA_3_TOKENS
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.files.byte_level import name_of, write_tiktoken
from puna.tokenizer.files.gguf import PREFIX
from puna.tokenizer.files.recipes import find, sentencepiece_recipe
from puna.tokenizer.sentencepiece.proto import PieceType, read_pieces, read_spec
from puna.tokenizer.slow import LlamaTokenizer
from puna.tokenizer.special import AddedToken

_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_FOLDERS = ("additional_chat_templates",)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_DECOMPOSED = "e\u0301"
"""A letter and its accent in two characters; NFC turns them into one."""

_ADDED_SCORE = -1000.0
"""Score of tokens beyond the vocabulary, so that no merge produces them (llama.cpp's converter)."""


def tokenizer_files(source: Path) -> list[Path]:
    """Returns every file from which a tokenizer at `source`, a folder or a file, may be read."""
    if not source.is_dir():
        return [source]
    inside = [path for name in _FOLDERS for path in sorted((source / name).glob("*"))]
    files = (*(source / name for name in _FILES), *inside)
    return [path for path in files if has_file(path, TokenizerError)]


def check_instruct(source: Path, layout: str) -> int:
    """Checks that Llama 3's chat template can be added to a tokenizer; returns the id of the end-of-turn token.

    Raises:
        TokenizerError: the tokenizer has a template or is not Llama 3's, or the layout cannot hold templates.
    """
    if layout == "meta":
        raise TokenizerError("instruct adds a chat template, which Meta's layout cannot hold; convert without instruct")
    tokenizer = load_tokenizer(source)
    vocabulary = tokenizer.get_vocab()
    missing = sorted(set(LLAMA_3_TOKENS) - vocabulary.keys())
    if missing or tokenizer.chat_template is not None:
        flaw = f"lacks {missing[0]}" if missing else "has a chat template already"
        raise TokenizerError(
            f"{source}: instruct adds Llama 3's chat template, but the tokenizer {flaw}; omit instruct"
        )
    return vocabulary[LLAMA_3_TOKENS[-1]]


def check_rows(source: Path, rows: int) -> None:
    """Raises TokenizerError if the tokenizer has more tokens than the `rows` rows of the embedding."""
    try:
        tokens = _token_count(load_tokenizer(source).get_vocab())
    except PunaError:  # no tokenizer will be written, and a note will say so
        return
    _check_count(tokens, rows)


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copies the tokenizer files of a Hugging Face folder; returns whether it has any."""
    files = tokenizer_files(source)
    for path in files:
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        with atomic_write(copy) as file, path.open("rb") as original:
            shutil.copyfileobj(original, file)
    return bool(files)


def write_hf_tokenizer(source: Path, folder: Path, instruct: bool = False) -> list[str]:
    """Writes a tokenizer in Hugging Face's files; returns notes for the user.

    Args:
        source: a path that `load_tokenizer` accepts.
        instruct: add Llama 3's chat template; see `check_instruct`.
    """
    if not instruct and has_file(source / "config.json", TokenizerError) and copy_tokenizer(source, folder):
        return []
    try:
        tokenizer = load_tokenizer(source)
    except PunaError as exc:
        return [f"no tokenizer is written: {exc}"]
    if instruct:
        tokenizer.chat_template = LLAMA_3
    tokenizer.save_pretrained(folder)
    return []


def write_meta_tokenizer(source: Path, folder: Path) -> list[str]:
    """Writes `tokenizer.model` for Meta's code; returns notes for the user."""
    try:
        tokenizer = load_tokenizer(source)
        data = _meta_model(source, tokenizer)
    except PunaError as exc:
        return [f"no tokenizer is written: {exc}"]
    if data is None:
        notes = write_hf_tokenizer(source, folder)
        return [
            *notes,
            "Meta's layout cannot hold the vocabulary: Hugging Face's files are written instead, which puna reads too",
        ]
    with atomic_write(folder / "tokenizer.model") as file:
        file.write(data)
    return list(_loss_notes(tokenizer, data))


def _meta_model(source: Path, tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> bytes | None:
    """Returns the bytes of tokenizer.model (SentencePiece or tiktoken); None if the file cannot hold all tokens."""
    file, kind = find(source, prefer="tokenizer.model")
    if kind == "tiktoken":
        return file.read_bytes()
    if kind == "sentencepiece":
        model = file.read_bytes()
        return model if len(tokenizer) <= len(read_pieces(model)[0]) else None
    if isinstance(tokenizer, LlamaTokenizer):
        model = tokenizer.sp_model.serialized_model_proto()
        return model if len(tokenizer) <= tokenizer.vocab_size else None
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    return write_tiktoken(tokenizer.get_vocab(), added)


def _loss_notes(tokenizer: LlamaTokenizer | LlamaTokenizerFast, model: bytes) -> Iterator[str]:
    """Yields notes on the properties of a tokenizer that `tokenizer.model` in Meta's layout cannot hold."""
    if tokenizer.chat_template not in (None, LLAMA_3):
        yield "Meta's layout cannot hold the chat template"
    if not tokenizer.add_bos_token or tokenizer.add_eos_token:
        bos, eos = tokenizer.add_bos_token, tokenizer.add_eos_token
        yield f"Meta's layout cannot hold add_bos_token {bos} and add_eos_token {eos}: readers add only BOS to a text"
    if isinstance(tokenizer, LlamaTokenizer):
        types = read_pieces(model)[2]
        ordinary = (PieceType.NORMAL, PieceType.USER_DEFINED)
        special = [
            token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and types[index] in ordinary
        ]
        if special:
            yield f"{', '.join(special[:5])} are special tokens, but their pieces in Meta's layout are ordinary ones"


def gguf_tokenizer(path: Path, rows: int, instruct: bool = False) -> tuple[dict[str, Value], list[str]]:
    """Returns the keys under `tokenizer.` of a GGUF file, with which llama.cpp encodes to the same ids, and notes.

    Args:
        path: a folder or file; a SentencePiece model is preferred to tokenizer.json; keys of a GGUF file are copied.
        rows: rows of the model's embedding; the vocabulary is padded to this number of tokens.
        instruct: add Llama 3's chat template to a tokenizer of Llama 3 without one.

    Raises:
        TokenizerError: there is no tokenizer, it has more tokens than `rows`, or llama.cpp does not support its type.
    """
    file, kind = find(path, prefer="tokenizer.model")
    if kind == "gguf":
        stored = open_gguf(file).metadata
        keys: dict[str, Any] = {key: stored[key] for key in stored if key.startswith("tokenizer.")}
        return _fill_rows(keys | ({"tokenizer.chat_template": LLAMA_3} if instruct else {}), rows), []
    tokenizer = _slow_tokenizer(path) if kind == "sentencepiece" else load_tokenizer(path)
    if instruct and kind != "sentencepiece":
        tokenizer.chat_template = LLAMA_3
    # Checked first, since the code below allocates lists of this length.
    _check_count(_token_count(tokenizer.get_vocab()), rows)
    added = tokenizer.added_tokens_decoder
    if isinstance(tokenizer, LlamaTokenizer):
        keys = _model_keys(tokenizer.sp_model.serialized_model_proto(), added)
    else:
        keys = _pipeline_keys(tokenizer.backend_tokenizer, added, tokenizer.unk_token_id)
    notes = _normalizer_notes(load_tokenizer(path) if kind == "sentencepiece" else tokenizer)
    return _fill_rows(keys | _setting_keys(tokenizer), rows), notes


def _slow_tokenizer(path: Path) -> LlamaTokenizer:
    """Loads `LlamaTokenizer` without its notice about the default of `legacy`."""
    recipe = sentencepiece_recipe(path, Arguments())
    recipe.arguments.setdefault("legacy", True)
    return LlamaTokenizer.from_recipe(recipe)


def _normalizer_notes(tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> list[str]:
    """Returns a note if the tokenizer composes characters (NFC), which readers of GGUF files do not do."""
    normalizer = tokenizer.backend_tokenizer.normalizer if isinstance(tokenizer, LlamaTokenizerFast) else None
    if normalizer is None or normalizer.normalize_str(_DECOMPOSED) == _DECOMPOSED:
        return []
    return ["GGUF has no key for the tokenizer's normalizer (NFC): readers encode decomposed characters differently"]


def _model_keys(model: bytes, added: Mapping[int, AddedToken]) -> dict[str, Value]:
    """Returns the vocabulary keys of a SentencePiece model and its added tokens."""
    pieces, scores, types = read_pieces(model)
    spec = read_spec(model, "the SentencePiece model")
    return _llama_keys(pieces, scores, types, added) | {
        f"{PREFIX}add_space_prefix": spec.add_dummy_prefix,
        f"{PREFIX}remove_extra_whitespaces": spec.remove_extra_whitespaces,
    }


def _pipeline_keys(pipeline: Tokenizer, added: Mapping[int, AddedToken], unk_id: int | None) -> dict[str, Value]:
    """Returns the vocabulary keys of a pipeline: BPE over bytes, or over characters with bytes as a fallback.

    Raises:
        TokenizerError: the pipeline is not BPE, or its pre-tokenizer has no name in GGUF.
    """
    model = json.loads(pipeline.to_str())["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"the tokenizer's type is {show(model.get('type'))}; GGUF files of LLaMA models need BPE")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    tokens = [_placeholder(index) for index in range(_token_count(model["vocab"]))]
    for token, index in model["vocab"].items():
        tokens[index] = token
    if model.get("byte_fallback"):
        return _character_bpe(pipeline, tokens, pairs, added, unk_id)
    types = [int(PieceType.NORMAL)] * len(tokens)
    _insert_added(added, tokens, types)
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": name_of(pipeline),
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}token_type": np.array(types, np.int32),
        f"{PREFIX}merges": [" ".join(pair) for pair in pairs],
    }


def _insert_added(added: Mapping[int, AddedToken], tokens: list[str], types: list[int]) -> None:
    """Writes added tokens into the lists of a vocabulary: they replace ordinary tokens or follow the last one."""
    for index, token in added.items():
        while len(tokens) <= index:
            tokens.append(_placeholder(len(tokens)))
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
    """Returns the keys of a SentencePiece vocabulary in a tokenizer.json: a piece's score is minus its merge rank."""
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
    return _llama_keys(tokens, scores, types, added) | {f"{PREFIX}add_space_prefix": first[:1] != ["a"]}


def _llama_keys(
    tokens: list[str], scores: list[float], types: list[int], added: Mapping[int, AddedToken]
) -> dict[str, Value]:
    """Returns the keys of a SentencePiece vocabulary, whose `tokenizer.ggml.model` is "llama"."""
    _insert_added(added, tokens, types)
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


def _setting_keys(tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> dict[str, Value]:
    """Returns the keys for the ids of special tokens, for adding BOS and EOS, and for chat templates."""
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unknown": tokenizer.unk_token_id}
    ids["padding"] = tokenizer.pad_token_id
    keys: dict[str, Value] = {f"{PREFIX}{name}_token_id": index for name, index in ids.items() if index is not None}
    keys[f"{PREFIX}add_bos_token"] = tokenizer.add_bos_token
    keys[f"{PREFIX}add_eos_token"] = tokenizer.add_eos_token
    templates = tokenizer.chat_template
    by_name = {"default": templates} if isinstance(templates, str) else dict(templates or {})
    if "default" in by_name:
        keys["tokenizer.chat_template"] = by_name.pop("default")
    if by_name:
        keys["tokenizer.chat_templates"] = list(by_name)
        keys |= {f"tokenizer.chat_template.{name}": text for name, text in by_name.items()}
    return keys


def _token_count(vocabulary: Mapping[str, int]) -> int:
    """Returns the highest id plus 1."""
    return max(vocabulary.values(), default=-1) + 1


def _check_count(tokens: int, rows: int) -> None:
    """Raises TokenizerError if there are more tokens than rows of the embedding."""
    if tokens > rows:
        raise TokenizerError(
            f"the tokenizer has {tokens} tokens and the embedding {rows} rows, so tokens lack a row; convert with "
            f"vocab_size {tokens} or more, or give the model another tokenizer first"
        )


def _placeholder(index: int) -> str:
    """Returns a placeholder for an id without a token."""
    return f"[PAD{index}]"


def _fill_rows(keys: dict[str, Any], rows: int) -> dict[str, Value]:
    """Returns the keys with one token per row of the embedding, as llama.cpp requires."""
    tokens = list(keys.get(f"{PREFIX}tokens", []))
    if not tokens:
        raise TokenizerError("the GGUF file has no tokens; give the folder of the model's own tokenizer")
    _check_count(len(tokens), rows)
    missing = range(len(tokens), rows)
    if missing:
        keys[f"{PREFIX}tokens"] = tokens + [_placeholder(index) for index in missing]
        types = np.asarray(keys.get(f"{PREFIX}token_type", [PieceType.NORMAL] * len(tokens)), np.int32)
        keys[f"{PREFIX}token_type"] = np.append(types, np.full(len(missing), PieceType.UNUSED, np.int32))
        if f"{PREFIX}scores" in keys:
            scores = np.asarray(keys[f"{PREFIX}scores"], np.float32)
            keys[f"{PREFIX}scores"] = np.append(scores, np.full(len(missing), _ADDED_SCORE, np.float32))
    return keys
