"""Tokenizers of the LLaMA family: the Hugging Face classes, their files, streaming decoding, and chat templates.

Names are loaded on first use, so that `LlamaTokenizer` does not import `tokenizers`, and `LlamaTokenizerFast` does not
import `sentencepiece`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.tokenizer.calls.batch_encoding import BatchEncoding
    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.huggingface.code_llama import CodeLlamaTokenizer, CodeLlamaTokenizerFast
    from puna.tokenizer.huggingface.names import PreTrainedTokenizerBase
    from puna.tokenizer.load import AutoTokenizer, load_tokenizer
    from puna.tokenizer.slow import LlamaTokenizer
    from puna.tokenizer.special import AddedToken
    from puna.tokenizer.streams import StreamDecoder

__all__ = [
    "AddedToken",
    "AutoTokenizer",
    "BatchEncoding",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerBase",
    "StreamDecoder",
    "load_tokenizer",
]

_MODULES = {
    "AddedToken": "special",
    "AutoTokenizer": "load",
    "BatchEncoding": "calls.batch_encoding",
    "CodeLlamaTokenizer": "huggingface.code_llama",
    "CodeLlamaTokenizerFast": "huggingface.code_llama",
    "LlamaTokenizer": "slow",
    "LlamaTokenizerFast": "fast",
    "PreTrainedTokenizerBase": "huggingface.names",
    "StreamDecoder": "streams",
    "load_tokenizer": "load",
}


def __getattr__(name: str) -> Any:
    """Loads the module of a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'puna.tokenizer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"puna.tokenizer.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
