"""Prints the public members of the tokenizer classes of one release of transformers, and their arguments, as JSON.

Run it in the environment of the release: python tests/oracles/tokenizer_interface.py TOKENIZER_MODEL
"""

import inspect
import json
import sys

import transformers

CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast", "BatchEncoding")


def members(cls, instance):
    """Returns name to argument names, None for members that are not callable."""
    result = {name: None for name in vars(instance) if not name.startswith("_")}
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        if name.startswith("_") and name not in ("__init__", "__call__", "_convert_id_to_token"):
            continue
        value = getattr(value, "__func__", value)
        result[name] = parameters(value) if callable(value) else None
    return result


def parameters(function):
    """Returns the names of the arguments of a function, without self."""
    names = [name for name, item in inspect.signature(function).parameters.items() if item.kind not in (2, 4)]
    return [name for name in names if name not in ("self", "cls")]


def make(name, vocab):
    """Returns an instance of a class."""
    cls = getattr(transformers, name)
    if name == "BatchEncoding":
        return cls({})
    return cls(vocab_file=vocab) if transformers.__version__.startswith("4.") else cls()


if __name__ == "__main__":
    result = {}
    for name in CLASSES:
        result[name] = dict(sorted(members(getattr(transformers, name), make(name, sys.argv[1])).items()))
    json.dump(result, sys.stdout)
