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

_PACKAGES = {
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
    """Imports the package of a public name on first use (PEP 562)."""
    package = _PACKAGES.get(name)
    if package is None:
        raise AttributeError(f"module 'puna' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(package), name)
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise MissingExtraError(f"puna.{name} needs PyTorch; install it with: pip install 'puna[torch]'") from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """A package whose public names are not replaced by subpackages of the same name (`convert`).

    Importing a subpackage sets it as an attribute of its package, which would hide the function of that name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PACKAGES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
