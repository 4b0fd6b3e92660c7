"""SentencePiece's decoding rules token by token, and transformers' rules around them.

The rules are those of `SentencePieceProcessor.Decode` (sentencepiece_processor.cc) and of
`LlamaTokenizer.convert_tokens_to_string` with `PreTrainedTokenizer._decode` (transformers 4.34.1).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Set
from typing import Any

from puna.errors import TokenizerError
from puna.tokenizer.stream import TextStream

SPACE = "▁"


class Pieces:
    """A SentencePiece vocabulary: ids, texts and kinds.

    Args:
        sp_model: a loaded `SentencePieceProcessor`.
        eats_prefix: whether decoding drops the space that encoding puts in front.
        eats_all: whether it drops every leading space.
    """

    def __init__(self, sp_model: Any, eats_prefix: bool, eats_all: bool) -> None:
        self._sp = sp_model
        self.eats_prefix = eats_prefix
        self.eats_all = eats_all
        self.count: int = sp_model.get_piece_size()
        self.unk_id: int = sp_model.unk_id()
        self.unk_surface: str = sp_model.decode([self.unk_id])
        self._control: frozenset[str] | None = None

    def text(self, index: int) -> str:
        """The piece of an id.

        Raises:
            TokenizerError: there is no such id.
        """
        if not 0 <= index < self.count:
            raise TokenizerError(
                f"token id {index}; this vocabulary has ids 0 to {self.count - 1} and its added tokens"
            )
        piece: str = self._sp.id_to_piece(index)
        return piece

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, or None."""
        index: int = self._sp.piece_to_id(piece)
        return None if index == self.unk_id and piece != self.text(index) else index

    def control_tokens(self) -> frozenset[str]:
        """Every control piece (BOS, EOS, and what else the model sets apart)."""
        if self._control is None:
            flags = self._sp.is_control(list(range(self.count)))
            self._control = frozenset(self.text(index) for index, flag in enumerate(flags) if flag)
        return self._control

    def is_control(self, index: int) -> bool:
        """Whether decoding shows nothing for the id."""
        return bool(self._sp.is_control(index))

    def byte(self, index: int) -> int | None:
        """The byte that a byte piece stands for; None for other pieces."""
        return int(self.text(index)[3:5], 16) if self._sp.is_byte(index) else None


class Run:
    """One call of SentencePiece's `Decode`, piece by piece."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._at_start = pieces.eats_prefix
        self._bytes = b""

    def push(self, index: int, show_control: bool = False) -> str:
        """Takes a piece by id."""
        byte = self._pieces.byte(index)
        if byte is not None:
            self._bytes += bytes((byte,))
            return self._started(self._characters(final=False))
        if self._pieces.is_control(index):
            return self.push_text(self._pieces.text(index) if show_control else "")
        if index == self._pieces.unk_id:
            return self.push_text(self._pieces.unk_surface)
        before = self.finish()
        piece = self._pieces.text(index)
        if self._at_start and piece.startswith(SPACE):
            piece = piece.lstrip(SPACE) if self._pieces.eats_all else piece[1:]
            self._at_start = self._pieces.eats_all
        return before + self._started(piece.replace(SPACE, " "))

    def push_text(self, text: str) -> str:
        """Takes text that is shown as it is."""
        return self.finish() + self._started(text)

    def finish(self) -> str:
        """Ends a run of bytes: what is still incomplete is wrong."""
        return self._started(self._characters(final=True))

    def _started(self, text: str) -> str:
        if text:
            self._at_start = False
        return text

    def _characters(self, final: bool) -> str:
        """The whole characters at the front of the bytes; a wrong byte is one U+FFFD, and the next a new start."""
        out = ""
        while self._bytes:
            decoder = codecs.getincrementaldecoder("utf-8")()
            try:
                out += decoder.decode(self._bytes, final)
            except UnicodeDecodeError as exc:
                out += self._bytes[: exc.start].decode() + "\ufffd"
                self._bytes = self._bytes[exc.start + 1 :]
                continue
            self._bytes = decoder.getstate()[0]
            break
        return out


class SpStream(TextStream):
    """The behaviour "sp": SentencePiece's own text, with special tokens shown where they are not skipped.

    Args:
        skipped: ids left out.
        added: the text of tokens beyond the model's vocabulary; what follows one starts afresh, as in encoding.
    """

    def __init__(self, pieces: Pieces, skipped: Set[int], show_control: bool, added: Callable[[int], str]) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._show_control = show_control
        self._added = added
        self._run = Run(pieces)

    def push(self, index: int) -> str:
        """The text of an id, after the characters that were incomplete before it."""
        if index in self._skipped:
            return self._run.push_text("")
        if 0 <= index < self._pieces.count:
            return self._run.push(index, self._show_control)
        text = self._run.finish() + self._added(index)
        self._run = Run(self._pieces)
        return text

    def finish(self) -> str:
        """U+FFFD for each byte of a character cut short."""
        return self._run.finish()


class HfStream(TextStream):
    """The behaviours "hf-legacy" and "hf".

    The tokens between added ones form groups; a group's first token loses its space prefix, its special tokens are
    shown as they are and cut it into segments, and each segment is one call of SentencePiece. The legacy behaviour
    puts a space *before* a segment that a special token follows: such segments are held back.

    Args:
        token_of: the token of an id.
        skipped: ids left out.
        special: tokens that cut a group into segments.
        added: tokens that end a group.
        separator: what stands between groups and added tokens.
        legacy: whether the behaviour is "hf-legacy".
    """

    def __init__(
        self,
        pieces: Pieces,
        token_of: Callable[[int], str],
        skipped: Set[int],
        special: Set[str],
        added: Set[str],
        separator: str,
        legacy: bool,
    ) -> None:
        self._pieces = pieces
        self._token_of = token_of
        self._skipped = skipped
        self._special = special
        self._added = added
        self._separator = separator
        self._legacy = legacy
        self._holds = legacy and not skipped
        self._something_before = False
        self._start_group()

    def _start_group(self) -> None:
        self._run = Run(self._pieces)
        self._held = ""
        self._count = 0
        self._after_special = False
        self._shown = False

    def push(self, index: int) -> str:
        """The text of an id; in the legacy behaviour, of the whole segment that it ends."""
        return "" if index in self._skipped else self.push_token(self._token_of(index))

    def push_token(self, token: str) -> str:
        """Takes a token by its text."""
        if token in self._added:
            return self._end_group() + self._end_added(token)
        if self._count == 0:
            token = token.removeprefix(SPACE)
        self._count += 1
        return self._show(self._special_token(token) if token in self._special else self._piece(token))

    def finish(self) -> str:
        """The last segment; a group without text still has its separator."""
        had_tokens, shown_before = self._count > 0, self._something_before
        text = self._show(self._held + self._run.finish())
        self._held = ""
        unseparated = had_tokens and shown_before and not self._shown
        return text + (self._separator if unseparated else "")

    def _special_token(self, token: str) -> str:
        space = " " if self._legacy and not self._after_special and self._count > 1 else ""
        text = space + self._held + self._run.finish() + token
        self._run, self._held, self._after_special = Run(self._pieces), "", True
        return text

    def _piece(self, token: str) -> str:
        self._after_special = False
        index = self._pieces.id_of(token)
        text = self._run.push_text(token) if index is None else self._run.push(index)
        if self._holds:
            self._held += text
            return ""
        return text

    def _end_group(self) -> str:
        text = self._show(self._held + self._run.finish())
        self._something_before |= self._shown
        self._start_group()
        return text

    def _end_added(self, token: str) -> str:
        text = (self._separator if self._something_before else "") + token
        self._something_before = True
        return text

    def _show(self, text: str) -> str:
        """A group's text, behind the separator if it is the group's first and something comes before."""
        if not text or self._shown:
            return text
        self._shown = True
        return (self._separator if self._something_before else "") + text
