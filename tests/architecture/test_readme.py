"""The code blocks of README.md run unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def blocks(language: str) -> list[str]:
    return [body for kind, body in BLOCKS if kind == language]


def test_every_block_is_in_a_language_that_is_tested():
    assert {kind for kind, _ in BLOCKS} == {"console", "python", "sh", "text"}  # "text" is output: a transcript


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
@pytest.mark.slow
def test_python_blocks_run(block, tmp_path, smollm2):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    if "print(" in block:
        assert len(run.stdout.split()) > 10


@pytest.mark.parametrize("line", "".join(blocks("sh")).splitlines())
def test_shell_lines_run(line, tmp_path, smollm2):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": path},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("line", "".join(blocks("console")).splitlines())
def test_make_targets_exist(line):
    command, target = line.split()
    assert command == "make"
    subprocess.run(["make", "--dry-run", "--silent", target], cwd=ROOT, check=True, capture_output=True)
