"""Which tests a run leaves out: those of tests/costly.txt exist, and no test that does more with PyTorch."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import differs_with_torch
from tests.costs import FOLDERS, costly_functions, is_costly

ROOT = Path(__file__).resolve().parents[2]


def test_every_listed_test_exists():
    for name in costly_functions():
        file, _, function = name.partition("::")
        path = ROOT / file
        exists = path.is_file() and f"def {function}(" in path.read_text(encoding="utf-8")
        assert exists, f"{name} is in tests/costly.txt, but does not exist: rename or remove it there"
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)


def test_all_cases_of_a_listed_function_are_costly():
    name = min(costly_functions())
    assert is_costly(name) and is_costly(f"{name}[a-1]") and is_costly("tests/libraries/test_names.py::test_x")
    assert not is_costly(f"{name}_again")


def test_tests_that_do_more_with_pytorch_are_not_left_out():
    assert differs_with_torch("tests/convert/test_meta.py")  # torch.load reads the converted files
    assert not differs_with_torch("tests/convert/test_import.py")
    files = [*(ROOT / "tests").rglob("test_*.py")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert 'find_spec("torch' not in text or path == Path(__file__), f"{path}: use HAS_TORCH"
    assert len(files) > 250
