"""The tokenizer's files in a converted folder: copied as they are where the formats agree, written anew where not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from puna.errors import PunaError, TokenizerError
from puna.files import atomic_write
from puna.tokenizer import load_tokenizer
from puna.tokenizer.chat.templates import LLAMA_3, LLAMA_3_TOKENS
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.files.byte_level import write_tiktoken
from puna.tokenizer.files.gguf import check_count, token_count
from puna.tokenizer.files.recipes import find
from puna.tokenizer.sentencepiece.proto import PieceType, read_pieces
from puna.tokenizer.slow import LlamaTokenizer

_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_FOLDERS = ("additional_chat_templates",)


def tokenizer_files(source: Path) -> list[Path]:
    """Every file that a tokenizer at `source`, a folder or a file, may be read from."""
    if not source.is_dir():
        return [source]
    inside = [path for name in _FOLDERS for path in sorted((source / name).glob("*"))]
    return [path for path in (*(source / name for name in _FILES), *inside) if path.is_file()]


def check_instruct(source: Path, layout: str) -> int:
    """Whether a tokenizer can be given Llama 3's template: Meta's files have none, whether the model chats or not.

    Returns:
        the id that ends a turn.

    Raises:
        TokenizerError: it has a template, is no tokenizer of Llama 3, or goes to a layout that holds no templates.
    """
    if layout == "meta":
        raise TokenizerError("instruct adds a chat template, for which Meta's layout has no place; leave it out")
    tokenizer = load_tokenizer(source)
    vocabulary = tokenizer.get_vocab()
    missing = sorted(set(LLAMA_3_TOKENS) - vocabulary.keys())
    if missing or tokenizer.chat_template is not None:
        why = f"has no {missing[0]}" if missing else "has a chat template of its own"
        raise TokenizerError(f"{source}: instruct adds Llama 3's chat template, and the tokenizer {why}; leave it out")
    return vocabulary[LLAMA_3_TOKENS[-1]]


def check_rows(source: Path, rows: int) -> None:
    """Whether a vocabulary that was cut to `rows` still has one for each token.

    Raises:
        TokenizerError: it has not.
    """
    try:
        tokens = token_count(load_tokenizer(source).get_vocab())
    except PunaError:  # none is written then, which is said elsewhere
        return
    check_count(tokens, rows)


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copies a Hugging Face folder's tokenizer files as they are; False where it has none."""
    found = tokenizer_files(source)
    for path in found:
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        with atomic_write(copy) as file, path.open("rb") as original:
            shutil.copyfileobj(original, file)
    return bool(found)


def write_hf_tokenizer(source: Path, folder: Path, instruct: bool = False) -> list[str]:
    """Writes a tokenizer as Hugging Face folders have it; returns what the user should know.

    Args:
        source: where `load_tokenizer` finds it.
        instruct: give Llama 3's chat template to it; see `check_instruct`.
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
    """Writes `tokenizer.model` as Meta's code reads it; returns what the user should know."""
    try:
        tokenizer = load_tokenizer(source)
        data = _meta_model(source, tokenizer)
    except PunaError as exc:
        return [f"no tokenizer is written: {exc}"]
    if data is None:
        notes = write_hf_tokenizer(source, folder)
        return [
            *notes,
            "the vocabulary has no form in Meta's layout: Hugging Face's files are written, which puna reads there",
        ]
    with atomic_write(folder / "tokenizer.model") as file:
        file.write(data)
    return list(_unsaid(tokenizer, data))


def _meta_model(source: Path, tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> bytes | None:
    """A SentencePiece model or Llama 3's ranks; None where they are not all of the vocabulary."""
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


def _unsaid(tokenizer: LlamaTokenizer | LlamaTokenizerFast, model: bytes) -> Iterator[str]:
    """What of a tokenizer its `tokenizer.model` in Meta's layout does not say."""
    if tokenizer.chat_template not in (None, LLAMA_3):
        yield "the chat template has no place there"
    if not tokenizer.add_bos_token or tokenizer.add_eos_token:
        bos, eos = tokenizer.add_bos_token, tokenizer.add_eos_token
        yield f"add_bos_token {bos} and add_eos_token {eos} are not said there: readers put BOS before a text alone"
    if isinstance(tokenizer, LlamaTokenizer):
        types = read_pieces(model)[2]
        ordinary = (PieceType.NORMAL, PieceType.USER_DEFINED)
        special = [
            token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and types[index] in ordinary
        ]
        if special:
            yield f"{', '.join(special[:5])} would be special tokens, which their pieces there do not say"
