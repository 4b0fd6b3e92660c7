"""The rooms of ARCHITECTURE.md: imports point down only, and only the rooms for PyTorch import it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "puna"

FLOORS = [
    {"errors", "files", "hub"},
    {"config"},
    {"backend"},
    {"formats"},
    {"native", "tokenizer"},
    {"checkpoint"},
    {"model"},
    {"adapters"},
    {"engine", "training"},
    {"answer"},
    {"benchmark", "llm"},
    {"convert"},
    {"cli", "convert_llama_weights_to_hf", "server"},
]
"""Lowest first. A room may import from lower floors and from itself; `files` and `hub` may import `errors`."""

LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
TORCH_ROOMS = {"model", "adapters", "training"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Every module imported in the tree, wherever it stands, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [alias.name for alias in node.names] if node.module == "puna" else []
            found += [(f"puna.{name}" if names else str(node.module), node.lineno) for name in names or [""]]
    return found


def at_import_time(tree: ast.Module) -> list[str]:
    """Modules that are loaded when the file is: not those inside functions or under TYPE_CHECKING."""
    found: list[str] = []
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [name for name, _ in imports(ast.Module([node], []))]
        elif isinstance(node, ast.If):
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            pending += node.orelse if typing_only else node.body + node.orelse
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            pending += node.body
    return found


def test_every_module_is_found():
    assert {room_of(path) for path in modules()} - {"__init__", "__main__"} <= LEVEL.keys()
    assert len(modules()) > 30


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    for name, line in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "puna" or len(parts) < 2 or parts[1] == "__version__" or room in ("__init__", "__main__"):
            continue
        other = parts[1]
        allowed = other == room or LEVEL[other] < LEVEL[room] or (room in ("files", "hub") and other == "errors")
        assert allowed, f"{path.name}:{line}: {room} imports {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_imports_no_torch_and_nothing_imports_transformers(path):
    tree = ast.parse(path.read_text())
    everywhere = {name.split(".")[0] for name, _ in imports(tree)}
    assert not everywhere & {"transformers", "safetensors", "gguf", "peft", "accelerate"}
    if room_of(path) not in TORCH_ROOMS:
        assert "torch" not in {name.split(".")[0] for name in at_import_time(tree)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_hub_reaches_the_network(path):
    doors = {"huggingface_hub", "urllib", "http", "socket", "requests", "httpx"}
    tree = ast.parse(path.read_text())
    used = {name.split(".")[0] for name, _ in imports(tree)} & doors
    assert used <= ({"huggingface_hub"} if room_of(path) == "hub" else set())
    assert not {name.split(".")[0] for name in at_import_time(tree)} & doors


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_native_reads_the_environment(path):
    if room_of(path) == "native":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "getenv"), f"{path.name}:{node.lineno}"
