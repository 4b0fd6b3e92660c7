"""Prints the public names of the LLaMA classes of the installed release of transformers, as JSON.

`names.json` holds the results for 4.34.1 and 5.23.0: for each class, its attributes with their values in a new object,
and its methods with the defaults of their arguments. Names of PyTorch's `Module` and of Python's `object` are left out.

Usage: python record.py VOCABULARY, the path of a SentencePiece model; prints {class: {name: value}}.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import warnings

SIZES = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = ("LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification")
CONFIGS = ("LlamaConfig", "GenerationConfig")
TOKENIZERS = ("LlamaTokenizer", "LlamaTokenizerFast")
_PLAIN = (bool, int, float, str, type(None))


def describe(value: object) -> object:
    """Returns a short plain value, and the name of its type in angle brackets for any other value."""
    if isinstance(value, str) and (len(value) > 40 or "/" in value):
        return "<str>"
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, _PLAIN) for item in value):
        return list(value)
    return f"<{type(value).__name__}>"


def arguments(function: object) -> dict[str, object]:
    """Returns the named arguments of a method and their defaults; a required argument has the default "<required>"."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return {}
    return {
        p.name: "<required>" if p.default is p.empty else describe(p.default)
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in ("self", "cls")
    }


def members(cls: type, instance: object, hidden: set[str]) -> dict[str, object]:
    """Returns the public names of a class and its instance: {"default": value} or {"arguments": {...}}."""
    result: dict[str, object] = {"__init__": {"arguments": arguments(cls.__init__)}}
    names = set(dir(cls)) | {name for name in vars(instance) if not name.startswith("_")}
    for name in sorted(name for name in names if re.fullmatch("[a-z][a-zA-Z0-9_]*", name) and name not in hidden):
        try:
            value = getattr(instance, name)
        except Exception:  # some attributes raise until they are set
            value = "<unset>"
        if callable(value) and not inspect.isclass(value) and callable(getattr(cls, name, None)):
            result[name] = {"arguments": arguments(value)}
        else:
            result[name] = {"default": describe(value)}
    if "tokenize" in result:
        result["__call__"] = {"arguments": arguments(cls.__call__)}
    return result


def record(vocabulary: str) -> dict[str, object]:
    """Returns the names of all classes."""
    import torch
    import transformers

    result = {}
    hidden = set(dir(torch.nn.Module)) | set(vars(torch.nn.Module())) | set(dir(object))
    for name in MODELS:
        cls = getattr(transformers, name)
        result[name] = members(cls, cls(transformers.LlamaConfig(**SIZES)), hidden - {"forward"})
    for name in CONFIGS:
        cls = getattr(transformers, name)
        result[name] = members(cls, cls(), set(dir(object)))
    for name in TOKENIZERS:
        cls = getattr(transformers, name)
        new = cls(vocabulary) if transformers.__version__ < "5" else cls()
        result[name] = members(cls, new, set(dir(object)))
    return result


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(record(sys.argv[1])))
