"""The code of docs/clients.md, executed against the server of this folder."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.clients.test_node import has_packages
from tests.server.clients.weather import MODEL

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"

CLIENTS: dict[str, tuple[str, ...]] = {
    "curl": (),
    "openai (Python)": ("openai",),
    "openai (Node.js)": ("openai",),
    "anthropic (Python)": ("anthropic",),
    "@anthropic-ai/sdk (Node.js)": ("@anthropic-ai/sdk",),
    "ai with @ai-sdk/openai-compatible (Node.js)": ("ai", "@ai-sdk/openai-compatible"),
    "ai with @ai-sdk/anthropic (Node.js)": ("ai", "@ai-sdk/anthropic"),
    "langchain-openai": ("langchain_openai",),
    "langchain-anthropic": ("langchain_anthropic",),
    "llama-index-llms-openai-like": ("llama_index", "llama_index.llms.openai_like"),
    "instructor": ("instructor",),
    "pydantic-ai": ("pydantic_ai",),
    "openai-agents": ("agents",),
    "llm": ("llm",),
    "lm-eval": ("lm_eval", "aiohttp"),
}
"""The sections with code that is executed, and the packages that each needs."""

SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def test_every_section_is_executed() -> None:
    assert list(SECTIONS) == [*CLIENTS, "Coding agents"]


@pytest.mark.parametrize("name", CLIENTS)
def test_the_lines_of_a_client(name: str, address: str, checkpoint: Path, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # fmt: skip
    ((language, code),) = re.findall(r"^```(\w+)\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)
    code = (
        code.replace("http://127.0.0.1:8000", address)
        .replace('llama"', f'{MODEL}"')
        .replace('"MODEL"', repr(str(checkpoint)))
    )
    if language == "js":
        if not has_packages(CLIENTS[name]):
            pytest.skip("Node.js does not find the packages")
        output = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True, timeout=60).stdout
    elif language == "sh":
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        output = subprocess.run(code, shell=True, capture_output=True, text=True, check=True, timeout=60).stdout
        assert '"choices"' in output
    else:
        for package in CLIENTS[name]:
            with contextlib.suppress(ModuleNotFoundError):
                if importlib.util.find_spec(package) is not None:
                    continue
            pytest.skip(f"{package} is not installed")
        if language == "yaml":
            code = _llm(code.replace("llama", MODEL), tmp_path, monkeypatch)
        exec(compile(code, name, "exec"), {})
        output = capsys.readouterr().out
    assert output.strip()


def _llm(settings: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes the settings of `llm`, and returns the code that does what `llm -m puna Hi` does."""
    monkeypatch.setenv("LLM_USER_PATH", str(folder))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # other packages of the environment may be plugins
    (folder / "extra-openai-models.yaml").write_text(settings)
    return 'import llm\nmodel = llm.get_model("puna")\nmodel.key = "x"\nprint(model.prompt("Hi", max_tokens=16).text())'
