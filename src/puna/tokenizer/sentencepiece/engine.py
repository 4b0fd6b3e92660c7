"""Opening a SentencePiece model: the package's processor and the settings it keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece

from puna.errors import ModelNotFoundError, TokenizerError
from puna.tokenizer.sentencepiece.proto import NO_DUMMY_PREFIX, ModelSpec, read_spec


def read_model(path: Path) -> bytes:
    """The bytes of a tokenizer.model.

    Raises:
        ModelNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such file; give the path of a SentencePiece tokenizer.model")
    return path.read_bytes()


def open_model(
    model: bytes, name: str, arguments: Mapping[str, Any] | None = None, without_prefix: bool = False
) -> tuple[Any, ModelSpec]:
    """A `SentencePieceProcessor` and the model's settings.

    Args:
        name: what the bytes are, for the error.
        arguments: of the processor, such as enable_sampling.
        without_prefix: put no space before a text, whatever the model says.

    Raises:
        TokenizerError: the bytes are no model, or `arguments` are wrong.
    """
    spec = read_spec(model, name)
    if without_prefix:
        model, spec = model + NO_DUMMY_PREFIX, replace(spec, add_dummy_prefix=False)
    try:
        processor = sentencepiece.SentencePieceProcessor(**(arguments or {}))
    except TypeError as exc:
        raise TokenizerError(f"sp_model_kwargs={dict(arguments or {})}: {exc}") from exc
    try:
        processor.LoadFromSerializedProto(model)
        processor.id_to_piece(list(range(processor.get_piece_size())))
        processor.decode([processor.unk_id()])
    except (RuntimeError, UnicodeDecodeError) as exc:  # the latter: pieces, or its own message, are no UTF-8
        raise TokenizerError(f"{name}: SentencePiece refuses it ({exc}); download the file again") from exc
    return processor, spec
