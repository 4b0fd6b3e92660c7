"""The process that renders chat templates: forks, interruptions and requests that are too large."""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from puna.errors import ChatTemplateError
from puna.processes.pool import Worker, WorkerPool
from puna.processes.serving import SIZE
from puna.templates import process
from puna.templates.limits import SECONDS

FORK = """
import os, threading, time
from puna.templates import process
slow = "{% for i in range(900) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
def render():
    try: process.render(slow, {})
    except Exception: pass
process.render("x", {})
thread = threading.Thread(target=render)
thread.start()
while not process.POOL._busy: time.sleep(0.001)
worker = next(iter(process.POOL._busy))
pid = os.fork()
if pid == 0:
    print(worker._process.stdin.raw.closed, worker._process.stdout.raw.closed, flush=True)
    os.close(1)
    time.sleep(100)
    os._exit(0)
thread.join()
process.render("x", {})
print(pid, flush=True)
"""


def test_a_process_forked_during_a_rendering_does_not_delay_the_exit():
    run = subprocess.run([sys.executable, "-c", FORK], stdout=subprocess.PIPE, text=True, check=True, timeout=80)
    states, pid = run.stdout.splitlines()
    os.kill(int(pid), 9)
    assert states == "True True"


def test_a_truncated_answer_is_not_returned_as_text(monkeypatch):
    worker = Worker("puna.templates.worker")
    assert worker.ask(marshal.dumps(("x", {}))) == b"Tx"
    output = worker._process.stdout

    class EndingPipe:
        def read(self, size):
            return output.read(size) if size == SIZE.size else output.read(size)[:-1]

        def close(self):
            output.close()

    monkeypatch.setattr(worker._process, "stdout", EndingPipe())
    with pytest.raises(EOFError):
        worker.ask(marshal.dumps(("text", {})))
    worker.end(at_once=True)


def test_text_that_is_too_long_is_refused_before_it_is_sent():
    assert len(process.render("{{ a }}", {"a": "x" * 10_000_000})) == 10_000_000
    for size in (20_000_000, 70_000_000):
        with pytest.raises(ChatTemplateError, match=r"have \d+\.\d MB; the limit is 12\.0 MB"):
            process.render("{{ a }}", {"a": "x" * size})


def test_the_process_does_not_inherit_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    worker = Worker("puna.templates.worker")
    assert worker.ask(marshal.dumps(("x", {}))) == b"Tx"
    environment = Path(f"/proc/{worker._process.pid}/environ").read_bytes()
    worker.end(at_once=True)
    assert b"hf_secret" not in environment


def test_an_unknown_python_program_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(process, "POOL", WorkerPool("puna.templates.worker"))
    with pytest.raises(ChatTemplateError, match=r"sys\.executable is not set"):
        process.render("x", {})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
def test_time_in_which_the_process_does_not_run_is_not_counted():
    worker = Worker("puna.templates.worker")
    assert worker.ask(marshal.dumps(("x", {}))) == b"Tx"
    paused = threading.Thread(target=pause_rendering, args=(worker._process.pid,))
    paused.start()
    slow = "{% for i in range(100) %}{% for j in range(90000) %}{% endfor %}{% endfor %}x"
    start = time.monotonic()
    assert worker.ask(marshal.dumps((slow, {}))) == b"Tx" and time.monotonic() - start > SECONDS
    paused.join()
    worker.end(at_once=True)


def pause_rendering(pid: int) -> None:
    """Stops a process when it has used some processor time, for longer than the limit of the time of a rendering."""
    begin = processor_seconds(pid)
    while processor_seconds(pid) < begin + 0.04:
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.25 * SECONDS)
    os.kill(pid, signal.SIGCONT)


def processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_earlier_renderings_do_not_reduce_the_memory_of_the_next():
    large = "{% set a = 'x' * n %}{% set b = a ~ 'y' %}{{ b | length }}"
    assert process.render(large, {"n": 28_000_000}) == "28000001"
    for number in range(8):  # the process keeps each template and its code: 16 MB in all
        process.render(f"{number}{'x' * 10**6}", {})
    assert process.render(large, {"n": 28_000_000}) == "28000001"
