"""`Vocabulary`: the tokens of a tokenizer as llguidance needs them, and the rules for the first token of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from puna.engine.grammar import token_bits
from puna.errors import RequestError
from puna.grammars.library import make_tokenizer, special_name
from puna.grammars.token_bytes import token_bytes
from puna.lazy import cached_property
from puna.tokenizer.streams import StreamDecoder

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast


class Vocabulary:
    """A tokenizer's vocabulary for llguidance.

    It has one token more than the model, an end token: whether an answer may end does not depend on the model's own.

    Args:
        vocab_size: the model's number of logits.

    Attributes:
        library: the `llguidance.LLTokenizer`.
        special: names of the special tokens, which a grammar may contain; see `special_name`.
        size: number of tokens, with the additional one.
    """

    def __init__(self, tokenizer: LlamaTokenizer | LlamaTokenizerFast, vocab_size: int) -> None:
        self.size = vocab_size + 1
        self._tokenizer = tokenizer
        spellings = token_bytes(tokenizer)[:vocab_size]
        self._spellings = spellings + [None] * (vocab_size - len(spellings))
        names = {i: special_name(name) for i, name in tokenizer.skipped_tokens().items() if i < vocab_size and name}
        self._special_ids = frozenset(names)
        self.special = sorted(names.values())
        self.library = make_tokenizer(
            [names.get(i, f"<|unused {i}|>") if text is None else text for i, text in enumerate(self._spellings)]
        )

    def removes_space(self, prompt_ids: Sequence[int]) -> bool:
        """Returns whether the answer after `prompt_ids` begins without the space with which its first token begins.

        Args:
            prompt_ids: the prompt that the text of the answer continues, or nothing for a chat answer.

        Raises:
            RequestError: the text of the answer begins with a space that is not part of its tokens.
        """
        spaced, plain = self._probes
        if spaced is None or self._first_text(spaced) == self._text(spaced):
            return False
        if plain is not None and self._first_text(plain, prompt_ids) != self._text(plain):
            raise RequestError(
                "the tokenizer adds a space between the prompt's last token and the answer, which a grammar cannot "
                "describe; end the prompt with another token"
            )
        return self._first_text(spaced, prompt_ids) != self._text(spaced)

    @cached_property
    def first_tokens(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Two sets of tokens for the beginning of an answer that `removes_space`; see `Grammar.branches`.

        The text of the tokens of the first set is without the space with which their bytes begin, that of the second
        set is their bytes. The second set also has the special tokens, which only some grammars allow. Tokens in
        neither set lose another number of spaces, or have no text there.
        """
        removed, kept = [], []
        for index, spelling in enumerate(self._spellings):
            if spelling is None:
                kept += [index] if index in self._special_ids else []
                continue
            text = spelling
            if spelling.startswith(b" "):
                one = len(spelling) > 1 and not spelling.startswith(b"  ")
                text = spelling.removeprefix(b" ") if one else self._first_text(index).encode()
            if text == spelling:
                kept.append(index)
            elif text and b" " + text == spelling:
                removed.append(index)
        return token_bits(self.size - 1, removed), token_bits(self.size - 1, kept)

    @cached_property
    def _probes(self) -> tuple[int | None, int | None]:
        """A token that begins with one space, and a token without a space; None if there is no such token."""
        printable = [i for i, text in enumerate(self._spellings) if text is not None and text.strip().isalpha()]
        spaced = (i for i in printable if self._text(i) == " " + self._text(i).strip())
        plain = (i for i in printable if self._text(i).isalpha())
        return next(spaced, None), next(plain, None)

    def _text(self, index: int) -> str:
        return (self._spellings[index] or b"").decode()

    def _first_text(self, index: int, prompt_ids: Sequence[int] = ()) -> str:
        """Returns the text of a token as the first token of an answer."""
        decoder = StreamDecoder(self._tokenizer, True, prompt_ids)
        return decoder.push(index) + decoder.finish()
