"""`AsyncLLM`: the interface of `LLM` for asyncio, for hundreds of concurrent callers in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from puna.answer import Answer, Candidates, Completion, Delta, PromptProgress
from puna.classification import Classification
from puna.engine import Stream
from puna.loaded_model import Scores
from puna.options import Options, shows_options
from puna.prompt_scores import PromptLogits, PromptLosses
from puna.prompts import ChatArguments, Message, read_ids
from puna.text_model import TextModel

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack


class AsyncLLM(TextModel):
    """A LLaMA model for asyncio. The methods have the arguments and errors of those of `LLM`.

    Concurrent calls share forward passes. Cancelling a task ends its requests. Several event loops may use the model.
    Texts are encoded in threads of asyncio, so that a long prompt or a chat template does not block the event loop.
    """

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    @overload  # mypy reports that an empty list matches both overloads; a call with an empty list is an error
    async def generate(  # type: ignore[overload-overlap]
        self, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Completion: ...

    @overload
    async def generate(self, prompt: Sequence[str], **options: Unpack[Options]) -> list[Completion]: ...

    @shows_options
    async def generate(
        self, prompt: str | Sequence[int] | Sequence[str], **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """Continues a prompt, or the texts of a list; see `LLM.generate`.

        Args:
            {options}
        """
        candidates, several = await asyncio.to_thread(self._continuations, prompt, options)
        return await self._complete(candidates) if several else (await self._complete(candidates))[0]

    @overload
    async def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> list[Completion]: ...

    @shows_options
    async def chat(
        self,
        messages: str | Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> Completion | list[Completion]:
        """Answers a conversation, or the conversations of a list; see `LLM.chat`."""
        candidates, several = await asyncio.to_thread(
            self._replies, messages, ChatArguments(tools, continue_final_message), options
        )
        return await self._complete(candidates) if several else (await self._complete(candidates))[0]

    @shows_options
    async def stream(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> AsyncIterator[str]:
        """Yields the answer's text while it is generated: `async for piece in llm.stream(prompt)`.

        The arguments are those of `LLM.stream`. The first iteration starts the request, and raises its errors.
        """
        _, pieces = await self.start(prompt, tools=tools, continue_final_message=continue_final_message, **options)
        async for piece in pieces:
            yield piece

    @shows_options
    async def start(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> tuple[Answer, Stream[str]]:
        """Starts an answer; returns (answer, stream of its text). Call `answer.completion()` after the iteration."""
        answer = await asyncio.to_thread(self._answer, prompt, ChatArguments(tools, continue_final_message), options)
        return answer, self._runner.stream(answer)

    @shows_options
    async def start_deltas(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = False,
        **options: Unpack[Options],
    ) -> tuple[tuple[Answer, ...], Stream[tuple[int, Delta | PromptProgress]]]:
        """Starts the answers to a prompt; returns (answers, stream of (index, delta)). See `LLM.start_deltas`."""
        chat = ChatArguments(tools, continue_final_message, add_generation_prompt, template_kwargs)
        answers = await asyncio.to_thread(self._with_deltas, prompt, chat, progress, options)
        return answers, self._runner.stream_batch(answers)

    @shows_options
    async def stream_batch(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[tuple[int, str]]:
        """Yields (index of the answer, piece of its text); see `LLM.stream_batch`."""
        answers = await asyncio.to_thread(self._batch, prompts, ChatArguments(tools), options)
        async for item in self._runner.stream_batch(answers):
            yield item

    async def warm(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        salt: str = "",
        adapter: str | None = None,
    ) -> int:
        """Reads the beginnings of prompts into the prefix cache; see `LLM.warm`."""
        answers = await asyncio.to_thread(self._beginnings, prompts, tools, salt, adapter)
        await self._runner.submit(answers).wait_async()
        return sum(len(answer.request.prompt_ids) - answer.cached_tokens for answer in answers)

    async def logits(self, token_ids: Sequence[int], *, adapter: str | None = None) -> NDArray[np.float32]:
        """Returns the model's logits after each token: float32, (T, vocab_size)."""
        return (await self._read(PromptLogits(read_ids(token_ids), adapter=self._adapters.for_text(adapter)))).rows

    async def nll(self, token_ids: Sequence[int], *, adapter: str | None = None) -> NDArray[np.float64]:
        """Returns the negative log-likelihood in nats of each token after the first: float64, (T - 1,)."""
        return (await self._read(PromptLosses(read_ids(token_ids), adapter=self._adapters.for_text(adapter)))).values

    async def iter_logits(
        self, token_ids: Sequence[int], *, adapter: str | None = None
    ) -> AsyncIterator[NDArray[np.float32]]:
        """Yields the rows of `logits` in parts, which need less memory; the first iteration raises its errors."""
        for part in self._parts(token_ids, adapter):
            yield (await self._read(part)).rows

    async def score(
        self,
        context: str | Sequence[int],
        continuations: Sequence[str] | Sequence[Sequence[int]],
        *,
        adapter: str | None = None,
    ) -> NDArray[np.float64]:
        """Returns the log-likelihood in nats of each continuation of a context; see `LLM.score`."""
        results = await asyncio.to_thread(self._continuation_losses, context, continuations, adapter)
        await self._runner.submit(results).wait_async()
        return np.array([-result.values.sum() for result in results], np.float64)

    async def embed(
        self,
        inputs: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        pooling: Literal["last", "mean"] = "last",
        normalize: bool = False,
        adapter: str | None = None,
    ) -> NDArray[np.float32]:
        """Returns the embeddings of texts: float32, (N, D); see `LLM.embed`."""
        results = await asyncio.to_thread(self._pooled, inputs, pooling, normalize, adapter)
        await self._runner.submit(results).wait_async()
        return np.stack([result.state for result in results])

    async def classify(
        self,
        inputs: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        adapter: str | None = None,
    ) -> list[Classification]:
        """Returns the labels of texts, one `Classification` for each input; see `LLM.classify`."""
        head, results = await asyncio.to_thread(self._classified, inputs, adapter)
        await self._runner.submit(results).wait_async()
        return [head.classify(result.state) for result in results]

    async def _read(self, result: Scores) -> Scores:
        await self._runner.submit([self._checked(result)]).wait_async()
        return result

    async def _complete(self, prompts: Sequence[Candidates]) -> list[Completion]:
        await self._runner.submit([answer for candidates in prompts for answer in candidates.required]).wait_async()
        return [candidates.completion() for candidates in prompts]
