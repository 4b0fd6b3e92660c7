"""Loads models with the options of a command, and shows the progress."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.cli.models import locate, model_name
from puna.cli.terminal import detail, status

if TYPE_CHECKING:
    from pathlib import Path

    from puna.checkpoint import Checkpoint
    from puna.llm import LLM


@dataclass(frozen=True)
class Loader:
    """The options with which models are loaded; `LLM` documents them.

    Attributes:
        generates: whether the command generates text; models that cannot are refused.
        adapter: path of an adapter to load; the path is also the name of the adapter.
    """

    backend: str = "auto"
    threads: int | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    max_batch: int = 1
    prefix_cache_dir: Path | None = None
    generates: bool = True
    adapter: str | None = None

    def load(self, model: str | None) -> tuple[str, LLM]:
        """Returns the name to show and the model; a model of the hub is downloaded first."""
        name, checkpoint = self.open(model)
        return name, self.load_checkpoint(name, checkpoint)

    def open(self, model: str | None) -> tuple[str, Checkpoint]:
        """Returns the name to show and the open checkpoint, which is checked, but not in memory."""
        from puna.checkpoint import open_checkpoint

        path = locate(model)
        return model_name(path), open_checkpoint(path)

    def load_checkpoint(self, name: str, checkpoint: Checkpoint) -> LLM:
        """Loads an open checkpoint into memory."""
        from puna.backends import check_language_model
        from puna.llm import LLM

        if self.generates:
            check_language_model(checkpoint.head)
        start = time.perf_counter()
        with status(f"Loading {name} ..."):
            llm = LLM(
                checkpoint, self.backend, self.threads, device=self.device, dtype=self.dtype, quantize=self.quantize,
                max_batch=self.max_batch, prefix_cache_dir=self.prefix_cache_dir,
                adapters=None if self.adapter is None else {self.adapter: self.adapter},
            )  # fmt: skip
        detail(
            f"loaded {checkpoint.path} in {time.perf_counter() - start:.2f} s: {llm.backend} backend, context of "
            f"{llm.config.context_length} tokens"
        )
        return llm
