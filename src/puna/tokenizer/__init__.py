"""Text to ids and back: the Hugging Face tokenizer classes of the LLaMA family, their files, and chat templates.

Names are loaded when first used, so that the SentencePiece class never imports `tokenizers`, nor the other
`sentencepiece`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.tokenizer.added_token import AddedToken
    from puna.tokenizer.encoding import BatchEncoding
    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.load import AutoTokenizer, load_tokenizer
    from puna.tokenizer.slow import LlamaTokenizer
    from puna.tokenizer.stream import StreamDecoder

__all__ = [
    "AddedToken",
    "AutoTokenizer",
    "BatchEncoding",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "StreamDecoder",
    "load_tokenizer",
]

_FILES = {
    "AddedToken": "added_token",
    "AutoTokenizer": "load",
    "BatchEncoding": "encoding",
    "LlamaTokenizer": "slow",
    "LlamaTokenizerFast": "fast",
    "StreamDecoder": "stream",
    "load_tokenizer": "load",
}


def __getattr__(name: str) -> Any:
    """Loads the file of a public name on first use (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module 'puna.tokenizer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"puna.tokenizer.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
