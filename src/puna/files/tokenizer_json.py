"""Reads tokenizer.json with the library `tokenizers`, and turns the library's failures into errors of puna.

The library panics, or aborts the whole process, if a file announces tables larger than the file, or makes texts many
times longer. `check_pipeline` refuses such files before the library reads them. Other panics, which are not an
`Exception` in Python, become a TokenizerError.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.errors import PunaError, TokenizerError, show
from puna.files.json_file import parse_json
from puna.files.reading import read_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_LIMIT = 64 * 2**20
"""Maximum size of a tokenizer.json in bytes; that of Llama 3 has 17 MB."""

_MAX_VALUES = 4_000_000
"""Maximum number of values in a tokenizer.json; that of Llama 3 has 1.1 million."""

_MAX_ID = 4_000_000
"""Largest id of a token in the vocabulary. When the library saves a vocabulary, it reserves memory for all ids up to
the largest; the vocabularies of LLaMA models have fewer than 300,000 ids."""

_MAX_GROWTH = 64
"""How much longer normalising, post-processing or decoding may make a text. Pipelines of LLaMA models need 3: the space
becomes U+2581."""

_MAX_COUNT = 1_000_000
"""Limit on the settings `length`, `start` and `stop` of a step; real files have small values."""


@contextmanager
def library_errors(failure: str) -> Iterator[None]:
    """Context manager for calls of `tokenizers`: turns its errors and panics into a TokenizerError.

    Args:
        failure: what failed, for the message.
    """
    try:
        yield
    except (PunaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # the library raises no narrower class, and a panic is not an Exception
        raise TokenizerError(f"{failure}: {str(exc)[:500]}") from exc


def read_pipeline(path: Path) -> tuple[Tokenizer, list[str]]:
    """Reads a tokenizer.json, without its padding and truncation; returns the pipeline and notes on its tokens.

    Raises:
        ModelNotFoundError: there is no such file.
        TokenizerError: the file is damaged, or a part of the pipeline could exhaust the memory.
    """
    from tokenizers import Tokenizer

    data = read_file(path, TokenizerError, FILE_LIMIT)
    content = parse_json(data, str(path), TokenizerError, _MAX_VALUES)
    try:
        check_pipeline(content)
    except TokenizerError as exc:
        raise TokenizerError(f"{path}: {exc}") from exc
    with library_errors(f"{path} is not a tokenizer.json; download the file again"):
        pipeline = Tokenizer.from_str(data.decode("utf-8-sig"))
        pipeline.no_padding()
        pipeline.no_truncation()
        pipeline.encode("")  # fails if the parts of the pipeline do not fit together
        ids_in_file = [(token["content"], token["id"]) for token in content.get("added_tokens") or ()]
        return pipeline, numbering_notes(path.name, pipeline, ids_in_file)


def numbering_notes(file: str, pipeline: Tokenizer, ids_in_file: Iterable[tuple[str, int]]) -> list[str]:
    """Returns a note on the added tokens whose ids in a pipeline are not those that a file lists.

    The library gives a token that the vocabulary lacks the next free id, whatever id a file gives it.
    """
    ids = ((token, index, pipeline.token_to_id(token)) for token, index in ids_in_file)
    changes = [f"{show(token)} {actual} instead of {index}" for token, index, actual in ids if actual != index]
    if not changes:
        return []
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return [f"{file}: ids of added tokens are changed, as in transformers: {', '.join(changes[:3])}{more}"]


def check_pipeline(content: Mapping[str, Any]) -> None:
    """Raises TokenizerError if a part of a pipeline could make the library abort or exhaust the memory."""
    for name in ("normalizer", "decoder", "post_processor"):
        growth = math.prod(_growth(step) for step in _steps(content.get(name)))
        if growth > _MAX_GROWTH:
            raise TokenizerError(
                f"the {name} can make a text {growth} times longer; the limit is {_MAX_GROWTH}. No LLaMA model needs it"
            )
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(content.get(name)):
            _check_step(name, step)
    _check_prefix(content.get("model"))
    _check_ids(content.get("model"))


def _check_ids(model: Any) -> None:
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    for token, index in vocabulary.items() if isinstance(vocabulary, Mapping) else ():
        if type(index) is int and index > _MAX_ID:
            raise TokenizerError(
                f"the vocabulary gives the token {show(token)} the id {show(index)}; the limit is {_MAX_ID}"
            )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the steps of a part of the pipeline, in order; a sequence may contain sequences."""
    todo = [part]
    while todo:
        step = todo.pop()
        if isinstance(step, list):
            todo += reversed(step)
        elif isinstance(step, Mapping):
            for key in ("normalizers", "pretokenizers", "processors", "decoders"):
                todo.append(step.get(key))
            yield step


def _growth(step: Mapping[str, Any]) -> int:
    """Returns an upper bound for the factor by which a step makes a text longer."""
    lengths = [len(value) for name in ("content", "prepend") if isinstance(value := step.get(name), str)]
    tokens = step.get("special_tokens")
    items = tokens.values() if isinstance(tokens, Mapping) else ()
    longest = max(
        (len(ids) for item in items if isinstance(item, Mapping) and isinstance(ids := item.get("ids"), list)),
        default=1,
    )
    pieces = [len(value) * longest for name in ("single", "pair") if isinstance(value := step.get(name), list)]
    return max([1, *lengths, *pieces])


def _check_step(name: str, step: Mapping[str, Any]) -> None:
    for key in ("length", "start", "stop"):
        value = step.get(key)
        low = 1 if key == "length" else 0
        if value is not None and (type(value) is not int or not low <= value <= _MAX_COUNT):
            raise TokenizerError(f"the {name}'s {key} must be from {low} to {_MAX_COUNT}, got {str(value)[:40]}")
    pattern = step.get("pattern")
    if isinstance(pattern, Mapping) and "" in pattern.values():
        raise TokenizerError(f"the {name} searches for an empty text; the file is damaged, download it again")
    if "precompiled_charsmap" in step:
        _check_map(step["precompiled_charsmap"])


def _check_map(encoded: Any) -> None:
    """Refuses a precompiled map whose first table, of the size in its first four bytes, exceeds the map."""
    try:
        data = base64.b64decode(encoded or "", validate=True)
    except (TypeError, ValueError, binascii.Error) as exc:
        raise TokenizerError(f"the precompiled_charsmap is not base64 ({exc}); download the file again") from exc
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size < 4 or size % 4 or size > len(data) - 4:
        raise TokenizerError(
            f"the precompiled_charsmap has {len(data)} bytes and announces a table of {size}; download the file again"
        )


def _check_prefix(model: Any) -> None:
    """Refuses merges whose second token is shorter than the prefix that the library removes from it."""
    prefix = model.get("continuing_subword_prefix") if isinstance(model, Mapping) else None
    if not isinstance(prefix, str) or not prefix or not isinstance(model.get("merges"), list):
        return
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and pair and isinstance(pair[-1], str) and pair[-1].startswith(prefix)):
            raise TokenizerError(f"the merge {show(merge)} has no continuing_subword_prefix {show(prefix)}")
