"""`Service`: the model of a server, its names, and its state from loading to draining."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from puna.async_llm import AsyncLLM
from puna.errors import PunaError, RuleError, puna_error, show, suggestion
from puna.server.errors import ApiError
from puna.server.generation import Generation, Running, start
from puna.server.guard.admission import Admission
from puna.server.guard.exchange import current_exchange
from puna.server.observation import Observer
from puna.server.settings import ServerSettings
from puna.server.warm import warm

if TYPE_CHECKING:
    from puna.checkpoint import Checkpoint

State = Literal["loading", "ready", "draining", "failed"]


def model_digest(llm: AsyncLLM, checkpoint: Checkpoint | None = None) -> str:
    """Returns a digest of all that determines the answers of a model, over every byte of its weights.

    The weights are read once: the disk cache has computed their digest already. In addition to them, the build and the
    instruction set, the digest covers the tokenizer, the chat template and the settings of generation.

    Args:
        checkpoint: the model's checkpoint if it is open.
    """
    from puna.checkpoint import open_checkpoint
    from puna.engine.disk import model_fingerprint

    disk, tokenizer = llm._engine.pool.disk, llm.tokenizer
    weights = disk.fingerprint if disk else model_fingerprint(checkpoint or open_checkpoint(llm.path), llm._backend)
    pipeline = getattr(tokenizer, "backend_tokenizer", None)
    tokens = json.dumps(tokenizer.get_vocab(), sort_keys=True) if pipeline is None else pipeline.to_str()
    settings = [
        str(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, default=str),
        json.dumps(llm.generation_config.to_dict(), default=str),
    ]
    return hashlib.blake2b("\0".join([weights.hex(), tokens, *settings]).encode(), digest_size=32).hexdigest()


class Service:
    """A model that answers requests.

    Args:
        model: an `AsyncLLM`, or the path of a model for `load_in_thread`; None is the default model.
        settings: the server's settings.

    Attributes:
        settings: the server's settings.
        state: "loading", "ready", "draining" or "failed".
        error: why loading failed.
        created: when this object was created, in seconds since 1970.
        admission: the queue in front of the engine.
        observer: records requests in the metrics and in the log.
    """

    def __init__(self, model: AsyncLLM | str | Path | None, settings: ServerSettings) -> None:
        self.settings = settings
        self.state: State = "loading"
        self.error: PunaError | None = None
        self.created = int(time.time())
        self._path = None if isinstance(model, AsyncLLM) else model
        self._llm: AsyncLLM | None = None
        self._fingerprints: dict[str | None, str] = {}
        self.admission = Admission(settings.slots, settings.admission)
        self.observer = Observer(self.admission)
        if isinstance(model, AsyncLLM):
            self._open(model)

    def load_in_thread(self, on_compile: Callable[[Sequence[int]], None] = lambda sizes: None) -> threading.Thread:
        """Starts to load the model in a thread, while other modules are imported; returns the thread.

        Args:
            on_compile: called before anything is compiled, with the numbers of sequences for which code is compiled.
        """
        thread = threading.Thread(target=self._load, args=(on_compile,), name="puna-load", daemon=True)
        thread.start()
        return thread

    def _load(self, on_compile: Callable[[Sequence[int]], None]) -> None:
        options: dict[str, Any] = dict(self.settings.options)
        try:
            from puna.checkpoint import locate_model, open_checkpoint

            checkpoint = open_checkpoint(locate_model(self._path))
            llm = AsyncLLM(checkpoint, adapters=self.settings.adapters or None, **options)
            _ = llm.tokenizer
            if checkpoint.head == "lm" and not self.settings.lazy_compile:
                llm._backend.compile(self.settings.slots, on_compile)
            if self.settings.warm is not None:
                warm(llm, self.settings.warm)
            self._open(llm, checkpoint)
        except Exception as exc:
            self.error, self.state = puna_error(exc), "failed"

    def _open(self, llm: AsyncLLM, checkpoint: Checkpoint | None = None) -> None:
        """Starts to accept requests for a model."""
        self._model_digest = model_digest(llm, checkpoint)
        self._llm = llm
        self.observer.open(self.name, self.settings.adapters, self.settings.metrics_alias, llm._engine)
        self.state = "ready" if self.state == "loading" else self.state

    @property
    def llm(self) -> AsyncLLM:
        """The model.

        Raises:
            ApiError: 503, while it is loading or if it could not be loaded.
        """
        if self._llm is None:
            if self.state == "failed":
                raise ApiError(503, "the model could not be loaded; the log of the server has the cause")
            raise ApiError(503, "the model is loading; try again in a few seconds", retry_after=2)
        return self._llm

    def check_ready(self) -> None:
        """Raises ApiError 503 unless new requests are accepted."""
        _ = self.llm
        if self.state == "draining":
            raise ApiError(503, "the server is shutting down; use another one", retry_after=1)

    @property
    def name(self) -> str:
        """The name of the base model."""
        if self.settings.name is not None:
            return self.settings.name
        path = self.llm.path
        return path.stem if path.is_file() else path.resolve().name

    @property
    def names(self) -> list[str]:
        """The names that the field `model` may have: the base model, then its adapters."""
        return [self.name, *self.settings.adapters]

    def adapter(self, model: str) -> str | None:
        """Returns the adapter that a model's name refers to; None for the base model.

        Raises:
            ApiError: 404, if there is no such model.
        """
        if model == self.name:
            return None
        if model not in self.settings.adapters:
            names = ", ".join(self.names)
            message = f"there is no model {show(model)}; this server has: {names}{suggestion(model, self.names)}"
            raise ApiError(404, message, type="invalid_request_error", param="model", code="model_not_found")
        return model

    def fingerprint(self, adapter: str | None) -> str:
        """Returns the fingerprint of the build, the weights, the tokenizer, the adapter and the instruction set.

        With the native backend, equal fingerprints, requests and seeds give equal answers, bit for bit.
        """
        if adapter not in self._fingerprints:
            loaded = self.llm._adapters.loaded(adapter)
            parts = [self._model_digest, loaded.digest if loaded else ""]
            self._fingerprints[adapter] = "fp_" + hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
        return self._fingerprints[adapter]

    async def start(self, generation: Generation) -> Running:
        """Starts to generate; see `puna.server.generation.start`.

        Raises:
            ApiError: 503, if the model is loading or the server is shutting down.
        """
        self.check_ready()
        exchange = current_exchange()
        generation = replace(generation, salt=exchange.caller.namespace(generation.salt))
        longest = self.settings.limits.tokens
        if longest is not None and "max_tokens" not in generation.options:
            generation = replace(generation, options={**generation.options, "max_tokens": longest})
        try:
            running = await start(self.llm, generation)
        except RuleError as exc:
            self.observer.refused(exc)
            raise
        running.on_end = lambda: self.observer.answered(exchange, generation, running)
        return running

    def drain(self) -> None:
        """Starts to refuse new requests; running requests may finish."""
        self.state = "draining"

    def close(self) -> None:
        """Frees the model."""
        if self._llm is not None:
            self._llm.close()
