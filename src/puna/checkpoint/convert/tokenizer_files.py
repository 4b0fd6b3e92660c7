"""The tokenizer's files in a converted folder: copied as they are where the formats agree, written anew where not."""

from __future__ import annotations

import shutil
from pathlib import Path

from puna.errors import PunaError, TokenizerError
from puna.files import atomic_write
from puna.tokenizer import load_tokenizer
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.load import find
from puna.tokenizer.slow import LlamaTokenizer
from puna.tokenizer.templates import LLAMA_3, LLAMA_3_TOKENS
from puna.tokenizer.tiktoken_file import write_tiktoken

_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_FOLDERS = ("additional_chat_templates",)


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copies a Hugging Face folder's tokenizer files as they are; False where it has none."""
    found = [name for name in _FILES if (source / name).is_file()]
    for name in found:
        with atomic_write(folder / name) as file, (source / name).open("rb") as original:
            shutil.copyfileobj(original, file)
    for name in _FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    return bool(found)


def write_hf_tokenizer(source: Path, folder: Path, instruct: bool = False) -> list[str]:
    """Writes a tokenizer as Hugging Face folders have it; returns what the user should know.

    Args:
        source: where `load_tokenizer` finds it.
        instruct: whether the model was trained to chat: Llama 3's own files do not tell, nor have a template.
    """
    if (source / "config.json").is_file() and copy_tokenizer(source, folder):
        return []
    try:
        tokenizer = load_tokenizer(source)
    except PunaError as exc:
        return [f"no tokenizer is written: {exc}"]
    if instruct and tokenizer.chat_template is None and set(LLAMA_3_TOKENS) <= tokenizer.get_vocab().keys():
        tokenizer.chat_template = LLAMA_3
    tokenizer.save_pretrained(folder)
    return []


def write_meta_tokenizer(source: Path, folder: Path) -> list[str]:
    """Writes `tokenizer.model` as Meta's code reads it; returns what the user should know."""
    try:
        data = _meta_model(source)
    except PunaError as exc:
        return [f"no tokenizer is written: {exc}"]
    if data is None:
        notes = write_hf_tokenizer(source, folder)
        return [
            *notes,
            "the vocabulary has no form in Meta's layout: tokenizer.json is written, which puna reads there",
        ]
    with atomic_write(folder / "tokenizer.model") as file:
        file.write(data)
    return []


def _meta_model(source: Path) -> bytes | None:
    """A SentencePiece model or Llama 3's ranks; None where the vocabulary is neither."""
    file, kind = find(source, prefer="tokenizer.model")
    if kind in ("sentencepiece", "tiktoken"):
        return file.read_bytes()
    tokenizer = load_tokenizer(source)
    if isinstance(tokenizer, LlamaTokenizer):
        beyond = [index for index in tokenizer.added_tokens_decoder if index >= tokenizer.vocab_size]
        if beyond:
            raise TokenizerError(f"{len(beyond)} added tokens lie outside the SentencePiece model, from id {beyond[0]}")
        model: bytes = tokenizer.sp_model.serialized_model_proto()
        return model
    assert isinstance(tokenizer, LlamaTokenizerFast)
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    return write_tiktoken(tokenizer.get_vocab(), added)
