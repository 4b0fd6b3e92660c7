"""`import puna` and `puna --help` are quick and load nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = {"torch", "tokenizers", "transformers", "sentencepiece", "jinja2", "numpy"}


def loaded_modules(code: str) -> set[str]:
    """Returns the top-level modules loaded after running code in a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\nimport sys\nprint(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in run.stdout.splitlines()[-1].split()}


def test_import_puna_loads_nothing_heavy():
    modules = loaded_modules("import puna")
    assert "puna" in modules
    assert not modules & (HEAVY | {"rich", "typer"})


def test_help_loads_nothing_heavy():
    modules = loaded_modules(
        "import sys; sys.argv = ['puna', '--help']\nfrom puna.cli import app\napp(standalone_mode=False)"
    )
    assert "typer" in modules
    assert not modules & HEAVY


def test_native_library_loads_nothing_heavy():
    assert not loaded_modules("from puna.native import machine; machine()") & HEAVY


def minimum_seconds(command: list[str], runs: int = 7) -> float:
    """Returns the seconds of the fastest of several runs, which other processes disturb least."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "100"})
        times.append(time.perf_counter() - started)
    return min(times)


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ([str(Path(sys.executable).with_name("puna")), "--help"], 0.3),
        ([sys.executable, "-c", "import puna"], 0.1),
    ],
    ids=["help", "import"],
)
@pytest.mark.timing
def test_start_is_quick(command, limit):
    assert minimum_seconds(command) < limit


def test_importing_the_tokenizer_functions_loads_nothing_heavy():
    assert not loaded_modules("from puna import AutoTokenizer, load_tokenizer") & HEAVY
