"""`LLM`: generates text from text, in five lines of Python. The engine and the backends use only token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

__all__ = ["LLM", "Options"]


class LLM(TextModel):
    """A LLaMA model that generates text. As a context manager, it frees the model at the end.

    Several threads may use it at once; `AsyncLLM` is for asyncio. Each call waits for its own answer, and Ctrl-C ends
    only the requests of the call that it interrupts. A forked process must load the model again.
    """

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload  # mypy reports that an empty list matches both overloads; a call with an empty list is an error
    def generate(  # type: ignore[overload-overlap]
        self, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Completion: ...

    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[Options]) -> list[Completion]: ...

    @shows_options
    def generate(
        self, prompt: str | Sequence[int] | Sequence[str], **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """Continues a prompt, which is text or token ids. For a list of texts, returns a list of completions.

        Args:
            {options}

        An option that is None has the value of the model's generation_config.json (for GGUF files,
        general.sampling.*); without a value there, the most likely token is chosen.

        Raises:
            RequestError: if prompt and answer exceed the context, or an option is out of range.
        """
        candidates, several = self._continuations(prompt, options)
        return self._complete(candidates) if several else self._complete(candidates)[0]

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> list[Completion]: ...

    @shows_options
    def chat(
        self,
        messages: str | Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> Completion | list[Completion]:
        """Answers a conversation: messages with "role" ("system", "user", "assistant") and "content".

        Args:
            messages: the conversation; a text is one user message. For a list of conversations, returns a list of
                completions. Content is a text or a list of text parts: [{"type": "text", "text": ...}].
            tools: JSON schemas of functions, for a model whose chat template describes them.
            continue_final_message: continue the last message, the beginning of an answer, instead of answering it. The
                completion has only the new text.
            {options}

        Raises:
            ChatTemplateError: if the model has no chat template, or its template rejects the conversation or ignores
                the tools.
            RequestError: as in `generate`, or a message is malformed.
        """
        candidates, several = self._replies(messages, ChatArguments(tools, continue_final_message), options)
        return self._complete(candidates) if several else self._complete(candidates)[0]

    @shows_options
    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> Stream[str]:
        """Yields the answer's text while it is generated; a list of messages is answered as in `chat`.

        The arguments are those of `generate` and `chat`. The call itself raises their errors, not the first iteration.
        The answer ends when the stream is closed or deleted.
        """
        return self._runner.stream(self._answer(prompt, ChatArguments(tools, continue_final_message), options))

    @shows_options
    def start(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[Options],
    ) -> tuple[Answer, Stream[str]]:
        """Returns (answer, the stream that `stream` returns). Call `answer.completion()` after the iteration."""
        answer = self._answer(prompt, ChatArguments(tools, continue_final_message), options)
        return answer, self._runner.stream(answer)

    @shows_options
    def start_deltas(
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
        """Starts the answers to a prompt or a conversation; returns (answers, stream of (index, delta)).

        A `Delta` has text that no later token can change, the tokens of this text, and their log-probabilities. The
        last delta of each answer has its `finish_reason`. Call `completion()` of an answer after its last delta.

        Args:
            prompt: a text, token ids or messages, as in `stream`.
            add_generation_prompt: end a conversation with the header of the answer, as usual.
            template_kwargs: more variables for the chat template, such as {"enable_thinking": True}.
            progress: also yield (0, PromptProgress) while the prompt is read.

        With the option `n`, there are n answers. The other arguments are those of `generate` and `chat`.
        """
        chat = ChatArguments(tools, continue_final_message, add_generation_prompt, template_kwargs)
        answers = self._with_deltas(prompt, chat, progress, options)
        return answers, self._runner.stream_batch(answers)

    @shows_options
    def stream_batch(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[Options],
    ) -> Stream[tuple[int, str]]:
        """Yields (index of the answer, piece of its text) while the answers to several prompts are generated.

        A prompt is a text, token ids or a list of messages, as in `stream`. The answers run as one batch. With the
        option `n`, answer j to prompt i has the index i * n + j.
        """
        return self._runner.stream_batch(self._batch(prompts, ChatArguments(tools), options))

    def warm(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        salt: str = "",
        adapter: str | None = None,
    ) -> int:
        """Reads the beginnings of prompts into the prefix cache; returns the number of tokens that were read.

        Later prompts that begin with one of them then start sooner, also in later processes with `prefix_cache_dir`.
        Without it, about 8192 tokens, or a quarter of the cache if that is more, are kept while other requests run.

        Args:
            prompts: texts, lists of token ids, or conversations, such as [{"role": "system", "content": ...}].
            tools: JSON schemas of the functions that the conversations have.
            salt: the option `salt` of the later requests.
            adapter: their option `adapter`.
        """
        answers = self._beginnings(prompts, tools, salt, adapter)
        self._runner.submit(answers).wait()
        return sum(len(answer.request.prompt_ids) - answer.cached_tokens for answer in answers)

    def logits(self, token_ids: Sequence[int], *, adapter: str | None = None) -> NDArray[np.float32]:
        """Returns the model's logits after each token: float32, (T, vocab_size).

        Raises:
            RequestError: if there are no tokens, an id is not in the vocabulary, or the tokens exceed the context.
        """
        return self._read(PromptLogits(read_ids(token_ids), adapter=self._adapters.for_text(adapter))).rows

    def iter_logits(self, token_ids: Sequence[int], *, adapter: str | None = None) -> Iterator[NDArray[np.float32]]:
        """Yields the rows of `logits` in parts, which need less memory; the first iteration raises its errors."""
        for part in self._parts(token_ids, adapter):
            yield self._read(part).rows

    def nll(self, token_ids: Sequence[int], *, adapter: str | None = None) -> NDArray[np.float64]:
        """Returns the negative log-likelihood in nats of each token after the first: float64, (T - 1,)."""
        return self._read(PromptLosses(read_ids(token_ids), adapter=self._adapters.for_text(adapter))).values

    def score(
        self,
        context: str | Sequence[int],
        continuations: Sequence[str] | Sequence[Sequence[int]],
        *,
        adapter: str | None = None,
    ) -> NDArray[np.float64]:
        """Returns the log-likelihood in nats of each continuation of a context: float64, (number of continuations,).

        The context is read once. A text is encoded together with the context, and its score covers the tokens from the
        first one that differs from the context's tokens on. An empty context is the BOS token.

        Raises:
            RequestError: a continuation has no tokens, or exceeds the model's context together with `context`.
        """
        results = self._continuation_losses(context, continuations, adapter)
        self._runner.submit(results).wait()
        return np.array([-result.values.sum() for result in results], np.float64)

    def embed(
        self,
        inputs: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        pooling: Literal["last", "mean"] = "last",
        normalize: bool = False,
        adapter: str | None = None,
    ) -> NDArray[np.float32]:
        """Returns the embeddings of texts: float32, (N, D), where D is the model's hidden size.

        An embedding is made of the hidden states after the final norm, the `last_hidden_state` of `LlamaModel`.

        Args:
            inputs: a text or token ids, or a list of N of these; one input has the shape (1, D).
            pooling: "last": the state of the last token. "mean": the mean of all tokens' states, BOS included.
            normalize: divide each embedding by its length, so that the dot product of two is their cosine.
            adapter: name of an adapter of `LLM(adapters=...)`. The states are those of the tokens of the input.

        Raises:
            RequestError: there are no inputs, an input has no tokens or exceeds the context, or `pooling` is unknown.
        """
        results = self._pooled(inputs, pooling, normalize, adapter)
        self._runner.submit(results).wait()
        return np.stack([result.state for result in results])

    def classify(
        self,
        inputs: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        adapter: str | None = None,
    ) -> list[Classification]:
        """Returns the labels of texts, one `Classification` for each input, of a LlamaForSequenceClassification.

        The head is applied to the last token of an input that is not the padding token, as in transformers.

        Args:
            inputs: a text or token ids, or a list of these.
            adapter: name of an adapter of `LLM(adapters=...)`; its classification head, if it has one, replaces the
                model's.

        Raises:
            RequestError: there is no classification head, or an input is not valid, as in `embed`.
        """
        head, results = self._classified(inputs, adapter)
        self._runner.submit(results).wait()
        return [head.classify(result.state) for result in results]

    def _read(self, result: Scores) -> Scores:
        self._runner.submit([self._checked(result)]).wait()
        return result

    def _complete(self, prompts: Sequence[Candidates]) -> list[Completion]:
        self._runner.submit([answer for candidates in prompts for answer in candidates.required]).wait()
        return [candidates.completion() for candidates in prompts]
