"""The quantisation settings of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REMEDY = (
    "puna reads GPTQ and AWQ (version gemm) with 4 bits, compressed-tensors with 4 and 8 bits, and bitsandbytes; use "
    "the unquantised model or a GGUF file"
)


@dataclass(frozen=True)
class Settings:
    """The quantisation settings of a folder, with a `quant_method`, and the file or key that they were read from."""

    fields: Mapping[str, Any]
    source: str

    @property
    def method(self) -> str:
        """The method in lower case, shortened for messages."""
        method = self.fields.get("quant_method")
        return "an unknown method" if method is None else str(method).lower()[:40]
