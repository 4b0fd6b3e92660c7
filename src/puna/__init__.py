"""puna: the LLaMA family in one small package. Public names are imported on first use."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from puna.errors import MissingExtraError

if TYPE_CHECKING:
    from puna.answer import Completion
    from puna.config import GenerationConfig, LlamaConfig
    from puna.convert import convert
    from puna.errors import PunaError
    from puna.llm import LLM
    from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
    from puna.tokenizer import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast, load_tokenizer

__version__ = "0.1.0"

_MODULES = {
    "AutoTokenizer": "puna.tokenizer",
    "Completion": "puna.answer",
    "GenerationConfig": "puna.config",
    "LLM": "puna.llm",
    "LlamaConfig": "puna.config",
    "LlamaForCausalLM": "puna.model",
    "LlamaForSequenceClassification": "puna.model",
    "LlamaModel": "puna.model",
    "LlamaTokenizer": "puna.tokenizer",
    "LlamaTokenizerFast": "puna.tokenizer",
    "PunaError": "puna.errors",
    "convert": "puna.convert",
    "load_tokenizer": "puna.tokenizer",
}

__all__ = [
    "LLM", "AutoTokenizer", "Completion", "GenerationConfig", "LlamaConfig", "LlamaForCausalLM",
    "LlamaForSequenceClassification", "LlamaModel", "LlamaTokenizer", "LlamaTokenizerFast", "PunaError", "__version__",
    "convert", "load_tokenizer",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the module that defines a public name on first use (PEP 562)."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'puna' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise MissingExtraError(f"puna.{name} needs PyTorch; install it with: pip install 'puna[torch]'") from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """The type of this module: keeps the function `puna.convert` when the package `puna.convert` is imported.

    An import sets the package as an attribute of `puna`, which would replace the function of the same name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
