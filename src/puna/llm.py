"""`LLM`: generates text from text, in five lines of Python. The engine and the backends use only token ids."""

from __future__ import annotations

import functools
import operator
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from puna.answer import Answer, Completion, PromptLogits, check_stops
from puna.backend import Backend
from puna.config import LlamaConfig
from puna.engine import Engine, Request, Sampling
from puna.errors import BackendError, MissingExtraError, RequestError
from puna.native.library import check_threads

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from puna.checkpoint import Checkpoint
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast

Message = Mapping[str, Any]

_NLL_ROWS = 16
"""Number of logit rows converted to float64 at a time. It limits memory, since a row is as long as the vocabulary."""


class Options(TypedDict, total=False):
    """Keyword arguments of `LLM.generate`, `LLM.chat` and `LLM.stream`.

    max_tokens: maximum number of tokens to generate (default 256); None fills the model's context.
    temperature, top_k, top_p, min_p, repetition_penalty, seed: as in `puna.engine.Sampling`; by default, the most
        likely token is chosen.
    stop: a string or several strings; the answer ends before the first of them that occurs. A special token in a string
        matches that token, although the text of the answer does not contain it. None means no strings.
    speculate: guess tokens from earlier text. The answer is the same, but takes less time if the text repeats itself.
    """

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    speculate: bool


class LLM:
    """A LLaMA model that generates text.

    Args:
        path: a folder in Hugging Face's or Meta's layout, a GGUF file, a model of the hub (owner/name), an open
            checkpoint, or None for the default model.
        backend: "native" (C++ on the CPU), "torch", or "auto": native if it supports the model.
        threads: number of CPU threads; None means one per physical core.
        device: a PyTorch device such as "cuda"; None means the CPU.
        dtype: the type that PyTorch computes in, such as "bfloat16"; None means float32 on the CPU.
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

        self.path = path.path if isinstance(path, Checkpoint) else locate_model(path)
        checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(self.path)
        self._tokenizer_path = checkpoint.tokenizer
        self.generation_config = checkpoint.generation
        self._backend = _open_backend(checkpoint, backend, threads, device, dtype, quantize, max_batch)
        self._engine = Engine(self._backend, max_batch)
        self._results: dict[int, Answer | PromptLogits] = {}
        self._lock = threading.RLock()  # only one thread at a time may use the engine and the results

    @property
    def config(self) -> LlamaConfig:
        """The model's configuration."""
        return self._backend.config

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
        self, prompt: str | Sequence[int] | Sequence[str], **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """Continues a prompt, which is text or token ids. For a list of texts, returns a list of completions.

        Raises:
            RequestError: if prompt and answer exceed the context, or an option is out of range.
        """
        if isinstance(prompt, list | tuple) and prompt and all(isinstance(item, str) for item in prompt):
            prompts = [self._encode(item) for item in prompt]
            return self._complete([self._answer(ids, continues_prompt=True, options=options) for ids in prompts])
        ids: Any = prompt
        return self._complete([self._answer(self._encode(ids), continues_prompt=True, options=options)])[0]

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Completion:
        """Answers a conversation: messages with "role" ("system", "user", "assistant") and "content".

        Raises:
            ChatTemplateError: if the model has no chat template, or its template rejects the conversation.
            RequestError: as in `generate`.
        """
        return self._complete([self._answer(self._render(messages), continues_prompt=False, options=options)])[0]

    def stream(self, prompt: str | Sequence[int] | Sequence[Message], **options: Unpack[Options]) -> Iterator[str]:
        """Yields the answer's text while it is generated; a list of messages is answered as in `chat`.

        The call itself raises the errors of `generate` and `chat`, not the first iteration.
        """
        return self.start(prompt, **options)[1]

    def start(
        self, prompt: str | Sequence[int] | Sequence[Message], **options: Unpack[Options]
    ) -> tuple[Answer, Iterator[str]]:
        """Returns (answer, the iterator that `stream` returns). Call `answer.completion()` after the iteration."""
        if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], Mapping):
            messages: Any = prompt
            answer = self._answer(self._render(messages), continues_prompt=False, options=options)
        else:
            ids: Any = prompt
            answer = self._answer(self._encode(ids), continues_prompt=True, options=options)
        return answer, self._run(answer)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns the model's logits after each token: float32, (T, vocab_size).

        Raises:
            RequestError: if there are no tokens, an id is not in the vocabulary, or the tokens exceed the context.
        """
        return np.concatenate(list(self._prompt_logits(_ids(token_ids))))

    def nll(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """Returns the negative log-likelihood in nats of each token after the first: float64, (T - 1,)."""
        ids = _ids(token_ids)
        losses = []
        start = 0
        for rows in self._prompt_logits(ids):
            targets = np.asarray(ids[start + 1 : start + 1 + len(rows)], dtype=np.int64)
            losses.append(_nll(rows[: len(targets)], targets))
            start += len(rows)
        return np.concatenate(losses)

    def _prompt_logits(self, ids: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        prompt_logits = PromptLogits(Request(ids, max_tokens=0, prompt_logits=True))
        with self._submit([prompt_logits]):
            while not prompt_logits.finished:
                self._step()
                yield from prompt_logits.take()

    def _encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return _ids(prompt)
        ids = self.tokenizer.encode(prompt)
        if not ids and self.config.bos_token_id is not None:
            ids = [self.config.bos_token_id]  # the model needs at least one token
        return tuple(ids)

    def _render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True))

    def _answer(self, prompt_ids: tuple[int, ...], *, continues_prompt: bool, options: Options) -> Answer:
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}; options are {', '.join(Options.__annotations__)}")
        stop_ids = self._stop_ids if continues_prompt else self._stop_ids | self._turn_end_ids
        request, stop = self._request(prompt_ids, stop_ids, **options)
        self._engine.check(request)
        return Answer(request, self.tokenizer, stop, continues_prompt=continues_prompt)

    def _request(
        self,
        prompt_ids: tuple[int, ...],
        stop_ids: frozenset[int],
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        speculate: bool = False,
    ) -> tuple[Request, tuple[str, ...]]:
        if max_tokens is None:
            max_tokens = max(0, self.config.context_length - len(prompt_ids))
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return Request(prompt_ids, max_tokens, sampling, stop_ids, speculate=speculate), check_stops(stop)

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
            events = self._engine.step()
            ended = time.perf_counter()
            for event in events:
                result = self._results[event.request_id]
                result.feed(event, started, ended)
                if result.finished:
                    self._engine.cancel(event.request_id)


def _ids(tokens: Sequence[int]) -> tuple[int, ...]:
    """Converts token ids in a list, a tuple, a 1-D array or tensor to a tuple; floats and bools are errors."""
    try:
        if isinstance(tokens, bytes | bytearray | Mapping) or any(isinstance(token, bool) for token in tokens):
            raise TypeError
        return tuple(operator.index(token) for token in tokens)
    except TypeError as exc:
        raise RequestError(
            f"the prompt must be text, token ids (whole numbers) or a list of texts, got {str(tokens)[:80]!r}"
        ) from exc


def _nll(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns -log softmax(logits)[target] for each row, in float64."""
    losses = np.empty(len(targets))
    for start in range(0, len(targets), _NLL_ROWS):
        rows = logits[start : start + _NLL_ROWS].astype(np.float64)
        rows -= rows.max(axis=-1, keepdims=True)
        target_logits = rows[np.arange(len(rows)), targets[start : start + _NLL_ROWS]]
        losses[start : start + _NLL_ROWS] = np.log(np.exp(rows, out=rows).sum(axis=-1)) - target_logits
    return losses


def _open_backend(
    checkpoint: Checkpoint,
    name: str,
    threads: int | None,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
    max_batch: int,
) -> Backend:
    if name not in ("auto", "torch", "native"):
        raise BackendError(f"backend is {name!r}; it must be 'auto', 'torch' or 'native'")
    check_threads(threads)
    if isinstance(max_batch, bool) or not isinstance(max_batch, int) or not 0 < max_batch <= 1024:
        raise BackendError(f"max_batch is {max_batch!r}; it must be a whole number from 1 to 1024")
    if checkpoint.head != "lm":
        raise BackendError(
            f"{checkpoint.path} has no language-model head (its head: {checkpoint.head}); it cannot generate text"
        )
    needs_torch = device is not None or dtype not in (None, "float32")
    if name == "native" and needs_torch:
        raise BackendError("backend 'native' computes in float32 on the CPU; leave out device and dtype")
    if name == "native" or (name == "auto" and not needs_torch and _runs_natively(checkpoint.config)):
        from puna.native import NativeBackend

        return NativeBackend(checkpoint.config, checkpoint.tensors, threads, max_batch, quantize=quantize)
    if quantize is not None:
        raise BackendError(
            f"quantize is {quantize!r}, which only the native backend supports; leave out quantize, or backend, device "
            "and dtype"
        )
    try:
        from puna.model import TorchBackend
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise MissingExtraError(
            "this model, device or dtype needs PyTorch; install it with: pip install 'puna[torch]'"
        ) from exc
    return TorchBackend.from_pretrained(checkpoint.path, threads=threads, device=device, dtype=dtype)


def _runs_natively(config: LlamaConfig) -> bool:
    """Returns whether the native backend supports the model; if not, warns with the reason."""
    from puna.native import check_supported

    try:
        check_supported(config)
    except BackendError as exc:
        warnings.warn(f"{exc} (puna now uses that backend)", stacklevel=4)
        return False
    return True
