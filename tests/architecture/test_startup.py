"""`import puna` and `puna --help` are quick and load nothing heavy."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
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


def processor_seconds(command: list[str]) -> float:
    """Returns the processor time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "100"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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
    assert min(processor_seconds(command) for _ in range(7)) < limit


def test_importing_the_tokenizer_functions_loads_nothing_heavy():
    assert not loaded_modules("from puna import AutoTokenizer, load_tokenizer") & HEAVY
