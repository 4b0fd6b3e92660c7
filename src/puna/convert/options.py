"""The options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.errors import CheckpointError, show
from puna.native.library import check_threads

Layout = Literal["hf", "meta", "gguf"]
LAYOUTS: tuple[Layout, ...] = ("hf", "meta", "gguf")


@dataclass(frozen=True)
class Options:
    """The options of a conversion; `puna.convert` documents them."""

    to: Layout | None = None
    dtype: str | None = None
    quantize: str | None = None
    shard_size: int | str | None = None
    shards: int | None = None
    kv_heads: int | None = None
    vocab_size: int | None = None
    pad_vocab_to: int | None = None
    instruct: bool = False
    threads: int | None = None

    @property
    def layout(self) -> Layout:
        """The layout of the result; by default GGUF with `quantize`, else Hugging Face's."""
        if self.to is not None and self.to not in LAYOUTS:
            raise CheckpointError(f"to is {show(self.to)}; it must be one of {', '.join(LAYOUTS)}")
        return self.to or ("hf" if self.quantize is None else "gguf")

    def check(self) -> None:
        """Checks that every option is in range, has an effect and does not contradict another option.

        Raises:
            CheckpointError, BackendError: an option is out of range, has no effect, or contradicts another option.
        """
        check_threads(self.threads)
        if self.shards is not None and (type(self.shards) is not int or self.shards < 1):
            raise CheckpointError(f"{show(self.shards)} shards were requested; give a whole number, at least 1")
        if self.layout == "gguf" and self.shards not in (None, 1):
            raise CheckpointError(f"shards is {self.shards}, but a GGUF model is one file; leave out shards")
        if self.shard_size is not None and (self.layout != "hf" or self.shards is not None):
            other = "shards is given too" if self.layout == "hf" else f"the layout is {self.layout}"
            raise CheckpointError(
                f"shard_size applies only to Hugging Face's layout without shards, but {other}; leave out shard_size"
            )
        if self.quantize is not None and (self.layout != "gguf" or self.dtype is not None):
            raise CheckpointError(
                f"quantize is {show(self.quantize)}, but only GGUF files hold quantised weights, "
                "which have no dtype; use "
                "the layout gguf, without dtype"
            )
