"""The tokenizer's files in a converted folder: copied if the layouts agree, else written from the loaded tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.errors import PunaError, TokenizerError
from puna.files import atomic_write
from puna.formats.gguf import open_gguf
from puna.formats.gguf_writer import Value
from puna.tokenizer import load_tokenizer
from puna.tokenizer.chat.templates import LLAMA_3, LLAMA_3_TOKENS
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.files.byte_level import write_tiktoken
from puna.tokenizer.files.gguf import check_count, filled, token_count
from puna.tokenizer.files.recipes import find
from puna.tokenizer.sentencepiece.proto import PieceType, read_pieces
from puna.tokenizer.slow import LlamaTokenizer

_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_FOLDERS = ("additional_chat_templates",)


def tokenizer_files(source: Path) -> list[Path]:
    """Returns every file from which a tokenizer at `source`, a folder or a file, may be read."""
    if not source.is_dir():
        return [source]
    inside = [path for name in _FOLDERS for path in sorted((source / name).glob("*"))]
    return [path for path in (*(source / name for name in _FILES), *inside) if path.is_file()]


def check_instruct(source: Path, layout: str) -> int:
    """Checks that Llama 3's chat template can be added to a tokenizer; returns the id of the end-of-turn token.

    Raises:
        TokenizerError: the tokenizer has a template or is not Llama 3's, or the layout cannot hold templates.
    """
    if layout == "meta":
        raise TokenizerError("instruct adds a chat template, which Meta's layout cannot hold; leave it out")
    tokenizer = load_tokenizer(source)
    vocabulary = tokenizer.get_vocab()
    missing = sorted(set(LLAMA_3_TOKENS) - vocabulary.keys())
    if missing or tokenizer.chat_template is not None:
        why = f"lacks {missing[0]}" if missing else "has a chat template already"
        raise TokenizerError(f"{source}: instruct adds Llama 3's chat template, but the tokenizer {why}; leave it out")
    return vocabulary[LLAMA_3_TOKENS[-1]]


def check_rows(source: Path, rows: int) -> None:
    """Raises TokenizerError if a vocabulary truncated to `rows` has fewer rows than the tokenizer has tokens."""
    try:
        tokens = token_count(load_tokenizer(source).get_vocab())
    except PunaError:  # then no tokenizer is written, which a note of the target says
        return
    check_count(tokens, rows)


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
    if not instruct and (source / "config.json").is_file() and copy_tokenizer(source, folder):
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
            "Meta's layout cannot hold the vocabulary: Hugging Face's files are written, which puna reads in it too",
        ]
    with atomic_write(folder / "tokenizer.model") as file:
        file.write(data)
    return list(_lost(tokenizer, data))


def gguf_tokenizer(path: Path, rows: int, instruct: bool = False) -> dict[str, Value]:
    """Returns the keys under `tokenizer.` of a GGUF file for the tokenizer of a path.

    Args:
        path: a folder or file; a SentencePiece model is preferred to tokenizer.json; keys of a GGUF file are copied.
        rows: rows of the model's embedding; the vocabulary is filled up to as many tokens.
        instruct: add Llama 3's chat template to a tokenizer of Llama 3 without one.

    Raises:
        TokenizerError: there is no tokenizer, it has more tokens than `rows`, or llama.cpp has no such kind.
    """
    file, kind = find(path, prefer="tokenizer.model")
    if kind == "gguf":
        stored = open_gguf(file).metadata
        keys: dict[str, Any] = {key: stored[key] for key in stored if key.startswith("tokenizer.")}
        return filled(keys | ({"tokenizer.chat_template": LLAMA_3} if instruct else {}), rows)
    if kind == "sentencepiece":
        return LlamaTokenizer.from_pretrained(path).gguf_metadata(rows)
    tokenizer = load_tokenizer(path)
    if instruct:
        tokenizer.chat_template = LLAMA_3
    return tokenizer.gguf_metadata(rows)


def _meta_model(source: Path, tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> bytes | None:
    """Returns a SentencePiece model or Llama 3's ranks; None if the vocabulary has tokens in addition to them."""
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


def _lost(tokenizer: LlamaTokenizer | LlamaTokenizerFast, model: bytes) -> Iterator[str]:
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
