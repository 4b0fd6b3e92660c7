"""Generation of answers for all endpoints: `start` starts a `Generation`; the `Running` it returns yields updates.

This module does not know the names of HTTP fields.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, cast

from puna.answer import Candidates, Completion, Delta, PromptProgress
from puna.async_llm import AsyncLLM
from puna.config import GenerationDefaults
from puna.engine import PrefixMiss, Stream, TokenLogprobs
from puna.grammars.rules import OPTIONS
from puna.options import Options
from puna.prompts import ChatArguments, Message, is_messages
from puna.server.errors import ApiError
from puna.server.thinking import ThinkingParser, thinking_parser
from puna.server.tools.history import needs_tools
from puna.server.tools.parser import CallArguments, CallStart, Piece, Text
from puna.server.tools.plan import ToolPlan, make_plan
from puna.server.tools.toolset import ToolSet
from puna.server.updates import (
    Finished,
    FinishReason,
    PrefillProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
    Update,
    Usage,
)

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or a conversation for the chat template."""


@dataclass(frozen=True)
class Generation:
    """A request to generate, in the form that all endpoints share.

    Attributes:
        prompt: a text, token ids or a conversation.
        more_prompts: further prompts, each with n answers.
        options: options of `LLM`, without `adapter`, `n` and `best_of`.
        adapter: the adapter's name; None for the base model.
        n: number of answers.
        best_of: number of candidates, of which the best n are returned; not for streams.
        tools: JSON descriptions of tools for the chat template; ignored if `tool_set` is set.
        tool_set: the tools that the answer may call.
        add_generation_prompt: end the prompt with the header of the assistant's answer.
        continue_final_message: continue the last message instead of answering it.
        template_kwargs: more variables of the chat template.
        chat_template: the chat template, instead of the model's.
        priority: requests with lower numbers come first.
        salt: requests share cached prefixes only with requests of the same salt.
        prediction: a text that the answer is expected to resemble: a source of guessed tokens.
        explain_prefix: find out why the prefix cache did not contain the complete prompt.
        progress: report how far the prompt has been read.
        include_stop: keep the stop string at the end of the answer's text.
        skip_special_tokens: omit special tokens from the text.
    """

    prompt: Prompt
    more_prompts: Sequence[Prompt] = field(default=(), kw_only=True)
    options: Options = field(default_factory=Options)
    adapter: str | None = None
    n: int = 1
    best_of: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_set: ToolSet | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    priority: int = 0
    salt: str = ""
    prediction: str | None = None
    explain_prefix: bool = False
    progress: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True

    @property
    def sequences(self) -> int:
        """Number of sequences that are generated."""
        return (1 + len(self.more_prompts)) * max(self.n, self.best_of or 1)


class Running:
    """A running generation: an iterator of updates. Cancelling or deleting it ends its requests in the engine.

    The answers to prompt i have the indices i * n to i * n + n - 1.

    Args:
        thinking: the parsers of the reasoning in the answers; None for answers without reasoning.

    Attributes:
        prompts: the token ids of the prompts.
        on_end: called when the answers are complete.
        ignored: paths of the keywords that were ignored in the schemas of tools.
    """

    on_end: Callable[[], None] | None = None

    def __init__(
        self,
        candidates: Sequence[Candidates],
        stream: Stream[tuple[int, Delta | PromptProgress]],
        plan: ToolPlan | None = None,
        thinking: Sequence[ThinkingParser | None] = (),
    ) -> None:
        self.ignored = () if plan is None else plan.ignored
        count = sum(item.n for item in candidates)
        self._parsers = [None if plan is None else plan.parser() for _ in range(count)]
        self.prompts = [item.answers[0].request.prompt_ids for item in candidates]
        self._thinking = thinking or [None] * count
        self._reasoning_tokens = 0
        self._candidates = candidates
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Update]:
        return self._best() if self._candidates[0].ranked else self._updates()

    async def encoded(self, encode: Callable[[Update], bytes]) -> AsyncIterator[bytes]:
        """Yields the encoded updates. Those that have arrived at the same time are joined, to be sent at once."""
        joined = b""
        try:
            async for update in self:
                joined += encode(update)
                if joined and not self._stream.has_news:
                    yield joined
                    joined = b""
        except Exception:
            if joined:
                yield joined
            raise
        if joined:
            yield joined

    async def _updates(self) -> AsyncIterator[Update]:
        answers = [(index, answer) for index, item in enumerate(self._candidates) for answer in item.required]
        first = self._candidates[0]
        # Equal answers are generated once.
        copies = range(first.n) if first.equal else range(1)
        async for index, piece in self._stream:
            if isinstance(piece, PromptProgress):
                yield PrefillProgress(piece.done, piece.total, piece.cached)
                continue
            prompt, answer = answers[index]
            for copy in copies:
                choice = prompt * first.n + copy if first.equal else index
                for update in self._parse(choice, piece, answer.stop):
                    yield update
        self._call_on_end()

    async def _best(self) -> AsyncIterator[Update]:
        """Yields the best answers, after all candidates are complete."""
        await self._stream.wait_async()
        self._call_on_end()
        for choice, completion in enumerate(self.completions):
            delta = Delta(completion.text, completion.ids, completion.logprobs or (), completion.finish_reason)
            for update in self._parse(choice, delta, completion.stop):
                yield update

    def _parse(self, choice: int, delta: Delta, stop: str | int | None) -> Iterator[Update]:
        """Yields the updates for a part of an answer. The tokens of a tool call are in a `TextDelta` without text."""
        parser, reason = self._parsers[choice], cast(str | None, delta.finish_reason)
        if (thinking := self._thinking[choice]) is not None:
            reasoning, delta = thinking.split(delta)
            if reasoning is not None:
                self._reasoning_tokens += len(reasoning.ids)
                yield ReasoningDelta(choice, reasoning.text, reasoning.ids, reasoning.logprobs)
        pieces: list[Piece] = [Text(delta.text)] if parser is None else parser.feed(delta.text)
        if parser is not None and reason is not None:
            last, reason = parser.finish(reason)
            pieces += last
        text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        if text or delta.ids:
            yield TextDelta(choice, text, delta.ids, delta.logprobs)
        for piece in pieces:
            if isinstance(piece, CallStart):
                yield ToolCallStart(choice, piece.index, piece.id, piece.name)
            elif isinstance(piece, CallArguments):
                yield ToolCallArguments(choice, piece.index, piece.text)
        if reason is not None:
            yield Finished(choice, cast(FinishReason, reason), stop)

    def _call_on_end(self) -> None:
        if self.on_end is not None:
            self.on_end()

    @property
    def completions(self) -> list[Completion]:
        """The complete answers, after the last update."""
        firsts = [item.completion() for item in self._candidates]
        return [completion for first in firsts for completion in (first, *first.alternatives)]

    def prompt_logprobs(self, prompt: int = 0) -> tuple[TokenLogprobs | None, ...] | None:
        """Returns the log-probabilities of the tokens of a prompt, after the first update of its first answer."""
        return self._candidates[prompt].answers[0].prompt_logprobs

    @property
    def usage(self) -> Usage:
        """Numbers of tokens so far, including the tokens of candidates that are not returned."""
        tokens = accepted = rejected = 0
        for item in self._candidates:
            copies = item.n if item.equal else 1
            for answer in item.required:
                tokens += len(answer.ids) * copies
                accepted += answer.prediction[0] * copies
                rejected += answer.prediction[1] * copies
        completion = Usage(0, tokens, accepted=accepted, rejected=rejected, reasoning=self._reasoning_tokens)
        return completion + self.prompt_usage

    @property
    def prefix_miss(self) -> PrefixMiss | None:
        """Why the prefix cache did not contain the complete first prompt; known after the first update."""
        return self._candidates[0].answers[0].prefix_miss

    @property
    def prompt_usage(self) -> Usage:
        """Numbers of tokens of the prompts; known after the first update."""
        cached = sum(item.answers[0].cached_tokens for item in self._candidates)
        return Usage(sum(map(len, self.prompts)), 0, cached)

    def cancel(self) -> None:
        """Ends the requests; the iteration ends."""
        self._stream.close()


_READERS = ThreadPoolExecutor(2, "puna-prompt")
"""Renders and encodes prompts. With more threads, requests that arrive together compete for Python's lock, and start
more processes for templates; the step of the engine that reads the first prompt then begins late."""

_TEMPLATES = ThreadPoolExecutor(2, "puna-template")
"""Renders templates of requests, which may be slow and must not delay other requests."""

_COMPILERS = ThreadPoolExecutor(2, "puna-compile")
"""Compiles schemas and grammars. Compilation may take seconds, and must not delay other requests."""


async def start(llm: AsyncLLM, generation: Generation) -> Running:
    """Starts to generate. Texts are encoded, and chat templates are rendered, in a thread.

    Raises:
        ApiError: the prompt exceeds the context.
        PunaError: an option is invalid, or the chat template refuses the conversation.
    """
    plan, loop = None, asyncio.get_running_loop()
    if _has_rules(generation):
        plan = await loop.run_in_executor(_COMPILERS, _plan, llm, generation, llm._rule)
    readers = _READERS if generation.chat_template is None else _TEMPLATES
    candidates = await loop.run_in_executor(readers, _candidates, llm, generation, plan)
    answers = [answer for item in candidates for answer in item.required]
    thinking = [parser for item in candidates for parser in _thinking(llm, generation, item)]
    return Running(candidates, llm._runner.stream_batch(answers), plan, thinking)


def _thinking(llm: AsyncLLM, generation: Generation, candidates: Candidates) -> list[ThinkingParser | None]:
    """Returns the parsers of the reasoning in the answers to a prompt. An answer that follows a rule has none."""
    follows_rule = any(generation.options.get(name) for name in OPTIONS) or (
        generation.tool_set is not None and generation.tool_set.mode == "required"
    )
    if not is_messages(generation.prompt) or generation.continue_final_message or follows_rule:
        return [None] * candidates.n
    template = generation.chat_template or llm.tokenizer.get_chat_template(tools=generation.tools)
    prompt = candidates.answers[0].request.prompt_ids
    return [thinking_parser(template, prompt, llm.tokenizer) for _ in range(candidates.n)]


def _has_rules(generation: Generation) -> bool:
    """Returns whether answers follow rules, or the conversation has tools."""
    if generation.tool_set is not None or any(generation.options.get(name) for name in OPTIONS):
        return True
    return is_messages(generation.prompt) and needs_tools(cast(Sequence[Message], generation.prompt))


def _plan(llm: AsyncLLM, generation: Generation, compile_rules: Callable[[Options], object]) -> ToolPlan | None:
    """Returns how to generate an answer with tools, or None without tools. Compiles the rules of the answer."""
    if not is_messages(generation.prompt):
        compile_rules(generation.options)
        return None
    messages = cast(Sequence[Message], generation.prompt)
    plan = make_plan(llm.tokenizer, messages, generation.tool_set, generation.options, compile_rules)
    if plan is None:
        compile_rules(generation.options)
    return plan


def _with_plan(generation: Generation, plan: ToolPlan | None) -> Generation:
    """Returns a request that uses the conversation and the options of a plan."""
    if plan is None:
        return generation
    shows = plan.tools is not None and plan.form.shows_special
    return replace(
        generation,
        prompt=plan.messages,
        tools=plan.descriptions,
        options=plan.options,
        skip_special_tokens=generation.skip_special_tokens and not shows,
    )


def encode(llm: AsyncLLM, generation: Generation) -> tuple[int, ...]:
    """Returns the token ids of the first prompt."""
    generation = _with_plan(generation, _plan(llm, generation, lambda options: None))
    return _encode(llm, generation.prompt, generation)


def _encode(llm: AsyncLLM, prompt: Prompt, generation: Generation) -> tuple[int, ...]:
    if not is_messages(prompt):
        return llm._encode(cast(str, prompt))
    chat = ChatArguments(
        generation.tools,
        generation.continue_final_message,
        generation.add_generation_prompt,
        generation.template_kwargs,
        generation.chat_template,
    )
    return llm._render(cast(Sequence[Message], prompt), chat)


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


def _candidates(llm: AsyncLLM, generation: Generation, plan: ToolPlan | None) -> list[Candidates]:
    """Returns the candidates to generate for each prompt."""
    generation = _with_plan(generation, plan)
    is_chat = is_messages(generation.prompt)
    turn_ends = llm._turn_end_ids if is_chat else frozenset()
    continues = generation.continue_final_message or not is_chat
    result = []
    for prompt in (generation.prompt, *generation.more_prompts):
        ids = _encode(llm, prompt, generation)
        options = _options(generation, check_length(llm, len(ids), generation))
        if is_chat and "max_tokens" not in options and GenerationDefaults.of(llm.generation_config).max_tokens is None:
            options["max_tokens"] = None  # a chat model ends its answer with an end token
        (candidates,) = llm._candidates([ids], continues, options, turn_ends, checks_text=plan is None)
        for index, answer in enumerate(candidates.required):
            answer.use_deltas(generation.progress and index == 0)
        result.append(candidates)
    return result


def _options(generation: Generation, free: int) -> Options:
    """Returns the options of `LLM`; `free` is the number of tokens that fit in the context."""
    options: Options = {
        **generation.options, "adapter": generation.adapter, "n": generation.n, "salt": generation.salt,
        "priority": generation.priority, "include_stop_str_in_output": generation.include_stop,
        "skip_special_tokens": generation.skip_special_tokens, "explain_prefix": generation.explain_prefix,
    }  # fmt: skip
    if generation.prediction is not None:
        options["prediction"] = generation.prediction
    if generation.best_of is not None:
        options["best_of"] = generation.best_of
    limit = options.get("max_tokens", "auto")
    if isinstance(limit, int):
        options["max_tokens"] = min(limit, free)  # a limit above the context allows nothing more than the context
    return options
