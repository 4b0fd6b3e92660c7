"""`TextModel`: the common part of `LLM` and `AsyncLLM`. It loads a model and turns arguments into requests."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from puna.answer import Answer, Candidates, check_stops
from puna.backends import check_language_model, memory_errors, open_backend
from puna.checkpoint.names import SCORE
from puna.classification import ClassificationHead, last_token
from puna.config import LlamaConfig, generation_notes
from puna.engine import DEFAULT_DISK_BYTES, Engine, Request, Runner, open_disk_cache
from puna.errors import ChatTemplateError, MissingExtraError, ModelNotFoundError, RequestError, show
from puna.grammars.rules import read_rule
from puna.lazy import cached_property
from puna.model_adapters import ModelAdapters
from puna.options import Options, settings_of
from puna.prompt_scores import PromptLogits, PromptLosses, PromptResult, PromptState
from puna.prompts import (
    ChatArguments,
    Message,
    is_messages,
    join_ids,
    read_conversations,
    read_ids,
    read_tools,
    split_inputs,
)

if TYPE_CHECKING:
    from puna.checkpoint import Checkpoint
    from puna.grammars.compile import AnswerRule, Compiler
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast

Scores = TypeVar("Scores", bound=PromptResult)

_PART_TOKENS = 512
"""Number of tokens whose logits `LLM.iter_logits` computes at once: as many as a step of the engine."""


class TextModel:
    """A LLaMA model that generates text: the base class of `LLM` and `AsyncLLM`."""

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
        prefix_cache: bool = True,
        prefix_cache_dir: str | Path | None = None,
        prefix_cache_bytes: int = DEFAULT_DISK_BYTES,
        adapters: Mapping[str, str | Path] | None = None,
        keep_quantized: bool = False,
    ) -> None:
        """Loads a model.

        Args:
            path: a folder in Hugging Face's or Meta's layout, a GGUF file, a model of the hub (owner/name), an open
                checkpoint, or None for the default model.
            backend: "native" (C++ on the CPU), "torch", or "auto": native if it supports the model.
            threads: number of CPU threads; None means one per physical core.
            device: a PyTorch device such as "cuda"; None means the CPU.
            dtype: the type to compute in. None: the native backend rounds activations to 8 bits for quantised weights,
                and to bfloat16 for bfloat16 weights if the processor has instructions for them; PyTorch uses float32 on
                the CPU, else the stored type. "float32": no rounding to fewer bits; quantised weights take 4 bytes
                each. Other types, such as "bfloat16", need PyTorch.
            quantize: format that the native backend quantises float weights to: "q8_0", "q4_0" or "q4_K"; None keeps
                them.
            max_batch: maximum number of sequences that run at once, from lists of prompts and from concurrent calls.
            prefix_cache: read the common beginning of prompts once, also in later calls. Answers do not change.
            prefix_cache_dir: folder that keeps the prefixes of prompts and answers for later processes, which must load
                equal weights with equal options on a similar machine. Several processes may use the folder at once. The
                files contain no text, but the texts can be computed from them. None keeps prefixes in memory only.
            prefix_cache_bytes: maximum size of the files in `prefix_cache_dir`; the least recently used are removed.
            adapters: folders of PEFT or GGUF adapters, by the names that the option `adapter` of a request refers to.
            keep_quantized: with PyTorch, keep quantised matrices packed and dequantise each when it is used, so that
                the model needs no more memory than its file. The native backend always keeps them packed, except with
                dtype="float32".

        Raises:
            ModelNotFoundError: if there is no model at `path`; the message says how to get one.
            CheckpointError: if the files of the model or an adapter are incomplete or do not match each other.
            BackendError: if the backend cannot run here, or cannot apply an adapter.
            StorageError: if every user may write to `prefix_cache_dir`, or its limit is less than two pages.
        """
        from puna.checkpoint import Checkpoint, locate_model, open_checkpoint

        if not (path is None or isinstance(path, str | Path | Checkpoint)):
            raise ModelNotFoundError(f"path is {show(path)}; it must be a text, a Path, an open checkpoint or None")
        for name, value in (("prefix_cache", prefix_cache), ("keep_quantized", keep_quantized)):
            if not isinstance(value, bool):
                raise RequestError(f"{name} is {show(value)}; it must be True or False")
        if prefix_cache_dir is not None and not prefix_cache:
            raise RequestError(f"prefix_cache_dir is {show(prefix_cache_dir)}, but prefix_cache is False; omit one")
        self.path = path.path if isinstance(path, Checkpoint) else locate_model(path)
        with memory_errors():
            checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(self.path)
            self._backend = open_backend(
                checkpoint, backend, threads, device, dtype, quantize, max_batch, keep_quantized
            )
            self._adapters = ModelAdapters(adapters, checkpoint, self._backend)
        self.config: LlamaConfig = checkpoint.config
        """The model's configuration."""
        self.generation_config = checkpoint.generation
        """Settings of generation: its end tokens, and defaults for options that a call leaves out."""
        self._tokenizer_path = checkpoint.tokenizer
        self._head = checkpoint.head
        self._classification_head: ClassificationHead | None = None
        if checkpoint.head == "classification":
            self._classification_head = ClassificationHead.of(self.config, checkpoint.tensors[SCORE].to_float32())
        disk = open_disk_cache(prefix_cache_dir, prefix_cache_bytes, checkpoint, self._backend)
        self._engine = Engine(self._backend, max_batch, prefix_cache=prefix_cache, disk=disk)
        self._runner = Runner(self._engine)
        self._reported = False  # whether a warning has named the unsupported settings

    def __repr__(self) -> str:
        closed = self._runner.closed
        state = "closed" if closed else f"backend={self.backend!r}, context_length={self.config.context_length}"
        return f"{type(self).__name__}({str(self.path)!r}, {state})"

    def close(self) -> None:
        """Frees the memory of the weights and the cache. Later requests, and streams in progress, raise errors."""
        self._runner.close()

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model, "native" or "torch"."""
        return self._backend.name

    def longest_text(self, adapter: str | None = None) -> int:
        """Returns the maximum number of tokens of a text: the model's context without the adapter's virtual tokens."""
        loaded = self._adapters.loaded(adapter)
        return self.config.context_length - (0 if loaded is None else loaded.virtual_tokens)

    @cached_property
    def tokenizer(self) -> LlamaTokenizer | LlamaTokenizerFast:
        """The model's tokenizer."""
        from puna.tokenizer import load_tokenizer

        return load_tokenizer(self._tokenizer_path)

    def _continuations(self, prompt: Any, options: Options) -> tuple[list[Candidates], bool]:
        """Returns the answers to be generated for an argument of `generate`, and whether that is a list of texts."""
        several = isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(item, str) for item in prompt)
        prompts = [self._encode(item) for item in prompt] if several else [self._encode(prompt)]
        return self._candidates(prompts, True, options), several

    def _replies(self, messages: Any, chat: ChatArguments, options: Options) -> tuple[list[Candidates], bool]:
        """Returns the answers to be generated for arguments of `chat`, and whether these are several conversations."""
        conversations, several = read_conversations(messages)
        prompts = [self._render(item, chat) for item in conversations]
        return self._candidates(prompts, chat.continue_final_message, options, self._turn_end_ids), several

    def _answer(self, prompt: Any, chat: ChatArguments, options: Options) -> Answer:
        """Returns the answer to be generated for the arguments of `stream`: a prompt or a conversation."""
        answers = self._streamed(prompt, chat, options)
        if len(answers) > 1:
            raise RequestError(
                f"n is {len(answers)}, but this stream has the text of one answer; use stream_batch, generate or chat"
            )
        return answers[0]

    def _streamed(self, prompt: Any, chat: ChatArguments, options: Options) -> tuple[Answer, ...]:
        """Returns the answers to be generated for a prompt or a conversation whose answers are streamed."""
        if is_messages(prompt):
            ((candidates,), _) = self._replies(prompt, chat, options)
        else:
            chat.check_unused()
            (candidates,) = self._candidates([self._encode(prompt)], True, options)
        if len(candidates.answers) > candidates.n:
            raise RequestError(
                f"best_of is {len(candidates.answers)}, but the best answers are known only at the end of all of them; "
                "use generate or chat, or leave out best_of"
            )
        return candidates.answers

    def _batch(self, prompts: Any, chat: ChatArguments, options: Options) -> list[Answer]:
        """Returns the answers to be generated for the prompts and conversations of `stream_batch`."""
        if not isinstance(prompts, list | tuple):
            raise RequestError(f"prompts is {show(prompts)}; it must be a list of prompts or conversations")
        return [answer for prompt in prompts for answer in self._streamed(prompt, chat, options)]

    def _with_deltas(self, prompt: Any, chat: ChatArguments, progress: bool, options: Options) -> tuple[Answer, ...]:
        """Returns the answers to be generated for the arguments of `start_deltas`."""
        answers = self._streamed(prompt, chat, options)
        for index, answer in enumerate(answers):
            answer.use_deltas(progress and index == 0)
        return answers

    def _continuation_losses(self, context: Any, continuations: Any, adapter: str | None) -> list[PromptLosses]:
        """Returns the results to be computed for the arguments of `score`."""
        loaded = self._adapters.for_text(adapter)
        if not isinstance(continuations, list | tuple):
            raise RequestError(f"continuations is {show(continuations)}; it must be a list of texts or of token ids")
        results = []
        for index, continuation in enumerate(continuations):
            ids, known = self._join(context, continuation)
            if len(ids) == known:
                raise RequestError(
                    f"continuations[{index}] is {show(continuation)}, which adds no token to the context"
                )
            results.append(self._checked(PromptLosses(ids, known - 1, loaded)))
        return results

    def _join(self, context: Any, continuation: Any) -> tuple[tuple[int, ...], int]:
        """Returns the ids of a context and its continuation, and the number of ids of the context."""
        first = self._encode(context)
        if not first:
            raise RequestError(
                "the context has no tokens, but the first token of a continuation must follow another one"
            )
        if not isinstance(continuation, str):
            return first + read_ids(continuation), len(first)
        separate = tuple(self.tokenizer.encode(continuation, add_special_tokens=False))
        joined = tuple(self.tokenizer.encode(context + continuation)) if isinstance(context, str) else ()
        return join_ids(first, joined, separate)

    def _pooled(self, inputs: Any, pooling: Any, normalize: Any, adapter: str | None) -> list[PromptState]:
        """Returns the results to be computed for the arguments of `embed`."""
        if not isinstance(pooling, str) or pooling not in ("last", "mean"):
            raise RequestError(f"pooling is {show(pooling)}; it must be 'last' or 'mean'")
        if not isinstance(normalize, bool):
            raise RequestError(f"normalize is {show(normalize)}; it must be True or False")
        loaded = self._adapters.loaded(adapter)
        results = []
        for item in split_inputs(inputs):
            ids = self._encode(item)
            first = 0 if pooling == "mean" else max(0, len(ids) - 1)
            results.append(self._checked(PromptState(ids, first, normalize, loaded)))
        return results

    def _classified(self, inputs: Any, adapter: str | None) -> tuple[ClassificationHead, list[PromptState]]:
        """Returns the head of the adapter or the model, and the results to be computed for `classify`."""
        chosen, head = self._adapters.get(adapter), self._classification_head
        if chosen is not None and chosen.score is not None:
            head = ClassificationHead.of(chosen.config, chosen.score)
        if head is None:
            raise RequestError(
                f"{self.path} has no classification head (its head: {self._head}); load a "
                "LlamaForSequenceClassification, or an adapter with a classification head, or use generate"
            )
        loaded = self._adapters.loaded(adapter)
        results = []
        for item in split_inputs(inputs):
            ids = self._encode(item)
            last = last_token(ids, self.config.pad_token_id)
            results.append(self._checked(PromptState(ids[: last + 1], max(0, last), adapter=loaded)))
        return head, results

    def _parts(self, token_ids: Sequence[int], adapter: str | None) -> Iterator[PromptLogits]:
        """Yields results that together have the logits after each token; each needs memory for a part of them."""
        ids, loaded = read_ids(token_ids), self._adapters.for_text(adapter)
        self._checked(PromptLogits(ids, adapter=loaded))
        # A part reads the keys and values of the tokens before it from the prefix cache.
        size = _PART_TOKENS if self._engine.pool.sharing else len(ids)
        for start in range(0, len(ids), size):
            yield PromptLogits(ids[: start + size], start, loaded)

    def _checked(self, result: Scores) -> Scores:
        """Returns a result of a prompt whose request has been checked."""
        self._check_open()
        if result.request.output == "tokens":
            check_language_model(self.path, self._head)
        self._engine.check(result.request)
        return result

    def _check_open(self) -> None:
        if self._runner.closed:
            raise RequestError(f"this {type(self).__name__} is closed; load the model again")

    def _encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return read_ids(prompt)
        ids = self.tokenizer.encode(prompt)
        if not ids and self.config.bos_token_id is not None:
            ids = [self.config.bos_token_id]  # the model needs at least one token
        return tuple(ids)

    def _render(self, messages: Sequence[Message], chat: ChatArguments) -> tuple[int, ...]:
        """Returns the ids of a conversation, rendered by the model's chat template."""
        render = functools.partial(
            self.tokenizer.apply_chat_template,
            list(messages),
            add_generation_prompt=chat.add_generation_prompt and not chat.continue_final_message,
            continue_final_message=chat.continue_final_message,
            template_variables=chat.template_kwargs,
        )
        tools = read_tools(chat.tools)
        ids = tuple(render(tools=tools))
        if tools is not None and ids == tuple(render()):
            raise ChatTemplateError(
                "tools are given, but the model's chat template ignores them; leave them out, or describe them in the "
                "system message"
            )
        return ids

    def _candidates(
        self,
        prompts: Iterable[tuple[int, ...]],
        continues_prompt: bool,
        options: Options,
        turn_end_ids: frozenset[int] = frozenset(),
    ) -> list[Candidates]:
        """Returns the answers to be generated for prompts; checks the prompts and the options."""
        self._check_open()
        check_language_model(self.path, self._head)
        for note in [] if self._reported else generation_notes(self.generation_config):
            warnings.warn(f"{self.path}: {note}", stacklevel=4)
        self._reported = True
        stop_ids = self._stop_ids | turn_end_ids
        rule = self._rule(options)
        return [self._candidates_of(ids, stop_ids, continues_prompt, options, rule) for ids in prompts]

    def _candidates_of(
        self,
        ids: tuple[int, ...],
        stop_ids: frozenset[int],
        continues_prompt: bool,
        options: Options,
        rule: AnswerRule | None,
    ) -> Candidates:
        """Returns the answers to be generated for one prompt."""
        adapter = self._adapters.for_text(options.get("adapter"))
        longest = self._engine.longest - (0 if adapter is None else adapter.virtual_tokens)
        settings = settings_of(options, self.generation_config, len(ids), longest)
        sampling, top = settings.sampling, settings.prompt_logprobs
        if settings.best_of is not None and sampling.logprobs is None:
            sampling = replace(sampling, logprobs=0)
        speculate = self.backend == "native" if settings.speculate is None else settings.speculate
        request = Request(
            ids, settings.max_tokens, sampling, stop_ids, prompt_logits=top is not None, speculate=speculate,
            adapter=adapter, salt=settings.salt, priority=settings.priority,
            grammar=None if rule is None else rule.grammar(ids if continues_prompt else ()),
        )  # fmt: skip
        self._engine.check(request)
        stops = check_stops(settings.stop)
        if stops and rule is not None and not rule.checks_text:
            raise RequestError("stop strings cannot be combined with a grammar that contains special tokens")
        new_answer = functools.partial(
            Answer,
            tokenizer=self.tokenizer,
            stops=stops,
            continues_prompt=continues_prompt,
            rule=rule if rule is not None and (stops or rule.checks_all_answers) else None,
            include_stop=settings.include_stop_str_in_output,
            skip_special_tokens=settings.skip_special_tokens,
        )
        others = range(1, settings.n if settings.best_of is None else settings.best_of)
        return Candidates(
            (
                new_answer(request, prompt_logprobs=top),
                *(new_answer(replace(request, candidate=number, prompt_logits=False)) for number in others),
            ),
            settings.n,
            ranked=settings.best_of is not None,
            logprobs=settings.sampling.logprobs is not None,
            equal=sampling.temperature == 0,
        )

    def _rule(self, options: Options) -> AnswerRule | None:
        """Returns the rule that the answer must follow; None if there is none."""
        rule = read_rule(options)
        return None if rule is None else self._compiler.compile(rule)

    @cached_property
    def _compiler(self) -> Compiler:
        try:
            from puna.grammars.compile import Compiler
        except ModuleNotFoundError as exc:
            if exc.name != "llguidance":
                raise
            raise MissingExtraError(
                "structured output needs llguidance; install it with: pip install 'puna[grammar]'"
            ) from exc
        return Compiler(self.tokenizer, self.config.vocab_size)

    @cached_property
    def _stop_ids(self) -> frozenset[int]:
        """The ids that end a text according to the generation configuration or the tokenizer."""
        eos = self.tokenizer.eos_token_id
        return frozenset(self.generation_config.eos_token_ids) | (frozenset() if eos is None else frozenset({eos}))

    @cached_property
    def _turn_end_ids(self) -> frozenset[int]:
        from puna.tokenizer.chat.templates import end_of_turn_ids

        return end_of_turn_ids(self.tokenizer)
