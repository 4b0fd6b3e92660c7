"""SentencePiece models at run time: opening a model, and decoding token by token.

`PieceDecoder` follows `SentencePieceProcessor.Decode` (sentencepiece_processor.cc); `HfStream` follows
`LlamaTokenizer.convert_tokens_to_string` and `PreTrainedTokenizer._decode` (transformers 4.34.1).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece

from puna.errors import TokenIdError, TokenizerError, show
from puna.files import atomic_write, read_file
from puna.lazy import cached_property
from puna.tokenizer.sentencepiece.proto import NO_DUMMY_PREFIX, ModelSpec, read_spec
from puna.tokenizer.streams import TextStream

SPACE = "▁"

_FILE_LIMIT = 64 * 2**20
"""Maximum size of a tokenizer.model in bytes; those in use have up to 5 MB."""

_LIMITS = {"nbest_size": (-1, 512), "alpha": (0, 1e9)}
"""Limits of SentencePiece on numbers in `sp_model_kwargs`; -1 samples from all segmentations."""

_ARGUMENTS: dict[str, type] = {
    "enable_sampling": bool, "nbest_size": int, "alpha": float, "add_bos": bool, "add_eos": bool, "reverse": bool,
}  # fmt: skip
"""Arguments of `SentencePieceProcessor` that affect ids, and their types. Others open files or change result types."""


def read_model(path: Path) -> bytes:
    """Returns the bytes of a tokenizer.model.

    Raises:
        ModelNotFoundError: there is no such file.
    """
    return read_file(path, TokenizerError, _FILE_LIMIT)


def write_model_file(model: bytes, folder: Path, prefix: str | None) -> str:
    """Writes [prefix-]tokenizer.model into an existing folder; returns its path."""
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: no such folder; create it first, or use save_pretrained")
    path = folder / (f"{prefix}-tokenizer.model" if prefix else "tokenizer.model")
    with atomic_write(path) as file:
        file.write(model)
    return str(path)


def open_model(
    model: bytes, name: str, arguments: Mapping[str, Any] | None = None, without_prefix: bool = False
) -> tuple[Any, ModelSpec]:
    """Returns a `SentencePieceProcessor` and the settings of the model.

    Args:
        name: name of the model, for the error message.
        arguments: arguments of the processor, such as enable_sampling.
        without_prefix: add no space before a text, even if the model specifies it.

    Raises:
        TokenizerError: the bytes are not a model, or `arguments` are invalid.
    """
    spec = read_spec(model, name)
    if without_prefix:
        model, spec = model + NO_DUMMY_PREFIX, replace(spec, add_dummy_prefix=False)
    _check_arguments(arguments or {})
    processor = sentencepiece.SentencePieceProcessor(**(arguments or {}))
    try:
        processor.LoadFromSerializedProto(model)
        processor.id_to_piece(list(range(processor.get_piece_size())))
        processor.decode([processor.unk_id()])
    except Exception as exc:  # the library raises RuntimeError, IndexError, UnicodeDecodeError and others
        raise TokenizerError(f"{name}: SentencePiece cannot load the file ({exc}); download the file again") from exc
    try:
        processor.encode("a")
    except Exception as exc:  # for example, enable_sampling with a model type that cannot sample
        raise TokenizerError(f"{name}: SentencePiece cannot encode with {dict(arguments or {})} ({exc})") from exc
    return processor, spec


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        kind = _ARGUMENTS.get(name)
        if kind is None:
            raise TokenizerError(f"sp_model_kwargs: {show(name)} is not supported; use {', '.join(_ARGUMENTS)}")
        is_bool, is_number = isinstance(value, bool), isinstance(value, int if kind is int else (int, float))
        if not (is_bool if kind is bool else is_number and not is_bool):
            raise TokenizerError(f"sp_model_kwargs: {name} = {show(value)}; expected a value of type {kind.__name__}")
        low, high = _LIMITS.get(name, (0, 1))
        if not low <= value <= high:
            raise TokenizerError(f"sp_model_kwargs: {name} = {str(value)[:60]}; it must be from {low} to {high:g}")


class Pieces:
    """A SentencePiece vocabulary: ids, texts and types.

    Args:
        sp_model, spec: the results of `open_model`.

    Attributes:
        strips_prefix: whether decoding removes the space that encoding adds before a text.
        strips_all: whether decoding removes all leading spaces.
    """

    def __init__(self, sp_model: Any, spec: ModelSpec) -> None:
        self._sp = sp_model
        self.strips_prefix = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self.strips_all = spec.remove_extra_whitespaces
        self.count: int = sp_model.get_piece_size()
        self.unk_id: int = sp_model.unk_id()
        self.unk_surface: str = sp_model.decode([self.unk_id])

    def text(self, index: int) -> str:
        """Returns the piece of an id.

        Raises:
            TokenIdError: there is no such id.
        """
        if not 0 <= index < self.count:
            raise TokenIdError(
                f"token id {show(index)}; this vocabulary has ids 0 to {self.count - 1} and its added tokens"
            )
        piece: str = self._sp.id_to_piece(index)
        return piece

    def id_of(self, piece: str) -> int | None:
        """Returns the id of a piece, or None."""
        try:
            index: int = self._sp.piece_to_id(piece)
        except TypeError:  # a lone surrogate
            return None
        return None if index == self.unk_id and piece != self.text(index) else index

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of all control pieces: BOS, EOS, and other pieces that the model defines as control pieces."""
        flags = self._sp.is_control(list(range(self.count)))
        return frozenset(index for index, flag in enumerate(flags) if flag)

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """The texts of all control pieces."""
        return frozenset(map(self.text, self.control_ids))

    def is_control(self, index: int) -> bool:
        """Whether the piece of an id is a control piece, for which SentencePiece returns no text."""
        return bool(self._sp.is_control(index))

    def byte(self, index: int) -> int | None:
        """Returns the byte that a byte piece represents; None for other pieces."""
        return int(self.text(index)[3:5], 16) if self._sp.is_byte(index) else None


class PieceDecoder:
    """Decodes piece by piece; the joined texts equal one call of SentencePiece's `Decode`."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._at_start = pieces.strips_prefix
        self._bytes = b""

    def push(self, index: int, show_control: bool = False) -> str:
        """Adds the piece of an id; returns the text that is now complete."""
        byte = self._pieces.byte(index)
        if byte is not None:
            text, self._bytes = _characters(self._bytes + bytes((byte,)), final=False)
            return self._emit(text)
        if self._pieces.is_control(index):
            return self.push_text(self._pieces.text(index) if show_control else "")
        if index == self._pieces.unk_id:
            return self.push_text(self._pieces.unk_surface)
        before = self._end_bytes()
        piece = self._pieces.text(index)
        if self._at_start and piece.startswith(SPACE):
            piece = piece.lstrip(SPACE) if self._pieces.strips_all else piece[1:]
            self._at_start = self._pieces.strips_all
        return before + self._emit(piece.replace(SPACE, " "))

    def push_text(self, text: str) -> str:
        """Returns the characters of pending bytes, then text that is not a piece, unchanged."""
        return self._end_bytes() + self._emit(text)

    def rest(self) -> str:
        """Returns U+FFFD for each byte of an incomplete character; the run can continue."""
        return _characters(self._bytes, final=True)[0]

    def _end_bytes(self) -> str:
        """Ends a run of bytes; returns U+FFFD for each byte of an incomplete character."""
        text, self._bytes = self.rest(), b""
        return self._emit(text)

    def _emit(self, text: str) -> str:
        if text:
            self._at_start = False
        return text


def _characters(data: bytes, final: bool) -> tuple[str, bytes]:
    """Returns the complete characters at the front of UTF-8 bytes, and the remaining bytes; if `final`, none remain.

    Each invalid byte becomes one U+FFFD, and decoding restarts at the next byte.
    """
    text = ""
    while data:
        try:
            decoded, length = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as exc:
            text += data[: exc.start].decode() + "\ufffd"
            data = data[exc.start + 1 :]
            continue
        return text + decoded, data[length:]
    return text, b""


@dataclass
class SpStream(TextStream):
    """The behaviour "sp": SentencePiece's own text, with control pieces shown unless they are skipped.

    Attributes:
        skipped: ids to leave out.
        added: returns the text of a token beyond the model's vocabulary. Text after such a token is decoded
            separately, as it was encoded.
    """

    pieces: Pieces
    skipped: Set[int]
    added: Callable[[int], str]

    def __post_init__(self) -> None:
        self._run = PieceDecoder(self.pieces)

    def push(self, index: int) -> str:
        """Returns the characters of pending bytes that the id completes or ends, then the text of the id."""
        if index in self.skipped:
            return self._run.push_text("")
        if 0 <= index < self.pieces.count:
            return self._run.push(index, show_control=True)
        text = self._run.push_text(self.added(index))
        self._run = PieceDecoder(self.pieces)
        return text

    def rest(self) -> str:
        """Returns U+FFFD for each byte of an incomplete character."""
        return self._run.rest()


@dataclass
class HfStream(TextStream):
    """The behaviours "hf-legacy" and "hf".

    The tokens between added tokens form groups. The first token of a group loses its space prefix. Special tokens are
    shown unchanged and split the group into segments; each segment is one call of SentencePiece. The legacy behaviour
    puts a space *before* a segment that is followed by a special token, so segments are held back until they end.

    Attributes:
        token_of: returns the token of an id.
        skipped: ids to leave out.
        special: tokens that split a group into segments.
        added: tokens that end a group.
        separator: text between groups and added tokens.
        legacy: whether the behaviour is "hf-legacy".
    """

    pieces: Pieces
    token_of: Callable[[int], str]
    skipped: Set[int]
    special: Set[str]
    added: Set[str]
    separator: str
    legacy: bool

    def __post_init__(self) -> None:
        self._has_output = False
        self._start_group()

    def _start_group(self) -> None:
        self._run = PieceDecoder(self.pieces)
        self._held = ""
        self._count = 0
        self._after_special = False
        self._group_shown = False

    def push(self, index: int) -> str:
        """Returns the text of an id; in the legacy behaviour, of the segment that the id ends."""
        return "" if index in self.skipped else self.push_token(self.token_of(index))

    def push_token(self, token: str) -> str:
        """Returns the text of a token, as `push` does for an id."""
        if token in self.added:
            text = self._show(self._held + self._run.rest())
            separator = self.separator if self._has_output or self._group_shown else ""
            self._has_output = True
            self._start_group()
            return text + separator + token
        if self._count == 0:
            token = token.removeprefix(SPACE)
        self._count += 1
        return self._show(self._special_token(token) if token in self.special else self._piece(token))

    def rest(self) -> str:
        """Returns the last segment; a group with tokens but without text still gets its separator."""
        text = self._held + self._run.rest()
        starts_group = self._has_output and self._count > 0 and not self._group_shown
        return (self.separator if starts_group else "") + text

    def _special_token(self, token: str) -> str:
        space = " " if self.legacy and not self._after_special and self._count > 1 else ""
        text = space + self._held + self._run.rest() + token
        self._run, self._held, self._after_special = PieceDecoder(self.pieces), "", True
        return text

    def _piece(self, token: str) -> str:
        self._after_special = False
        index = self.pieces.id_of(token)
        text = self._run.push_text(token) if index is None else self._run.push(index)
        if self.legacy and not self.skipped:
            self._held += text
            return ""
        return text

    def _show(self, text: str) -> str:
        """Returns the text; the first text of a group follows the separator if there is text before the group."""
        if not text or self._group_shown:
            return text
        self._group_shown = True
        return (self.separator if self._has_output else "") + text
