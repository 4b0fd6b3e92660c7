"""`CompileConfig`: arguments of `torch.compile`, with the names and defaults of transformers; for compatibility."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass
class CompileConfig:
    """Arguments of `torch.compile` for `model.get_compiled_call`. `generate()` does not compile, and ignores them."""

    fullgraph: bool = False
    dynamic: bool | None = None
    backend: str | Any = "inductor"
    mode: str = "reduce-overhead"
    options: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the arguments."""
        return dataclasses.asdict(self)
