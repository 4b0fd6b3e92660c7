"""The code of docs/clients.md, executed against the server of this folder."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

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
    "guidellm": (),
}
"""The sections with code that is executed, and the packages that each needs."""

QUICK = ("openai (Python)", "anthropic (Python)")
"""Sections that run in this process, because other tests import their packages, which takes seconds. Other packages
leave sockets open, which is an error here."""

SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def test_every_section_is_executed() -> None:
    assert list(SECTIONS) == [*CLIENTS, "Coding agents"]


@pytest.mark.parametrize("name", CLIENTS)
def test_the_lines_of_a_client(name: str, address: str, checkpoint: Path, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    ((language, code),) = re.findall(r"^```(\w+)\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)
    code = code.replace("http://127.0.0.1:8000", address)
    code = re.sub(r"\bMODEL\b", lambda _: str(checkpoint), re.sub(r"\bllama\b", MODEL, code))
    if language == "js":
        if not has_packages(CLIENTS[name]):
            pytest.skip("Node.js does not find the packages")
        output = run(["node", "-e", code])
    elif language == "sh":
        program = code.split()[0]
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.delenv("PYTHONPATH", raising=False)  # the program may be in another environment
        output = run(["sh", "-c", code])
        assert program != "curl" or '"choices"' in output
    else:
        for package in CLIENTS[name]:
            with contextlib.suppress(ModuleNotFoundError):
                if importlib.util.find_spec(package) is not None:
                    continue
            pytest.skip(f"{package} is not installed")
        if language == "yaml":
            code = _llm(code, tmp_path, monkeypatch)
        output = run([sys.executable, "-c", code]) if name not in QUICK else executed(code)
    assert output.strip()


def executed(code: str) -> str:
    """Returns the output of Python code that is executed in this process."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, str(PAGE), "exec"), {})
    return output.getvalue()


def run(command: list[str]) -> str:
    """Returns the output of a program."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _llm(settings: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes the settings of `llm`, and returns the code that does what `llm -m puna Hi` does."""
    monkeypatch.setenv("LLM_USER_PATH", str(folder))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # other packages of the environment may be plugins
    (folder / "extra-openai-models.yaml").write_text(settings)
    return 'import llm\nmodel = llm.get_model("puna")\nmodel.key = "x"\nprint(model.prompt("Hi", max_tokens=16).text())'
