"""The time of tests: which tests `make test-fast` leaves out, and a recorder of the time of each test.

`costly.txt` lists the test functions whose cases take more than LIMIT seconds together; `make costs` writes this list.
The files of the tests do not contain these marks, because times change with the code that the tests run.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
LIST = TESTS / "costly.txt"
LIMIT = 0.1
"""Seconds of all cases of a test function together, on one core of a server of 2025."""

FOLDERS = ("tests/libraries/", "tests/server/clients/")
"""Folders of which every test is costly, because they import large libraries."""


@cache
def costly_functions() -> frozenset[str]:
    """Returns the node ids of the listed functions, without parameters."""
    return frozenset(LIST.read_text(encoding="utf-8").splitlines())


def function_of(node_id: str) -> str:
    """Returns the node id of a test without its parameters."""
    return node_id.partition("[")[0]


def is_costly(node_id: str) -> bool:
    """Whether a test is in one of FOLDERS or is a case of a listed function."""
    return node_id.startswith(FOLDERS) or function_of(node_id) in costly_functions()


def is_costly_folder(path: Path) -> bool:
    """Whether a path is one of FOLDERS."""
    return f"{path.relative_to(TESTS.parent)}/" in FOLDERS


class CostRecorder:
    """Writes LIST: measures the time of each test and of the fixtures that it creates."""

    def __init__(self) -> None:
        self._costs: Counter[str] = Counter()
        self._begin = 0.0

    def pytest_runtest_logstart(self) -> None:
        self._begin = time.perf_counter()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._costs[function_of(nodeid)] += time.perf_counter() - self._begin

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus not in (0, 1):  # interrupted, or not all tests were collected
            return
        names = sorted(name for name, cost in self._costs.items() if cost > LIMIT and not name.startswith(FOLDERS))
        LIST.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
