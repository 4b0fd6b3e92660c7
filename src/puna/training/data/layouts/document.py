"""`Document`: the text of one training example, and which of its characters are learned."""

from __future__ import annotations

from dataclasses import dataclass

from puna.training.batch import Source


@dataclass(frozen=True)
class Span:
    """Characters `start` to `stop` of a text, whose tokens have a weight of their own in the loss."""

    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class Document:
    """The text of one example, not yet tokenised.

    Attributes:
        text: the complete text; for a chat, as the chat template renders it.
        spans: the answers, ascending; other tokens have the weight of prompts.
        begins: add the tokens that the tokenizer adds before a text (BOS), unless the text is a chat.
        ends: add EOS, with the weight of the last span.
        is_continuous: a part of a long text, which may be split into windows.
    """

    text: str
    spans: tuple[Span, ...]
    source: Source
    begins: bool = False
    ends: bool = False
    is_continuous: bool = False
