"""`LLM`: generates text from text, in five lines of Python. The engine and the backends use only token ids."""

from __future__ import annotations

import functools
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from puna.answer import Answer, Completion, PromptLogits, check_stops, losses
from puna.backends import memory_errors, open_backend
from puna.config import LlamaConfig, generation_notes
from puna.engine import Engine, Request
from puna.errors import ChatTemplateError, ModelNotFoundError, RequestError, show
from puna.options import Options, settings_of
from puna.prompts import Message, is_messages, read_conversations, read_ids, read_tools

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from puna.checkpoint import Checkpoint
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast

__all__ = ["LLM", "Options"]


class LLM:
    """A LLaMA model that generates text. As a context manager, it frees the model at the end.

    Args:
        path: a folder in Hugging Face's or Meta's layout, a GGUF file, a model of the hub (owner/name), an open
            checkpoint, or None for the default model.
        backend: "native" (C++ on the CPU), "torch", or "auto": native if it supports the model.
        threads: number of CPU threads; None means one per physical core.
        device: a PyTorch device such as "cuda"; None means the CPU.
        dtype: the type to compute in. None: the native backend rounds activations to 8 bits for quantised weights, and
            to bfloat16 for bfloat16 weights if the processor has instructions for them; PyTorch uses float32 on the
            CPU, else the stored type. "float32": no rounding to fewer bits; quantised weights take 4 bytes each. Other
            types, such as "bfloat16", need PyTorch.
        quantize: format that the native backend quantises float weights to: "q8_0", "q4_0" or "q4_K"; None keeps them.
        max_batch: maximum number of sequences that run at once, from lists of prompts or calls in several threads.

    Raises:
        ModelNotFoundError: if there is no model at `path`; the message says how to get one.
        CheckpointError: if the model's files are incomplete or do not match each other.
        BackendError: if the backend cannot run here.
    """

    def __init__(
        self,
        path: str | Path | Checkpoint | None = None,
        backend: str = "auto",
        threads: int | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        max_batch: int = 16,
    ) -> None:
        from puna.checkpoint import Checkpoint, locate_model, open_checkpoint

        if not (path is None or isinstance(path, str | Path | Checkpoint)):
            raise ModelNotFoundError(f"path is {show(path)}; it must be a text, a Path, an open checkpoint or None")
        self.path = path.path if isinstance(path, Checkpoint) else locate_model(path)
        with memory_errors():
            checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(self.path)
            self._backend = open_backend(checkpoint, backend, threads, device, dtype, quantize, max_batch)
        self.config: LlamaConfig = checkpoint.config
        """The model's configuration."""
        self.generation_config = checkpoint.generation
        """Settings of generation: its end tokens, and defaults for options that a call leaves out."""
        self._tokenizer_path = checkpoint.tokenizer
        self._engine = Engine(self._backend, max_batch)
        self._results: dict[int, Answer | PromptLogits] = {}
        self._lock = threading.RLock()  # only one thread at a time may use the engine and the results
        self._closed = False
        self._reported = False  # whether a warning has named the unsupported settings

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"backend={self.backend!r}, context_length={self.config.context_length}"
        return f"LLM({str(self.path)!r}, {state})"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the memory of the weights and the cache. Later requests, and streams in progress, raise errors."""
        with self._lock:
            self._closed = True
            self._backend.close()

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model, "native" or "torch"."""
        return self._backend.name

    @functools.cached_property
    def tokenizer(self) -> LlamaTokenizer | LlamaTokenizerFast:
        """The model's tokenizer."""
        from puna.tokenizer import load_tokenizer

        return load_tokenizer(self._tokenizer_path)

    @overload  # mypy reports that an empty list matches both overloads; a call with an empty list is an error
    def generate(  # type: ignore[overload-overlap]
        self, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Completion: ...

    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[Options]) -> list[Completion]: ...

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str],
        *,
        max_tokens: int | Literal["auto"] | None = "auto",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        speculate: bool = False,
    ) -> Completion | list[Completion]:
        """Continues a prompt, which is text or token ids. For a list of texts, returns a list of completions.

        Args:
            max_tokens: maximum number of tokens to generate. "auto": the model's max_new_tokens, else 256, and never
                more than fits in the context. None fills the context.
            temperature: divides the logits; 0 chooses the most likely token, and the next three options do nothing.
            top_k: choose from the k most likely tokens; 0 means from all.
            top_p: choose from the smallest set of most likely tokens with at least this total probability.
            min_p: exclude tokens whose probability is below this fraction of the highest one.
            repetition_penalty: above 1, tokens that occurred before become less likely.
            seed: makes sampling repeatable; None uses a random seed.
            stop: a string or several strings; the answer ends before the first of them that occurs.
            speculate: guess tokens from earlier text: the same answer, faster if the text repeats itself.

        An option that is None has the value of the model's generation_config.json (for GGUF files,
        general.sampling.*); without a value there, the most likely token is chosen.

        Raises:
            RequestError: if prompt and answer exceed the context, or an option is out of range.
        """
        options: Options = {
            "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, "speculate": speculate,
        }  # fmt: skip
        if isinstance(prompt, list | tuple) and prompt and all(isinstance(item, str) for item in prompt):
            prompts = [self._encode(item) for item in prompt]
            return self._complete([self._answer(ids, continues_prompt=True, options=options) for ids in prompts])
        ids: Any = prompt
        return self._complete([self._answer(self._encode(ids), continues_prompt=True, options=options)])[0]

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[Options],
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: str | Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | Literal["auto"] | None = "auto",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        speculate: bool = False,
    ) -> Completion | list[Completion]:
        """Answers a conversation: messages with "role" ("system", "user", "assistant") and "content".

        Args:
            messages: the conversation; a text is one user message. For a list of conversations, returns a list of
                completions. Content is a text or a list of text parts: [{"type": "text", "text": ...}].
            tools: JSON schemas of functions, for a model whose chat template describes them.
            max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop, speculate: as in `generate`.

        Raises:
            ChatTemplateError: if the model has no chat template, or its template rejects the conversation or ignores
                the tools.
            RequestError: as in `generate`, or a message is malformed.
        """
        options: Options = {
            "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, "speculate": speculate,
        }  # fmt: skip
        conversations, several = read_conversations(messages)
        prompts = [self._render(conversation, read_tools(tools)) for conversation in conversations]
        answers = self._complete([self._answer(prompt, continues_prompt=False, options=options) for prompt in prompts])
        return answers if several else answers[0]

    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | Literal["auto"] | None = "auto",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        speculate: bool = False,
    ) -> Iterator[str]:
        """Yields the answer's text while it is generated; a list of messages is answered as in `chat`.

        The arguments are those of `generate` and `chat`. The call itself raises their errors, not the first iteration.
        """
        options: Options = {
            "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, "speculate": speculate,
        }  # fmt: skip
        return self.start(prompt, tools=tools, **options)[1]

    def start(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | Literal["auto"] | None = "auto",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        speculate: bool = False,
    ) -> tuple[Answer, Iterator[str]]:
        """Returns (answer, the iterator that `stream` returns). Call `answer.completion()` after the iteration."""
        options: Options = {
            "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, "speculate": speculate,
        }  # fmt: skip
        if is_messages(prompt):
            (messages,), _ = read_conversations(prompt)
            answer = self._answer(self._render(messages, read_tools(tools)), continues_prompt=False, options=options)
        elif tools is not None:
            raise RequestError("tools are given, but the prompt is not a conversation; give a list of messages")
        else:
            ids: Any = prompt
            answer = self._answer(self._encode(ids), continues_prompt=True, options=options)
        return answer, self._run(answer)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns the model's logits after each token: float32, (T, vocab_size).

        Raises:
            RequestError: if there are no tokens, an id is not in the vocabulary, or the tokens exceed the context.
        """
        with memory_errors():
            return np.concatenate(list(self.iter_logits(token_ids)))

    def iter_logits(self, token_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yields the rows of `logits` in parts, which need little memory; the first iteration raises its errors."""
        self._check_open()
        prompt_logits = PromptLogits(Request(read_ids(token_ids), max_tokens=0, prompt_logits=True))
        with self._submit([prompt_logits]):
            while not prompt_logits.finished:
                self._step()
                yield from prompt_logits.take()

    def nll(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """Returns the negative log-likelihood in nats of each token after the first: float64, (T - 1,)."""
        ids = read_ids(token_ids)
        parts = []
        start = 0
        for rows in self.iter_logits(ids):
            targets = np.asarray(ids[start + 1 : start + 1 + len(rows)], dtype=np.int64)
            parts.append(losses(rows[: len(targets)], targets))
            start += len(rows)
        return np.concatenate(parts)

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("this LLM is closed; load the model again")

    def _encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return read_ids(prompt)
        ids = self.tokenizer.encode(prompt)
        if not ids and self.config.bos_token_id is not None:
            ids = [self.config.bos_token_id]  # the model needs at least one token
        return tuple(ids)

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> tuple[int, ...]:
        render = functools.partial(self.tokenizer.apply_chat_template, list(messages), add_generation_prompt=True)
        ids = tuple(render(tools=tools))
        if tools is not None and ids == tuple(render()):
            raise ChatTemplateError(
                "tools are given, but the model's chat template ignores them; leave them out, or describe them in the "
                "system message"
            )
        return ids

    def _answer(self, prompt_ids: tuple[int, ...], *, continues_prompt: bool, options: Options) -> Answer:
        self._check_open()
        for note in [] if self._reported else generation_notes(self.generation_config):
            warnings.warn(f"{self.path}: {note}", stacklevel=3)
        self._reported = True
        settings = settings_of(options, self.generation_config, len(prompt_ids), self._engine.longest)
        stop_ids = self._stop_ids if continues_prompt else self._stop_ids | self._turn_end_ids
        request = Request(prompt_ids, settings.max_tokens, settings.sampling, stop_ids, speculate=settings.speculate)
        self._engine.check(request)
        return Answer(request, self.tokenizer, check_stops(settings.stop), continues_prompt=continues_prompt)

    @functools.cached_property
    def _stop_ids(self) -> frozenset[int]:
        """The ids that end a text according to the generation configuration or the tokenizer."""
        eos = self.tokenizer.eos_token_id
        return frozenset(self.generation_config.eos_token_ids) | (frozenset() if eos is None else frozenset({eos}))

    @functools.cached_property
    def _turn_end_ids(self) -> frozenset[int]:
        from puna.tokenizer.chat.templates import end_of_turn_ids

        return end_of_turn_ids(self.tokenizer)

    def _complete(self, answers: Sequence[Answer]) -> list[Completion]:
        with self._submit(answers):
            while not all(answer.finished for answer in answers):
                self._step()
        return [answer.completion() for answer in answers]

    def _run(self, answer: Answer) -> Iterator[str]:
        with self._submit([answer]):
            while not answer.finished:
                self._step()
                yield from answer.take()
            yield from answer.take()  # text of steps that other threads ran while this generator was suspended
            if answer.error is not None:
                raise answer.error

    @contextmanager
    def _submit(self, results: Sequence[Answer] | Sequence[PromptLogits]) -> Iterator[None]:
        """Context manager: submits requests, and removes them from the engine at the end, also after an error."""
        ids = []
        try:
            with self._lock:
                for result in results:
                    ids.append(self._engine.submit(result.request))
                    self._results[ids[-1]] = result
            yield
        finally:
            with self._lock:
                for request_id in ids:
                    self._engine.cancel(request_id)
                    self._results.pop(request_id, None)

    def _step(self) -> None:
        """Runs one engine step and passes each event to its result, also for requests of other threads and streams."""
        with self._lock:
            started = time.perf_counter()
            with memory_errors():
                events = self._engine.step()
            ended = time.perf_counter()
            for event in events:
                result = self._results[event.request_id]
                result.feed(event, started, ended)
                if result.finished:
                    self._engine.cancel(event.request_id)
