"""Clients for Node.js. NODE_PATH names the folder node_modules that has their packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.clients.weather import MODEL

FOLDER = Path(__file__).parent / "node"


def has_packages(names: tuple[str, ...]) -> bool:
    """Returns whether Node.js finds packages."""
    node = shutil.which("node") if os.environ.get("NODE_PATH") else None
    script = "process.argv.slice(1).forEach((name) => require.resolve(name))"
    return node is not None and subprocess.run([node, "-e", script, *names], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("openai.cjs", ("openai",)),
        ("anthropic.cjs", ("@anthropic-ai/sdk",)),
        ("ai_sdk.cjs", ("ai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic")),
    ],
)
def test_a_tool_round_trip(address: str, script: str, packages: tuple[str, ...]) -> None:
    if not has_packages(packages):
        pytest.skip(f"Node.js does not find {', '.join(packages)}")
    command = ["node", str(FOLDER / script), address, MODEL]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
