"""The updates of a running generation, and its numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.engine import TokenLogprobs

FinishReason = Literal["stop", "length", "tool_calls", "invalid"]


@dataclass(frozen=True)
class TextDelta:
    """Text that no later token can change, and the tokens whose text ends within this text.

    Attributes:
        choice: index of the answer.
        ids: the tokens.
        tokens: their log-probabilities; empty if they were not requested.
    """

    choice: int
    text: str
    ids: tuple[int, ...] = ()
    tokens: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class ReasoningDelta(TextDelta):
    """Text of the reasoning that precedes the answer."""


@dataclass(frozen=True)
class ToolCallStart:
    """The beginning of a tool call: its number in the answer, its identifier and the name of its function."""

    choice: int
    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """A part of the JSON text of a tool call's arguments."""

    choice: int
    index: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The end of an answer; `stop` is the stop string, or the id of the end token, that ended the answer."""

    choice: int
    reason: FinishReason
    stop: str | int | None = None


@dataclass(frozen=True)
class PrefillProgress:
    """How far the prompt has been read: `done` tokens of `total`, of which `cached` were in the prefix cache."""

    done: int
    total: int
    cached: int


Update = TextDelta | ReasoningDelta | ToolCallStart | ToolCallArguments | Finished | PrefillProgress


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens of a request. `accepted` and `rejected` count tokens of the request's prediction.

    `reasoning` counts the tokens of `completion` that belong to the reasoning.
    """

    prompt: int
    completion: int
    cached: int = 0
    accepted: int = 0
    rejected: int = 0
    reasoning: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Returns the sums."""
        return Usage(
            self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached,
            self.accepted + other.accepted, self.rejected + other.rejected,
            self.reasoning + other.reasoning,
        )  # fmt: skip
