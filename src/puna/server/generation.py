"""The path by which every endpoint generates: a `Generation` becomes a `Running`, which yields updates.

No module here knows the names of HTTP fields.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from puna.answer import Candidates, Completion
from puna.async_llm import AsyncLLM
from puna.engine import Stream, TokenLogprobs
from puna.options import Options
from puna.prompts import Message
from puna.server.errors import ApiError

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or a conversation for the chat template."""

FinishReason = Literal["stop", "length", "tool_calls", "invalid"]


@dataclass(frozen=True)
class Generation:
    """A request to generate, as all endpoints see it.

    Attributes:
        prompt: a text, token ids or a conversation.
        options: options of `LLM`, without `adapter`, `n` and `best_of`.
        adapter: the adapter's name; None for the base model.
        n: number of answers.
        best_of: number of candidates, of which the best n are returned; not for streams.
        tools: JSON descriptions of tools, for the chat template.
        tool_set: the tools that the answer may call.
        add_generation_prompt: end the prompt with the header of the assistant's answer.
        continue_final_message: continue the last message instead of answering it.
        template_kwargs: more variables of the chat template.
        priority: requests with lower numbers come first.
        salt: requests share cached prefixes only with requests of the same salt.
        prediction: a text that the answer is expected to resemble: a source of guessed tokens.
        progress: report how far the prompt has been read.
        include_stop: the stop string that ends the answer is part of it.
        skip_special_tokens: the text leaves special tokens out.
    """

    prompt: Prompt
    options: Options = field(default_factory=Options)
    adapter: str | None = None
    n: int = 1
    best_of: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_set: Any = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    salt: str = ""
    prediction: str | None = None
    progress: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class TextDelta:
    """Text that no later token can change, and the tokens whose text is complete with it.

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
class ToolCallStart:
    """The beginning of the answer's tool call number `index`, whose function is known."""

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


Update = TextDelta | ToolCallStart | ToolCallArguments | Finished | PrefillProgress


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens of a request; those of guessed tokens count only tokens of the prediction."""

    prompt: int
    completion: int
    cached: int = 0
    accepted: int = 0
    rejected: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Returns the sums."""
        return Usage(
            self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached,
            self.accepted + other.accepted, self.rejected + other.rejected,
        )  # fmt: skip


class Running:
    """A generation that has started: an iterator of its updates. Deleting or cancelling it ends the requests.

    Attributes:
        prompt_ids: the token ids of the prompt.
        on_end: called with the complete answers, and the time of the first text of a stream, from `time.monotonic`.
    """

    on_end: Callable[[Sequence[Completion], float | None], None] | None = None

    def __init__(self, candidates: Candidates, stream: Stream[Any]) -> None:
        self.prompt_ids = candidates.answers[0].request.prompt_ids
        self._candidates = candidates
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Update]:
        return self._updates()

    async def _updates(self) -> AsyncIterator[Update]:
        first = None
        async for choice, text in self._stream:
            if text:
                first = first or time.monotonic()
                yield TextDelta(choice, text)
        self._ended(first)
        for choice, completion in enumerate(self.completions):
            yield TextDelta(choice, "", completion.ids, completion.logprobs or ())
            yield Finished(choice, cast(FinishReason, completion.finish_reason), completion.stop)

    async def complete(self) -> tuple[Completion, ...]:
        """Waits for the end, and returns the answers."""
        await self._stream.wait_async()
        self._ended(None)
        return self.completions

    def _ended(self, first: float | None) -> None:
        if self.on_end is not None:
            self.on_end(self.completions, first)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The complete answers, after the last update."""
        first = self._candidates.completion()
        return (first, *first.alternatives)

    @property
    def usage(self) -> Usage:
        """Numbers of tokens, after the last update."""
        completions = self.completions
        tokens = sum(len(completion.ids) for completion in completions)
        return Usage(len(self.prompt_ids), tokens, completions[0].cached_tokens)

    @property
    def prompt_usage(self) -> Usage:
        """Numbers of tokens of the prompt, after the first update."""
        return Usage(len(self.prompt_ids), 0, self._candidates.answers[0].cached_tokens)

    def cancel(self) -> None:
        """Ends the requests; the iteration ends."""
        self._stream.close()


async def start(llm: AsyncLLM, generation: Generation) -> Running:
    """Starts to generate. Texts are encoded and chat templates are rendered in a thread.

    Raises:
        ApiError: the prompt exceeds the context.
        PunaError: an option is invalid, or the chat template refuses the conversation.
    """
    candidates = await asyncio.to_thread(_candidates, llm, generation)
    return Running(candidates, llm._runner.stream_batch(list(candidates.answers)))


def encode(llm: AsyncLLM, generation: Generation) -> tuple[int, ...]:
    """Returns the token ids of a prompt."""
    prompt = generation.prompt
    if isinstance(prompt, str) or not prompt or not isinstance(prompt[0], Mapping):
        return llm._encode(cast(str, prompt))
    ids: list[int] = llm.tokenizer.apply_chat_template(
        list(prompt),
        tools=generation.tools,
        add_generation_prompt=generation.add_generation_prompt and not generation.continue_final_message,
        continue_final_message=generation.continue_final_message,
        **generation.template_kwargs,
    )
    return tuple(ids)


def check_length(llm: AsyncLLM, count: int, generation: Generation) -> int:
    """Returns the number of tokens that fit in the context after a prompt of `count` tokens.

    Raises:
        ApiError: 400, if the prompt exceeds the context, or leaves no token for the answer.
    """
    longest = llm.longest_text(generation.adapter)
    free = longest - count
    if free < 0 or (free == 0 and generation.options.get("max_tokens") != 0):
        message = f"the prompt has {count} tokens, but the model's context is {longest} tokens"
        raise ApiError(400, f"{message}, which include the answer; shorten the prompt", code="context_length_exceeded")
    return free


def _candidates(llm: AsyncLLM, generation: Generation) -> Candidates:
    ids = encode(llm, generation)
    free = check_length(llm, len(ids), generation)
    is_chat = not isinstance(generation.prompt, str) and isinstance(generation.prompt[0], Mapping)
    options: Options = {**generation.options, "adapter": generation.adapter, "n": generation.n}
    options["salt"], options["priority"] = generation.salt, generation.priority
    if generation.best_of is not None:
        options["best_of"] = generation.best_of
    limit = options.get("max_tokens", "auto")
    if isinstance(limit, int):
        options["max_tokens"] = min(limit, free)  # a limit above the context allows nothing more than the context
    ends = llm._turn_end_ids if is_chat else frozenset()
    continues = generation.continue_final_message or not is_chat
    return llm._candidates([ids], continues, options, ends)[0]
