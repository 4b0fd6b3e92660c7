"""The modules of src/puna and the imports of each, read from their syntax trees."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "puna"


def modules() -> list[Path]:
    """Returns every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Returns the syntax tree of a file; callers do not change it."""
    return ast.parse(path.read_text())


def short_path(path: Path) -> str:
    """Returns the path within src/puna, used as a test id."""
    return str(path.relative_to(PACKAGE))


def module_name(path: Path) -> str:
    """Returns the dotted name: "puna.config" for src/puna/config/__init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path: Path) -> str:
    """Returns the first name below `puna`: "config" for puna/config/rope.py, "llm" for puna/llm.py."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Returns the name and line of each import in a tree, also in functions and TYPE_CHECKING blocks.

    `from puna.a import b` yields "puna.a.b": the caller decides whether b is a module or a name in puna.a.
    """
    result = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            result += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            result += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return result


@functools.cache
def imports_of(path: Path) -> list[tuple[str, int]]:
    """Returns the imports of a file; callers do not change the list."""
    return imports(tree_of(path))


def imports_at_load(tree: ast.Module) -> list[str]:
    """Returns the imports that run when the file is loaded: none in functions or under TYPE_CHECKING."""
    result: list[str] = []
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            result += [name for name, _ in imports(ast.Module([node], []))]
        elif isinstance(node, ast.If):
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            pending += node.orelse if typing_only else node.body + node.orelse
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            pending += node.body
    return result


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Maps each module to the modules of this package that it imports, wherever the import is written.

    The root `puna` is left out: it loads its names lazily, and `test_imports.py` restricts imports from it.
    """
    names = {module_name(path) for path in modules()} - {"puna"}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in modules():
        name = module_name(path)
        if name == "puna":
            continue
        for imported, _ in imports_of(path):
            target = imported if imported in names else imported.rpartition(".")[0]
            if target in names:
                graph[name].add(target)
    return graph


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Returns the groups of modules that import each other, directly or not (strongly connected components)."""
    reachable = {name: _reachable(graph, name) for name in graph}
    groups = {frozenset({name} | {other for other in reachable[name] if name in reachable[other]}) for name in graph}
    return [set(group) for group in groups if len(group) > 1 or any(name in graph[name] for name in group)]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    pending = list(graph[start])
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += graph[name]
    return seen
