"""The list of tests that `make test-fast` leaves out names existing tests."""

from __future__ import annotations

from pathlib import Path

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
