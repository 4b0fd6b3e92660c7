"""The recorded names of transformers, and new objects of puna's classes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import puna
from tests.compatibility.record import MODELS, SIZES

_RECORDED = Path(__file__).with_name("names.json")
CHECKPOINT = Path(__file__).resolve().parents[1] / "golden" / "checkpoint" / "hf"
"""The checkpoint of the tests, in Hugging Face's layout."""


@cache
def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns {class: {name: {release: {"default" or "arguments": ...}}}}."""
    result: dict[str, dict[str, dict[str, Any]]] = json.loads(_RECORDED.read_text())
    return result


def new_object(cls: str) -> Any:
    """Returns an object of one of puna's classes, with a small model."""
    if cls in MODELS:
        return getattr(puna, cls)(puna.LlamaConfig(**SIZES))
    if cls.startswith("LlamaTokenizer"):
        return getattr(puna, cls).from_pretrained(CHECKPOINT, pad_token="</s>")
    return getattr(puna, cls)()
