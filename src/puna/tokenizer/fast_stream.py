"""Which `TextStream` decodes like a decoder of `tokenizers`, found by the decoder's own description."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from functools import partial
from typing import Any

from tokenizers.decoders import Decoder

from puna.tokenizer.byte_alphabet import CHARACTER_TO_BYTE
from puna.tokenizer.stream import ByteRunStream, BytesStream, HoldStream, TextStream


def stream_for(
    decoder: Decoder | None,
    token_of: Callable[[int], str],
    skipped: Set[int],
    decode: Callable[[list[int]], str],
) -> TextStream:
    """A new stream.

    Args:
        token_of: the token of an id; raises for an unknown id.
        skipped: ids left out.
        decode: the whole decode, for decoders without a stream of their own.
    """
    steps = _steps(decoder)
    if steps == [{"type": "ByteLevel"}]:
        return BytesStream(partial(_bytes_of, token_of, skipped))
    plan = _replacements_and_strip(steps)
    if plan is None:
        return HoldStream(lambda ids: decode([index for index in ids if token_of(index) is not None]))
    replacements, has_bytes, strip = plan
    return ByteRunStream(partial(_part_of, token_of, skipped, replacements, has_bytes), strip)


def _steps(decoder: Decoder | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    described: dict[str, Any] = json.loads(decoder.__getstate__())
    steps = described["decoders"] if described["type"] == "Sequence" else [described]
    return [{"type": "ByteLevel"} if step["type"] == "ByteLevel" else step for step in steps]


def _replacements_and_strip(steps: list[dict[str, Any]]) -> tuple[list[tuple[str, str]], bool, int] | None:
    """Reads Replace..., ByteFallback, Fuse, Strip in this order, each optional; None for anything else."""
    rest = list(steps)
    replacements = []
    while rest and rest[0]["type"] == "Replace" and "String" in rest[0]["pattern"]:
        replacements.append((rest[0]["pattern"]["String"], rest[0]["content"]))
        del rest[0]
    has_bytes = bool(rest) and rest[0]["type"] == "ByteFallback"
    kinds = [step["type"] for step in rest[has_bytes:]]
    strip = 0
    if kinds == ["Fuse", "Strip"]:
        last = rest[-1]
        if last["content"] != " " or last["stop"] != 0:
            return None
        strip = last["start"]
    elif kinds != ["Fuse"] and not (kinds == [] and has_bytes):
        return None
    return replacements, has_bytes, strip


def _bytes_of(token_of: Callable[[int], str], skipped: Set[int], index: int) -> bytes:
    token = token_of(index)
    if index in skipped:
        return b""
    try:
        return bytes([CHARACTER_TO_BYTE[character] for character in token])
    except KeyError:  # an added token outside the alphabet stands for its own characters
        return token.encode()


def _part_of(
    token_of: Callable[[int], str],
    skipped: Set[int],
    replacements: list[tuple[str, str]],
    has_bytes: bool,
    index: int,
) -> str | int | None:
    token = token_of(index)
    if index in skipped:
        return None
    for old, new in replacements:
        token = token.replace(old, new)
    if has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return token
    return token
