"""Names of the files of a split model: PREFIX-00001-of-00003.gguf, and the same with .safetensors or .bin.

llama.cpp's gguf-split and transformers write these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PATTERN = re.compile(
    r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<ending>\.gguf|\.safetensors|\.bin)", re.DOTALL
)


@dataclass(frozen=True)
class PartName:
    """The name of one part.

    Attributes:
        prefix: the text that the names of all parts begin with.
        number: the number of the part, from 1 to `count`.
        ending: ".gguf", ".safetensors" or ".bin".
    """

    prefix: str
    number: int
    count: int
    ending: str = ".gguf"

    def __str__(self) -> str:
        return f"{self.prefix}-{self.number:05}-of-{self.count:05}{self.ending}"


def parse_part_name(name: str) -> PartName | None:
    """Returns the parsed name of a part; None if `name` is not the name of a part."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    return PartName(match["prefix"], int(match["number"]), int(match["count"]), match["ending"])


def group_parts(names: Iterable[str]) -> list[list[str]]:
    """Groups the names of files by model: the parts of a split model, in order, or a single file."""
    models: dict[tuple[str, int, str], list[str]] = {}
    for name in sorted(names):
        part = parse_part_name(name)
        models.setdefault((name, 0, "") if part is None else (part.prefix, part.count, part.ending), []).append(name)
    return list(models.values())


def name_from_path(path: Path) -> str:
    """Returns the name of a model: that of its folder or file, without the number of a part."""
    if not path.is_file():
        return path.resolve().name
    part = parse_part_name(path.name)
    return path.stem if part is None else part.prefix
