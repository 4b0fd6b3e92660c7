"""`puna serve` as a process: readiness, warm prefixes, signals, and errors at the start."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx2")

from puna.errors import ClosedError, ServerError  # noqa: E402
from puna.server.errors import api_error  # noqa: E402
from puna.server.run import _listen  # noqa: E402
from puna.server.warm import read_prompts  # noqa: E402
from tests.golden.files import LAYOUTS  # noqa: E402
from tests.server.live import tool_checkpoint  # noqa: E402

MESSAGES = [{"role": "user", "content": "the llama lives in the high grassland"}]


@contextmanager
def served(*options: str, model: Path = LAYOUTS["hf"]) -> Iterator[tuple[subprocess.Popen, dict[str, Any]]]:
    """Runs `puna serve`; yields the process and the line that it prints when ready."""
    command = [sys.executable, "-m", "puna", "serve", str(model), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "hf", "messages": MESSAGES, "temperature": 0, "max_tokens": 4, **fields}


@pytest.mark.slow
def test_warm_prefixes_and_a_graceful_end(tmp_path):
    """The port cannot be used twice. After SIGTERM, the server is not ready, running streams end, the status is 0."""
    (tmp_path / "warm.json").write_text(json.dumps({"messages": MESSAGES}))
    with ExitStack() as opened:
        process, ready = opened.enter_context(
            served("--warm", str(tmp_path / "warm.json"), "--name", "hf", model=tool_checkpoint(tmp_path))
        )
        client = opened.enter_context(httpx.Client(base_url=ready["url"], timeout=30))
        assert ready["model"] == "hf"
        with pytest.raises(ServerError, match=f"port {ready['url'].rpartition(':')[2]} at 127.0.0.1 cannot be used"):
            asyncio.run(_listen("127.0.0.1", int(ready["url"].rpartition(":")[2])))
        assert client.get("/health/ready").status_code == 200
        usage = client.post("/v1/chat/completions", json=body()).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0
        # About 7 MB: more than the buffers of the connection hold, so that the stream cannot end before it is read.
        fields = body(stream=True, n=8, temperature=1, max_tokens=700, ignore_eos=True, logprobs=True, top_logprobs=20)
        with client.stream("POST", "/v1/chat/completions", json=fields) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            states = []
            while not states or states[-1] == 200:
                states.append(httpx.get(f"{ready['url']}/health/ready").status_code)
            assert states[-1] == 503
            refused = httpx.post(f"{ready['url']}/v1/chat/completions", json=body())
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(30) == 0


def test_a_second_signal_ends_the_process_at_once():
    with served("--drain-seconds", "60") as (process, ready):
        started = threading.Event()

        def read() -> None:
            fields = body(stream=True, n=8, temperature=1, max_tokens=200, ignore_eos=True)
            try:
                with httpx.stream("POST", f"{ready['url']}/v1/chat/completions", json=fields, timeout=30) as response:
                    for _ in response.iter_raw():
                        started.set()
            except httpx.HTTPError:
                pass

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(30)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 130)
        reader.join(30)
        assert not reader.is_alive()


def test_streams_after_the_deadline_end_with_the_reason():
    with served("--drain-seconds", "0") as (process, ready):
        fields = body(stream=True, n=8, temperature=1, max_tokens=200, ignore_eos=True)
        with httpx.stream("POST", f"{ready['url']}/v1/chat/completions", json=fields, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert last == "data: [DONE]" or "the server stopped before the answer was complete" in last
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_closed_model_is_no_fault_of_the_server():
    error = api_error(ClosedError("the model is closed; load it again"))
    assert error.status == 503 and "send the request again" in error.message


def test_an_unknown_address_is_named():
    with pytest.raises(ServerError, match=r"--host 192\.0\.2\.1 cannot be used .*; give an address of this machine"):
        asyncio.run(_listen("192.0.2.1", 0))


def test_an_adapter_cannot_have_the_name_of_the_model():
    command = [sys.executable, "-m", "puna", "serve", str(LAYOUTS["hf"]), "--adapter", "hf=adapter"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "the name 'hf' is that of the model" in run.stderr


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['puna', 'serve', sys.argv[1]]\n"
        "from puna.__main__ import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code, str(LAYOUTS["hf"])], capture_output=True, text=True)
    assert run.returncode == 1
    assert "puna[serve]" in run.stderr
    assert "uvicorn" in run.stderr


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("the llama", [("the llama", None)]),
        ('["a"', [('["a"', None)]),
        (json.dumps(MESSAGES), [(MESSAGES, None)]),
        (json.dumps({"messages": MESSAGES, "tools": [{}]}), [(MESSAGES, [{}])]),
        ('"x"\n' + json.dumps(MESSAGES), [("x", None), (MESSAGES, None)]),
    ],
)
def test_prompts_of_the_file_of_warm(tmp_path, text, prompts):
    (tmp_path / "file").write_text(text)
    assert read_prompts(tmp_path / "file") == prompts


def test_other_json_is_an_error(tmp_path):
    (tmp_path / "file").write_text("[1, 2]")
    with pytest.raises(ServerError, match="lists of messages"):
        read_prompts(tmp_path / "file")
