"""The code blocks of README.md run unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from puna.checkpoint import open_checkpoint
from tests.helpers.adapters import write_random_adapter

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture
def folder(tmp_path, smollm2):
    """The folder in which code runs; it has an adapter of the default model."""
    write_random_adapter(tmp_path / "my-adapter", open_checkpoint(smollm2).config, "lora", scale=0.02)
    return tmp_path


def blocks(language: str) -> list[str]:
    return [body for kind, body in BLOCKS if kind == language]


def test_every_block_is_in_a_language_that_is_tested():
    assert {kind for kind, _ in BLOCKS} == {"console", "python", "sh", "text"}  # "text" is output: a transcript


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
@pytest.mark.slow
def test_python_blocks_run(block, folder):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    if "print(" in block:
        assert len(run.stdout.split()) > 10


@pytest.mark.parametrize("line", "".join(blocks("sh")).splitlines())
def test_shell_lines_run(line, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PATH": path},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("line", "".join(blocks("console")).splitlines())
def test_make_targets_exist(line):
    command, target = line.split()
    assert command == "make"
    subprocess.run(["make", "--dry-run", "--silent", target], cwd=ROOT, check=True, capture_output=True)
