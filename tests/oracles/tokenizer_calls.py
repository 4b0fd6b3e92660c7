"""Runs calls of tokenizers; imported by tests for puna, and run in the environment of one release of transformers.

Reads a JSON object from standard input: `tokenizers` (name to class and constructor arguments) and `calls` (tokenizer,
attributes to set, method, arguments, options). Prints a JSON list of results; "error" for a call that raises.
"""

import contextlib
import io
import json
import sys
import warnings

POSITIONS = ("tokens", "word_ids", "sequence_ids")


def run(module, request):
    """Returns the results of the calls with the classes of a module."""
    objects = {}
    for name, (cls, arguments, pad_token) in request["tokenizers"].items():
        objects[name] = getattr(module, cls)(**arguments)
        objects[name].pad_token = pad_token
    results = []
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for call in request["calls"]:
            tokenizer = objects[call["tokenizer"]]
            for name, value in call["attributes"].items():
                setattr(tokenizer, name, value)
            try:
                results.append(result_of(tokenizer, call))
            except BaseException:  # the library tokenizers also panics, which is not an Exception
                results.append("error")
    return results


def result_of(tokenizer, call):
    """Returns the result of one call as JSON values."""
    arguments = [tuple(a) if isinstance(a, list) and call.get("tuples") else a for a in call["arguments"]]
    result = getattr(tokenizer, call["method"])(*arguments, **call["options"])
    plain = to_plain(dict(result) if hasattr(result, "keys") else result)
    if getattr(result, "is_fast", False):
        count = len(result.encodings)
        plain["positions"] = [[to_plain(getattr(result, name)(i)) for name in POSITIONS] for i in range(count)]
        plain["characters"] = [characters(result, i) for i in range(count)]
    return plain


def characters(result, index):
    """Returns the answers of the lookups for the first characters, tokens and words of one row."""
    tokens = range(min(len(result.encodings[index].ids), 6))
    values = [result.char_to_token(index, char) for char in range(6)]
    values += [result.char_to_word(index, char) for char in range(6)]
    values += [result.token_to_word(index, token) for token in tokens]
    values += [result.token_to_sequence(index, token) for token in tokens]
    values += [result.token_to_chars(index, token) for token in tokens]
    return [*values, result.word_to_tokens(index, 0)]


def to_plain(value):
    """Returns arrays as lists, and tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    import transformers

    json.dump(run(transformers, json.load(sys.stdin)), sys.stdout)
