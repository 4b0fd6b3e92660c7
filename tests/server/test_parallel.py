"""`puna serve --tp 2`: two processes share the matrices and give the text of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from puna import LLM
from tests.architecture.source_tree import ROOT

CHECKPOINT = ROOT / "tests/golden/checkpoint/hf"
PROMPTS = ["The llama", "One day the sun", "A", "The cook asked the old man for bread and"]
START = "import sys; from puna.__main__ import main; sys.argv[0] = 'puna'; main()"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def start(tmp_path: Path, port: int) -> subprocess.Popen[str]:
    script = tmp_path / "serve.py"
    script.write_text(START)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
               str(free_port()), str(script), "serve", str(CHECKPOINT), "--name", "golden", "--tp", "2",
               "--port", str(port)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    for _ in range(600):
        assert process.poll() is None, process.communicate()[1]
        try:
            urllib.request.urlopen(f"{url}/health/ready", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server is not ready after a minute")


@pytest.mark.slow
def test_two_processes_give_the_text_of_one(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(tmp_path, port)
    try:
        wait_until_ready(process, url)
        options = {"max_tokens": 24, "temperature": 0}
        body = {"model": "golden", "prompt": PROMPTS, "logprobs": 0, **options}
        choices = post(f"{url}/v1/completions", body)["choices"]
        again = post(f"{url}/v1/completions", {**body, "prompt": PROMPTS[3]})["choices"][0]
        assert again["text"] == choices[3]["text"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    with LLM(CHECKPOINT, backend="torch", threads=1) as llm:
        answers = llm.generate(PROMPTS, logprobs=0, **options)
    assert [choice["text"] for choice in choices] == [answer.text for answer in answers]
    for choice, answer in zip(choices, answers, strict=True):
        expected = [token.logprob for token in answer.logprobs]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-4)


def test_other_numbers_of_processes_are_refused():
    command = [sys.executable, "-m", "puna", "serve", str(CHECKPOINT), "--tp", "2", "--port", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "torchrun --no-python --nproc-per-node 2 puna serve --tp 2" in run.stderr
    assert "Traceback" not in run.stderr
