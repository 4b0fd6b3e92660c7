"""`LoadedModel`: a model with its backend, its engine and its tokenizer: the base class of `TextModel`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from puna.backends import check_language_model, memory_errors, open_backend
from puna.checkpoint.names import SCORE
from puna.classification import ClassificationHead
from puna.config import LlamaConfig
from puna.engine import DEFAULT_DISK_BYTES, Engine, Runner, Statistics, open_disk_cache
from puna.errors import ArgumentError, ChatTemplateError, ModelNotFoundError, RequestError, show
from puna.lazy import cached_property
from puna.model_adapters import ModelAdapters
from puna.prompt_scores import PromptResult
from puna.prompts import ChatArguments, Message, is_messages, read_conversations, read_ids, read_tools

if TYPE_CHECKING:
    from puna.checkpoint import Checkpoint
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast

Scores = TypeVar("Scores", bound=PromptResult)


class LoadedModel:
    """A LLaMA model that is loaded, and the encoding of its prompts."""

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
        tensor_parallel: int = 1,
    ) -> None:
        """Loads a model.

        Args:
            path: a folder in Hugging Face's or Meta's layout, a GGUF file, a model of the hub (owner/name), an open
                checkpoint, or None for the default model.
            backend: "native" (C++ on the CPU), "torch", or "auto": native if it supports the model.
            threads: number of CPU threads; None means one per physical core.
            device: a PyTorch device such as "cuda"; None means the CPU. On a GPU, the first steps that decode 1, up to
                16, up to 64 and up to 256 sequences compile code, which can take half a minute each time.
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
            tensor_parallel: number of processes that share the matrices, for PyTorch on the CPU. torchrun starts them;
                all but the first call `puna.backends.follow`, as `puna serve --tp` does.

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
                checkpoint, backend, threads, device, dtype, quantize, max_batch, keep_quantized, tensor_parallel
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

    def __reduce__(self) -> NoReturn:
        raise ArgumentError(
            f"{type(self).__name__} cannot be pickled or copied, because a thread of this process runs the model; load "
            f"{str(self.path)!r} in the other process, or use this object from several threads"
        )

    def close(self) -> None:
        """Frees the memory of the weights and the cache. Later requests, and streams in progress, raise errors."""
        self._runner.close()

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model, "native" or "torch"."""
        return self._backend.name

    def statistics(self) -> Statistics:
        """Returns the numbers of the engine at this moment: requests, pages, tokens. Does not wait for a step."""
        return self._runner.statistics()

    def prompt_ids(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Returns the token ids of a prompt or a conversation, as the model reads them; see `LLM.start_deltas`."""
        chat = ChatArguments(tools, continue_final_message, add_generation_prompt, template_kwargs)
        if is_messages(prompt):
            ((messages,), _) = read_conversations(prompt)
            return self._render(messages, chat)
        chat.check_unused()
        return self._encode(cast("str | Sequence[int]", prompt))

    def longest_text(self, adapter: str | None = None) -> int:
        """Returns the maximum number of tokens of a text: the model's context without the adapter's virtual tokens."""
        loaded = self._adapters.loaded(adapter)
        return self.config.context_length - (0 if loaded is None else loaded.virtual_tokens)

    @cached_property
    def tokenizer(self) -> LlamaTokenizer | LlamaTokenizerFast:
        """The model's tokenizer."""
        from puna.tokenizer import load_tokenizer

        return load_tokenizer(self._tokenizer_path)

    def _checked(self, result: Scores) -> Scores:
        """Returns a result of a prompt whose request has been checked."""
        self._check_open()
        if result.request.output == "tokens":
            check_language_model(self._head)
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
            chat_template=chat.template,
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

    @cached_property
    def _stop_ids(self) -> frozenset[int]:
        """The ids that end a text according to the generation configuration or the tokenizer."""
        eos = self.tokenizer.eos_token_id
        return frozenset(self.generation_config.eos_token_ids) | (frozenset() if eos is None else frozenset({eos}))

    @cached_property
    def _turn_end_ids(self) -> frozenset[int]:
        from puna.tokenizer.chat.templates import end_of_turn_ids

        return end_of_turn_ids(self.tokenizer)
