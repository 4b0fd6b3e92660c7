"""A conversation with a model: its messages, the settings of answers, and the limit of the context."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from puna.cli.generate import first_piece
from puna.errors import RequestError

if TYPE_CHECKING:
    from puna.config import LlamaConfig
    from puna.llm import LLM, Options

Message = dict[str, Any]

_RESERVE = 4
"""Without a maximum for answers, old messages are dropped until 1 / _RESERVE of the context is free for the answer."""


@dataclass(frozen=True)
class Reply:
    """An answer of the model.

    Attributes:
        finish_reason: "stop", "length", or "interrupted" by Ctrl-C.
        dropped_messages: number of messages dropped before this answer, because the context was full.
        prompt_tokens, tokens: number of tokens of the conversation before the answer, and of the answer.
        prefill_tokens_per_second, decode_tokens_per_second: speeds; None if the answer was interrupted.
    """

    content: str
    finish_reason: str
    dropped_messages: int
    prompt_tokens: int
    tokens: int
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


class Conversation:
    """The messages of a conversation, and the model that answers them.

    Args:
        name: the model's name, for the user.
        settings: options of `LLM.start`.
        context: maximum number of tokens; None means the model's.

    Attributes:
        context: maximum number of tokens: `requested_context`, else the model's.
        fallback: sampling options that are used if the model's generation configuration does not sample and `settings`
            contain no temperature.

    Raises:
        RequestError: the model's context is shorter than `context`.
    """

    def __init__(self, name: str, llm: LLM, settings: Options, system: str | None, context: int | None) -> None:
        self.settings = settings
        self.fallback: Options = {}
        self.use_model(name, llm, context)
        self.reset(system)

    def use_model(self, name: str, llm: LLM, context: int | None) -> None:
        """Continues the conversation with another model or maximum number of tokens."""
        self.context = min(check_context(name, llm.config, context), llm.longest_text(self.settings.get("adapter")))
        self.name, self.llm, self.requested_context = name, llm, context

    def reset(self, system: str | None) -> None:
        """Restarts the conversation, with a system message or none."""
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[0] if self.messages else {"role": "", "content": ""}
        return str(first["content"]) if first["role"] == "system" else None

    @property
    def options(self) -> Options:
        """The options of the next answer."""
        if self.llm.generation_config.do_sample or "temperature" in self.settings:
            return self.settings
        return {**self.fallback, **self.settings}

    def undo(self) -> None:
        """Removes the last message of the user and its answer."""
        while self.messages and self.messages[-1]["role"] not in ("user", "system"):
            self.messages.pop()
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def say(
        self, message: str | Message, show: Callable[[str], None] = lambda piece: None, *, stoppable: bool = False
    ) -> Reply:
        """Adds a message and the model's answer.

        Args:
            message: a text of the user, or a message with a role.
            show: receives the answer in pieces.
            stoppable: whether Ctrl-C only stops the answer; the conversation then keeps the text so far. Before the
                first text, Ctrl-C raises KeyboardInterrupt, and the conversation is unchanged.

        Raises:
            PunaError: the message cannot be answered; the conversation is unchanged.
        """
        messages = [*self.messages, {"role": "user", "content": message} if isinstance(message, str) else message]
        messages, tokens, dropped = self._fit(messages)
        options: Any = {**self.options, "max_tokens": self._maximum(tokens)}
        answer, pieces = self.llm.start(messages, **options)
        content: list[str] = []
        completion = None
        try:
            for piece in itertools.chain([first_piece(pieces, tokens)], pieces):
                content.append(piece)
                show(piece)
            completion = answer.completion()
        except KeyboardInterrupt:
            if not stoppable or not any(content):
                raise
        finally:
            pieces.close()
        reply = "".join(content)
        self.messages = [*messages, {"role": "assistant", "content": reply}]
        return Reply(
            reply,
            "interrupted" if completion is None else completion.finish_reason,
            dropped,
            tokens,
            len(answer.ids),
            None if completion is None else completion.prefill_tokens_per_second,
            None if completion is None else completion.decode_tokens_per_second,
        )

    def _maximum(self, prompt_tokens: int) -> int:
        """Returns the maximum number of tokens of the answer to a prompt: the setting, else the model's."""
        from puna.options import settings_of

        settings = settings_of(self.settings, self.llm.generation_config, prompt_tokens, self.context, default=None)
        return min(settings.max_tokens, self.context - prompt_tokens)

    def dropped_note(self, reply: Reply) -> str:
        """Returns the note for an answer before which messages were dropped."""
        return (
            f"(the context of {self.context} tokens is full: the oldest {reply.dropped_messages} messages were dropped)"
        )

    def _fit(self, messages: list[Message]) -> tuple[list[Message], int, int]:
        """Drops the oldest turns until an answer fits; returns (messages, token count, number of dropped messages)."""
        reserve = min(self._maximum(0), self.context // _RESERVE)
        kept, tokens = messages, self._count(messages)
        while tokens > self.context - reserve and (shorter := _without_oldest_turn(kept)) is not None:
            kept, tokens = shorter, self._count(shorter)
        if tokens >= self.context:
            more = ", or raise --context" if self.context < self.llm.config.context_length else ""
            raise RequestError(
                f"the conversation would have {tokens} tokens; the context has {self.context}. Shorten the message"
                + more
            )
        return kept, tokens, len(messages) - len(kept)

    def _count(self, messages: list[Message]) -> int:
        return len(self.llm.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True))


def check_context(name: str, config: LlamaConfig, context: int | None) -> int:
    """Returns the maximum number of tokens of a conversation with the model `name`; None means the model's.

    Raises:
        RequestError: the model's context is shorter than `context`.
    """
    longest = config.context_length
    if context is not None and not 1 < context <= longest:
        raise RequestError(f"context is {context}; {name} supports 2 to {longest} tokens")
    return context or longest


def _without_oldest_turn(messages: list[Message]) -> list[Message] | None:
    """Returns the messages without the oldest user message and its answer; None if only one user message is left."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return [*messages[: users[0]], *messages[users[1] :]] if len(users) > 1 else None
