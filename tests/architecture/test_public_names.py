"""Public names are listed twice, for imports and for type checkers: changing one requires both, and CHANGELOG.md."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import puna
from puna.names import MODULES
from tests.helpers.torch_files import HAS_TORCH


def names_of_type_checkers() -> dict[str, str]:
    """Returns the module of each name that `puna/__init__.py` imports for type checkers."""
    tree = ast.parse(Path(puna.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    modules = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname, f"write `{alias.name} as {alias.name}`, which exports the name"
            modules[alias.name] = node.module
    return modules


NAMES = {*names_of_type_checkers(), "__version__"}
NEED_TORCH = {
    name for name, module in names_of_type_checkers().items() if module.startswith(("puna.model", "puna.training"))
}


def test_both_lists_of_public_names_agree():
    assert names_of_type_checkers() == MODULES


def test_public_names_are_pinned_and_load():
    available = NAMES if HAS_TORCH else NAMES - NEED_TORCH
    assert set(puna.__all__) == available
    assert set(dir(puna)) == NAMES
    for name in available:
        assert getattr(puna, name) is not None
    with pytest.raises(AttributeError, match="'GptModel'"):
        _ = puna.GptModel


def test_version_equals_that_of_the_installed_distribution():
    assert puna.__version__ == importlib.metadata.version("puna")


def run_without_torch(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter where PyTorch cannot be imported."""
    block = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Block())
"""
    return subprocess.run([sys.executable, "-W", "error", "-c", block + code], capture_output=True, text=True)


def test_the_error_for_a_missing_extra_names_the_extra():
    for code in ("import puna; puna.LlamaForCausalLM", "from puna import LlamaForCausalLM"):
        run = run_without_torch(code)
        assert "puna.LlamaForCausalLM needs PyTorch; install it with: pip install 'puna[torch]'" in run.stderr
    assert "MissingExtraError" in run.stderr


def test_names_that_need_torch_behave_as_absent_without_it():
    run = run_without_torch(
        "import inspect, puna, pydoc\n"
        "assert not hasattr(puna, 'LlamaModel') and hasattr(puna, 'LLM')\n"
        "assert getattr(puna, 'LlamaModel', 3) == 3\n"
        "namespace = {}\n"
        "exec('from puna import *', namespace)\n"
        "assert namespace['LLM'] is puna.LLM and 'LlamaModel' not in namespace\n"
        "assert 'generate' in pydoc.render_doc(puna)\n"
        "assert {name for name, _ in inspect.getmembers(puna)} >= {'LLM', 'LlamaTokenizer'}\n"
        "try: puna.LlamaModel\n"
        "except AttributeError as exc: assert isinstance(exc, puna.PunaError)\n"
        "try: from puna import LlamaModel\n"
        "except ImportError as exc: assert isinstance(exc, puna.PunaError)\n"
        "try: from puna import GptModel\n"
        "except ImportError as exc: print(exc)\n"
    )
    assert run.stdout.startswith("cannot import name 'GptModel' from 'puna'"), run.stderr


def test_star_imports_every_public_name():
    namespace: dict[str, object] = {}
    exec("from puna import *", namespace)
    assert set(namespace) - {"__builtins__"} == (NAMES if HAS_TORCH else NAMES - NEED_TORCH)


def test_the_core_works_without_torch(smollm2):
    run = run_without_torch(
        "import puna\n"
        "from puna.checkpoint import inspect_checkpoint, open_checkpoint\n"
        f"tokenizer = puna.load_tokenizer({str(smollm2)!r})\n"
        "assert tokenizer.decode(tokenizer.encode('Gravity is')) == 'Gravity is'\n"
        f"checkpoint = open_checkpoint({str(smollm2)!r})\n"
        "assert checkpoint.tensors['model.norm.weight'].to_float32().shape == (576,)\n"
        f"inspect_checkpoint({str(smollm2)!r})\n"
        "import puna.cli, puna.llm, puna.native\n"
        f"print(puna.LLM({str(smollm2)!r}).generate('Gravity is', max_tokens=8).text)\n"
        f"puna.LLM({str(smollm2)!r}, 'torch')\n"
    )
    assert run.stdout.startswith(" a fundamental concept in physics")
    assert "MissingExtraError: this model, device or dtype needs PyTorch" in run.stderr
