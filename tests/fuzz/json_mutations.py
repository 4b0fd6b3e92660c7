"""Mutations of JSON documents: changes of values, keys and structure, and damage to the encoded text."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from typing import Any

RAW = {"@1e400@": "1e400", "@-1e400@": "-1e400", "@big@": "1" + "0" * 400, "@5000@": "9" * 5000, "@-0@": "-0.0"}
"""By placeholder: the text of a number that `json.dumps` cannot write."""

NUMBERS: list[Any] = [0, 1, -1, 2, 3, 7, 32, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1]
NUMBERS += [2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**31), -(2**63), 0.5, 1.5, -0.5, 1e-300, 1e300, 1e38]
NUMBERS += [float("nan"), float("inf"), float("-inf"), *RAW]
TEXTS: list[Any] = [
    "",
    " ",
    "a",
    "\0",
    "\ud800",
    "\udcff",
    "é🦙\u202e",
    "\x1b[2J",
    "x" * 3000,
    "../../x",
    "/dev/zero",
    "-1",
]
TEXTS += ["1e5", "true", "null", "llama", "LlamaForCausalLM", "</s>", "<s>", "<unk>", "▁", "{{", "{% for %}", "\n", "0"]
OTHERS: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1],
    ["a"],
    {"a": 1},
    [[[[[[]]]]]],
    ["x"] * 300,
]


def any_value(rng: random.Random) -> Any:
    """Returns a random value that is interesting in any JSON file."""
    return copy.deepcopy(rng.choice(rng.choice([NUMBERS, TEXTS, OTHERS])))


MAX_NODES = 20_000
"""Largest number of values in a document; repeated copies of a list would otherwise grow it exponentially."""


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key or index) of every value inside `value`."""
    result, pending = [], [value]
    while pending and len(result) < MAX_NODES:
        item = pending.pop()
        keys: Any = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        result += [(item, key) for key in keys]
        pending += [item[key] for key in keys]
    return result


def mutate(rng: random.Random, document: Any, keys: list[str], values: list[Any]) -> bytes:
    """Returns the text of a mutated copy of a document.

    Args:
        keys: names that the readers of this kind of file know.
        values: values that are interesting in this kind of file.
    """
    root = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        rng.choice(_STRUCTURE)(rng, root, keys, values)
        if len(nodes(root)) >= MAX_NODES:
            root = copy.deepcopy(document)
    text = json.dumps(root, ensure_ascii=rng.random() < 0.5)
    for name, number in RAW.items():
        text = text.replace(f'"{name}"', number)
    data = text.encode("utf-8", "surrogatepass")
    return rng.choice(_TEXT)(rng, data) if rng.random() < 0.12 else data


def _pick(rng: random.Random, root: Any) -> tuple[Any, Any]:
    """Returns the container and the key of a random value, more often of one near the top."""
    candidates = nodes(root)
    if not candidates:
        return {"": root}, ""
    return rng.choice(candidates[: rng.choice([10, 40, len(candidates)])])


def _value(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    """Replaces a random value."""
    container, key = _pick(rng, root)
    container[key] = copy.deepcopy(rng.choice(values)) if values and rng.random() < 0.4 else any_value(rng)


def _near(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    """Changes a value to a similar one: another number, a shorter or longer text or list, another type."""
    container, key = _pick(rng, root)
    old = container[key]
    changes: list[Any] = [[old], {"a": old}, str(old), None]
    if isinstance(old, bool):
        changes += [not old, int(old)]
    elif isinstance(old, (int, float)):
        changes += [old + 1, old - 1, -old, old * 2, float(old), old * 1000, 0]
    elif isinstance(old, str):
        changes += [old + "x", old[:-1], old * 2, old.upper(), [*old], old + "\0"]
    elif isinstance(old, list):
        changes += [old * 2, old[1:], old[::-1], [*old, None], [*old, old]]
    elif isinstance(old, dict):
        changes += [list(old), list(old.items()), dict(list(old.items())[1:]), old | {"x": 1}]
    container[key] = copy.deepcopy(rng.choice(changes))


def _delete(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    container, key = _pick(rng, root)
    if container is not root or len(root) > 1:
        del container[key]


def _rename(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    container, key = _pick(rng, root)
    if isinstance(container, dict):
        names = [*keys, *(str(other) for _, other in nodes(root)[:200]), *TEXTS]
        container[rng.choice(names)] = container.pop(key)


def _add(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    container, _ = _pick(rng, root)
    value = copy.deepcopy(rng.choice(values)) if values and rng.random() < 0.5 else any_value(rng)
    if isinstance(container, dict):
        container[rng.choice(keys) if keys and rng.random() < 0.8 else rng.choice(TEXTS)] = value
    else:
        container.insert(rng.randrange(len(container) + 1), value)


def _swap(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    (one, first), (other, second) = _pick(rng, root), _pick(rng, root)
    value = copy.deepcopy(other[second])
    other[second] = copy.deepcopy(one[first])
    with contextlib.suppress(IndexError):
        one[first] = value


def _copy_many(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    container, key = _pick(rng, root)
    if isinstance(container, list):
        container += [copy.deepcopy(container[key])] * rng.choice([1, 10, 1000])
    else:
        container |= {f"{key}{number}": container[key] for number in range(rng.choice([1, 10, 300]))}


def _nest(rng: random.Random, root: Any, keys: list[str], values: list[Any]) -> None:
    container, key = _pick(rng, root)
    value = container[key]
    for _ in range(rng.choice([1, 5, 50, 150])):
        value = [value] if rng.random() < 0.5 else {str(key): value}
    container[key] = value


Change = Callable[[random.Random, Any, list[str], list[Any]], None]

_STRUCTURE: list[Change] = [_value, _value, _value, _value, _near, _near, _near, _delete, _delete, _rename]
_STRUCTURE += [_add, _add, _swap, _copy_many, _nest]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes) -> bytes:
    new = bytearray(data or b"x")
    for _ in range(rng.choice([1, 2, 10])):
        new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    return bytes(new)


def _repeat_key(rng: random.Random, data: bytes) -> bytes:
    """Repeats the first key with another value."""
    end = data.find(b":")
    return (
        data[: end + 1] + b" " + rng.choice([b"null", b"1", b'"x"', b"[]", b"{}"]) + b", " + data[1:]
        if end > 0
        else data
    )


def _deep(rng: random.Random, data: bytes) -> bytes:
    """Appends a deeply nested value."""
    depth = rng.choice([10, 1000, 100_000])
    return data[:-1] + b', "deep": ' + rng.choice([b"[", b'{"a":']) * depth + b"}"


def _wide(rng: random.Random, data: bytes) -> bytes:
    """Appends a list of two million values."""
    return data[:-1] + b', "wide": [' + rng.choice([b"[],", b"1,", b'{"":0},', b'"",']) * 2_000_000 + b"0]}"


def _recode(rng: random.Random, data: bytes) -> bytes:
    """Encodes the text in another encoding."""
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be", "latin-1"]), "replace")


def _replace(rng: random.Random, data: bytes) -> bytes:
    """Returns a short document of another type, or the document with bytes before or after it."""
    return rng.choice(
        [b"", b" ", b"null", b"[]", b"5", b'"x"', b"[" * 100_000, b"\0" * 100, b"\xef\xbb\xbf" + data, data + b"x"]
    )


_TEXT = [_truncate, _flip, _flip, _repeat_key, _repeat_key, _deep, _wide, _recode, _replace]
