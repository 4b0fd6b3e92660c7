"""The layers of ARCHITECTURE.md: imports go down only and form a tree in every package; few packages use PyTorch."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from tests.architecture.source_tree import (
    cycles,
    import_graph,
    imports,
    imports_at_load,
    imports_of,
    modules,
    package_of,
    short_path,
    tree_of,
)

LAYERS = [
    {"errors", "lazy", "names", "processes"},
    {"compat", "files", "templates"},
    {"hub"},
    {"config"},
    {"backend"},
    {"formats"},
    {"native", "tokenizer"},
    {"checkpoint", "saving"},
    {"model"},
    {"adapters"},
    {"engine", "training"},
    {
        "answer",
        "backends",
        "classification",
        "divergence",
        "grammars",
        "model_adapters",
        "options",
        "prompt_scores",
        "prompts",
    },
    {"loaded_model"},
    {"text_model"},
    {"async_llm", "benchmark", "llm"},
    {"convert", "evaluation"},
    {"server"},
    {"cli", "convert_llama_weights_to_hf"},
]
"""Lowest first. A package may import from lower layers and from itself."""

LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
TORCH_PACKAGES = {"model", "adapters", "training"}

OTHER_LIBRARIES = {"transformers", "safetensors", "gguf", "peft", "accelerate"}
OPTIONAL = {
    "compat/forwarding.py": {"transformers"},
    "model/huggingface/embeddings.py": {"accelerate"},
    "model/huggingface/pipelines.py": {"transformers"},
    "model/huggingface/placement.py": {"accelerate"},
    "model/huggingface/saving.py": {"accelerate"},
    "tokenizer/chat/templates.py": {"transformers"},
}
"""Modules that may import another library inside a function, because the caller's arguments require it."""

NETWORK = {"cli/server/top.py": {"urllib"}}
"""Modules outside `hub` that use the network: `puna top` reads the metrics of a server."""


def test_every_module_has_a_layer():
    assert {package_of(path) for path in modules()} - {"__init__", "__main__"} <= LEVEL.keys()
    assert len(modules()) > 30


def test_imports_go_down():
    for path in modules():
        package = package_of(path)
        if package in ("__init__", "__main__"):
            continue
        for name, line in imports_of(path):
            first, _, rest = name.partition(".")
            if first != "puna":
                continue
            place = f"{short_path(path)}:{line}"
            other = rest.partition(".")[0]
            assert other, f"{place}: imports the whole package; import the module that is needed"
            allowed = other in ("__version__", package) or LEVEL[other] < LEVEL[package]
            assert allowed, f"{place}: {package} imports {other}"


def test_imports_form_a_tree_inside_every_package():
    assert cycles(import_graph()) == []


def test_a_cycle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}
    assert sorted(map(sorted, cycles(graph))) == [["a", "b", "c"], ["e"]]


def test_imports_in_functions_and_for_types_are_part_of_the_graph():
    tree = ast.parse("if TYPE_CHECKING:\n from puna.a import X\ndef f():\n import puna.b\n")
    assert {name for name, _ in imports(tree)} == {"puna.a.X", "puna.b"}
    assert imports_at_load(tree) == []
    graph = import_graph()
    assert "puna.errors" in graph["puna.files.resumable"]


def test_the_core_imports_no_torch_and_nothing_imports_transformers():
    for path in modules():
        name = short_path(path)
        at_load = _first_names(imports_at_load(tree_of(path)))
        assert _first_names(name for name, _ in imports_of(path)) & OTHER_LIBRARIES <= OPTIONAL.get(name, set()), name
        assert not at_load & OTHER_LIBRARIES, name
        assert package_of(path) in TORCH_PACKAGES or "torch" not in at_load, name


def test_only_hub_uses_the_network():
    network = {"huggingface_hub", "urllib", "http", "socket", "requests", "httpx"}
    for path in modules():
        name = short_path(path)
        allowed = NETWORK.get(name, {"huggingface_hub"} if package_of(path) == "hub" else set())
        assert _first_names(name for name, _ in imports_of(path)) & network <= allowed, name
        assert not _first_names(imports_at_load(tree_of(path))) & network, name


def test_only_native_reads_the_environment():
    """`processes/` passes a part of the environment, without secrets, to the processes that it starts."""
    for path in modules():
        if package_of(path) in ("native", "processes"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in ("environ", "getenv"), f"{short_path(path)}:{node.lineno}"


def _first_names(modules: Iterable[str]) -> set[str]:
    """Returns the names of the packages of modules: "torch" of "torch.nn"."""
    return {name.partition(".")[0] for name in modules}
