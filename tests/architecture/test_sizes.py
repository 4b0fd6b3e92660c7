"""Limits that keep the code readable: lines of a file and of a function, files in a folder."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tests.architecture.source_tree import PACKAGE, modules, short_path, tree_of

FILE_LINES = 400
"""Maximum number of lines in a file. Aim for 300; the public interface of a Hugging Face class may need more."""

FOLDER_FILES, FOLDER_LINES = 20, 3000
"""Maximum numbers of files in a folder and of lines in these files; subpackages do not count."""

FUNCTION_LINES, USUAL_FUNCTION_LINES = 60, 30
"""Maximum numbers of lines in a function without its docstring: in any function, and in 95 of 100 functions."""

FORWARD_FILES, FORWARD_LINES = ("llama.py", "attention.py", "rope.py"), 500
"""The files of model/ that contain the forward pass, and the limit of their lines that are not blank.

The other files hold checks of arguments, containers, names of activations, loading, saving and generation.
"""


def test_files_are_short():
    for path in modules():
        lines = len(path.read_text().splitlines())
        assert lines <= FILE_LINES, f"{short_path(path)} has {lines} lines; split it by meaning"


def test_large_packages_have_subpackages():
    folders: dict[Path, list[int]] = defaultdict(list)
    for path in modules():
        folders[path.parent].append(len(path.read_text().splitlines()))
    for folder, sizes in folders.items():
        assert len(sizes) <= FOLDER_FILES, f"{folder.name}/ holds {len(sizes)} files; make a subpackage"
        assert sum(sizes) <= FOLDER_LINES, f"{folder.name}/ holds {sum(sizes)} lines; make a subpackage"


def test_the_forward_pass_takes_fewer_than_500_lines_to_read():
    lines = [line for name in FORWARD_FILES for line in (PACKAGE / "model" / name).read_text().splitlines()]
    assert sum(bool(line.strip()) for line in lines) < FORWARD_LINES


def test_the_tokenizer_has_at_most_22_files():
    """Apart from `__init__` files and tokenizer/huggingface/, which exists only for compatibility."""
    paths = [short_path(path) for path in modules() if path.name != "__init__.py"]
    assert sum(path.startswith("tokenizer/") and not path.startswith("tokenizer/huggingface/") for path in paths) <= 22


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the number of lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    sizes = {}
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{short_path(path)}:{node.lineno} {node.name}"] = body_lines(node)
    longest = max(sizes, key=lambda name: sizes[name])
    assert sizes[longest] <= FUNCTION_LINES, f"{longest} has {sizes[longest]} lines"
    assert sum(size > USUAL_FUNCTION_LINES for size in sizes.values()) <= len(sizes) / 20
