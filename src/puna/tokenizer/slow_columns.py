"""The columns of a sequence that SentencePiece encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from puna.errors import TokenizerError


@dataclass(frozen=True)
class SlowColumns:
    """Ids with their masks; words and offsets are the fast tokenizer's.

    Attributes:
        first_length: tokens of the first text; where the second begins follows from it.
        token_of: the token of an id.
    """

    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]
    first_length: int
    token_of: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> list[str]:
        """The vocabulary's spelling of each token."""
        return [self.token_of(index) for index in self.ids]

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 or 1 for the text a token comes from, None for special ones."""
        found: list[int | None] = []
        seen = 0
        for special in self.special_tokens_mask:
            found.append(None if special else int(seen >= self.first_length))
            seen += not special
        return found

    @property
    def word_ids(self) -> list[int | None]:
        """Not known here."""
        raise TokenizerError("word ids need the fast tokenizer; load with LlamaTokenizerFast")

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Not known here."""
        raise TokenizerError("offsets need the fast tokenizer; load with LlamaTokenizerFast")
