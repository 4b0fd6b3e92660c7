"""Rejects unidiomatic English by pattern, and names the plain form of each pattern.

The tests read comments, docstrings and messages of Python and C++, and complete documents. A pattern cannot tell
whether a sentence is clear; CONTRIBUTING.md has the rules.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.architecture.source_tree import ROOT

PATTERNS = {
    r"(?<!there )\b(is|are|was|were) no (?!longer|more|less)": "is not a, are not",
    r"\b(lies|lie|lay|lying) (beside|behind|before|in|on|next|after|one|apart|there|where|as)\b": "is in, follows",
    r"\b(stands?|stood|standing) (behind|before|beside|in|on|there|as|after|alone)\b": "is in, precedes",
    r"\bas (it|they) (lies?|stands?)\b": "unchanged, verbatim, in its stored layout",
    r"\bbeside\b": "next to, in addition to, compared with",
    r"\b(go|goes|going|gone|went) on with\b": "resume, continue, reuse",
    r"\bmend(s|ed|ing)?\b": "fix, correct",
    r"\banew\b": "again, from scratch",
    r"\btwins?\b": "reference implementation, counterpart",
    r"\b(rooms?(?! for)|doors?|the house|floors of)\b": "package, interface, architecture, layer",
    r"\b(the )?life of an? \w+": "the path of a prompt, a request, a checkpoint",
    r"\b(says|said|tells|told) of (itself|themselves|it|them|their|its)\b": "metadata, settings",
    r"\btold from\b": "distinguished from",
    r"\b(affairs?|matter) of\b": "belongs to, is handled by",
    r"\bof equals\b": "ties are broken by",
    r"\b(textbook|racer|kitchen)\b": "reference implementation, rig",
    r"\b(aloud|likewise|thereby|therein|whereof)\b": "(leave it out, or name the thing)",
    r"\bat the (least|most)\b": "at least, at most",
    r"\bone after the other\b": "one after another",
    r"\bis nothing but\b": "is exactly, consists only of",
    r"\bnot until then\b": "only then",
    r"\bwhat (it|they) (was|were|is|are) (asked|told|given|made)\b": "(a noun: the request, the argument)",
}
"""Maps patterns (case is ignored) to plain forms."""

SUFFIXES = {".py", ".cpp", ".h", ".inl", ".md", ".toml", ".txt", ".yml"}
NAMES = {"Makefile", "run"}
EXCLUDED_PREFIXES = ("tests/architecture/test_language.py", "tests/golden/", "LICENSE", "src/puna/sample.txt")

_COMPILED = [(re.compile(pattern, re.IGNORECASE), plain) for pattern, plain in PATTERNS.items()]

_ANY = re.compile(r"\b(?:" + "|".join(pattern.replace(r"\b", "", 1) for pattern in PATTERNS) + ")")
"""Matches lower-case text in which any of the patterns has a match. All begin with `\\b`, which is tested once."""

_CPP_PROSE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"", re.S)


def documents() -> list[Path]:
    """Returns every text file of the repository that people read, except data."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    names = [name for name in tracked.split("\0") if name and not name.startswith(EXCLUDED_PREFIXES)]
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.is_file() and (path.suffix in SUFFIXES or path.name in NAMES)]


def prose(path: Path) -> list[tuple[int, str]]:
    """Returns the numbers and text of the lines with comments, strings or document text; none if no pattern matches.

    Tokenizing every file would take longer than searching all of them.
    """
    text = path.read_text()
    if not _ANY.search(text.lower()):
        return []
    if path.suffix == ".py":
        kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        parts = [(token.start[0], token.string) for token in tokens if token.type in kinds]
    elif path.suffix in (".cpp", ".h", ".inl"):
        parts = [(text.count("\n", 0, match.start()) + 1, match[0]) for match in _CPP_PROSE.finditer(text)]
    else:
        parts = [(1, text)]
    return [(first + offset, line) for first, part in parts for offset, line in enumerate(part.split("\n"))]


def find_matches(lines: list[tuple[int, str]]) -> list[tuple[int, str, str]]:
    """Returns the line number, the matched words and the plain form of each match."""
    return [
        (number, match[0], plain)
        for number, line in lines
        for pattern, plain in _COMPILED
        for match in pattern.finditer(line)
    ]


def test_documents_include_the_main_files():
    paths = documents()
    if not paths:
        pytest.skip("not a git checkout")
    names = {path.relative_to(ROOT).as_posix() for path in paths}
    assert {"README.md", "Makefile", ".ci/run", "src/puna/llm.py", "csrc/model.cpp"} <= names


def test_no_text_matches_a_pattern():
    matches = {path: find_matches(prose(path)) for path in documents()}
    report = [
        f"{path.relative_to(ROOT)}:{number}: {words!r}; write: {plain}"
        for path, matches_in_file in matches.items()
        for number, words, plain in matches_in_file
    ]
    assert not report, "\n".join(report)


def test_all_patterns_can_be_searched_at_once():
    """They are in lower case and begin with a word boundary, which may follow a condition on the words before it."""
    assert all(re.match(r"(\(\?<!\w+ \))?\\b", pattern) for pattern in PATTERNS)
    assert all(re.sub(r"\\[A-Z]", "", pattern).islower() for pattern in PATTERNS)
    for pattern in PATTERNS:
        assert re.compile(pattern, re.IGNORECASE) and pattern.replace(r"\b", "", 1) in _ANY.pattern


@pytest.mark.parametrize(
    ("sentence", "count"),
    [
        ("True is no integer.", 1),
        ("There is no such file.", 0),
        ("The scales lie beside the quants.", 1),
        ("An interrupted run is gone on with.", 1),
        ("np.floor(x) rounds towards the floor", 0),
    ],
)
def test_patterns_match_their_examples(sentence, count):
    matched = {number for number, _, _ in find_matches([(1, sentence)])}
    assert len(matched) == count


def test_prose_of_python_and_cpp_is_found(tmp_path):
    (tmp_path / "a.py").write_text('beside = 1  # beside\nx = "this is no number"\n')
    (tmp_path / "b.cpp").write_text('int beside;  // beside\nauto s = "this is no number";\n/* two\nlines, anew */\n')
    assert [line for line, _, _ in find_matches(prose(tmp_path / "a.py"))] == [1, 2]
    assert [line for line, _, _ in find_matches(prose(tmp_path / "b.cpp"))] == [1, 2, 4]
