"""Finds the tests that use a name: as an attribute, as the name of an argument, or in the cases of a test."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
_SKIPPED = ("tests/compatibility", "tests/architecture", "tests/fuzz")


@dataclass(frozen=True, eq=False)  # compared by identity: sets of tests need no hashes of their names
class Test:
    """A test function: its file and name, and the names that it uses."""

    file: str
    name: str
    used: frozenset[str]

    def __str__(self) -> str:
        return f"{self.file.removeprefix('tests/')}::{self.name}"


@cache
def all_tests() -> tuple[Test, ...]:
    """Returns all tests of the repository, except those of this folder."""
    result: list[Test] = []
    for path in sorted(TESTS.rglob("test_*.py")):
        file = path.relative_to(TESTS.parent).as_posix()
        if not file.startswith(_SKIPPED):
            result += _tests(file, ast.parse(path.read_text()))
    return tuple(result)


@cache
def tests_by_name() -> dict[str, list[Test]]:
    """Returns the tests that use each name."""
    result: dict[str, list[Test]] = defaultdict(list)
    for test in all_tests():
        for name in test.used:
            result[name].append(test)
    return dict(result)


def find(names: tuple[str, ...], folders: tuple[str, ...]) -> Test | None:
    """Returns a test that uses all names: one in the first of `folders` that has any; in it, the most specific one."""
    tests = [set(tests_by_name().get(name, ())) for name in names]
    candidates = set.intersection(*tests)
    for folder in folders:
        within = [test for test in candidates if test.file.startswith(f"tests/{folder}")]
        if within:
            return min(within, key=lambda test: (len(test.used), test.file, test.name))
    return None


def _tests(file: str, tree: ast.Module) -> Iterator[Test]:
    """Returns the tests of a module; a test also uses the names in the functions and constants that it refers to."""
    parts: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            parts[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            parts[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            parts |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    nodes = {name: list(ast.walk(node)) for name, node in parts.items()}
    used = {name: _used(nodes[name]) for name in parts}
    references = {name: _references(nodes[name]) & parts.keys() for name in parts}
    for name, node in parts.items():
        if name.startswith("test_") and isinstance(node, ast.FunctionDef):
            reached, waiting = set(), [name]
            while waiting:
                part = waiting.pop()
                if part not in reached:
                    reached.add(part)
                    waiting += references[part]
            yield Test(file, name, frozenset().union(*(used[part] for part in reached)))


def _references(nodes: Iterable[ast.AST]) -> set[str]:
    """Returns the names in a piece of code, and those of its arguments, which may be fixtures."""
    return {
        node.id if isinstance(node, ast.Name) else node.arg for node in nodes if isinstance(node, ast.Name | ast.arg)
    }


def _used(nodes: Iterable[ast.AST]) -> set[str]:
    """Returns the attributes, the names of arguments and the words of short texts in a piece of code."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg is not None:
            names.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 2000:
            names.update(word for word in node.value.split() if word.isidentifier())
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return names
