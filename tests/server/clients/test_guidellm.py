"""`guidellm`: it measures a server with streams of chats and of completions. Its program may be in another environment.

guidellm needs other versions of some packages than this environment: install it into its own environment, and add the
folder of its program to PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.clients.weather import MODEL

pytestmark = pytest.mark.slow

PROMPT, ANSWER, REQUESTS = 32, 8, 6


def measure(address: str, checkpoint: Path, path: str, report: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns guidellm's records of its requests, by their result."""
    command = [
        "guidellm", "run", "--disable-console-interactive",
        "--backend", f"kind=openai_http,target={address},model={MODEL},request_format={path}",
        "--tokenizer", f"kind=huggingface_auto,model={checkpoint}",
        "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={ANSWER}",
        "--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--output", f"kind=json,path={report}",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"HF_HUB_OFFLINE": "1"}, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    return benchmark["requests"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_streams_are_measured(path: str, address: str, checkpoint: Path, tmp_path: Path) -> None:
    if shutil.which("guidellm") is None:
        pytest.skip("guidellm is not installed")
    requests = measure(address, checkpoint, path, tmp_path / "report.json")
    assert {name: len(records) for name, records in requests.items() if name != "total"} == {
        "successful": REQUESTS, "errored": 0, "incomplete": 0,
    }  # fmt: skip
    for record in requests["successful"]:
        assert record["output"] and record["response_id"]
        assert record["output_tokens"] == ANSWER and record["prompt_tokens"] >= PROMPT  # from `usage`
        assert record["cached_tokens"] is not None
        assert 0 < record["time_to_first_token_ms"] <= 1000 * record["request_latency"]
