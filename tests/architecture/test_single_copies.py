"""Finds second copies of logic that has one place, by the text that a copy would contain."""

import re
from pathlib import Path

import pytest

from tests.architecture.source_tree import ROOT

PLACES = {
    r"!r:\.\d|repr\([^()]*\)\[:|\[:\d+\]!r|text\[:80\]": ("errors.py", "show() formats a value for a message"),
    r"/ (1e[69]|2\*\*[23]0):": ("errors.py", "show_bytes() formats a number of bytes"),
    r"functools.*cached_property": ("lazy.py", "cached_property there has no lock, which a fork could leave locked"),
    r"\"models--": ("hub/reference.py", "cache_name() and cached_model() convert names of folders in the hub's cache"),
    r"\{5\}\)?-of-|:05\}-of-\{": ("files/part_names.py", "PartName is the name of a part or shard"),
}
"""Maps a pattern to the only file of `src/puna` that may contain it, and to the function to use instead."""


@pytest.mark.parametrize("pattern", PLACES)
def test_one_file_contains_each_piece_of_logic(pattern: str) -> None:
    source = ROOT / "src" / "puna"
    place, remedy = PLACES[pattern]
    files = {path.relative_to(source) for path in source.rglob("*.py") if re.search(pattern, path.read_text("utf-8"))}
    assert files == {Path(place)}, remedy
