"""compare.py's side of the protocol with workers: one process per engine, stopped (SIGSTOP) while another works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from peers.cpu_usage import Clock, share_of_others

_TICKS = os.sysconf("SC_CLK_TCK")


class WorkerError(RuntimeError):
    """The process of an engine ended. The message contains its exit status and the last lines of its output."""


class Worker:
    """A process that handles requests in JSON lines. It is stopped between requests, so that its threads cannot spin.

    Args:
        python: interpreter of the engine's environment.
        module: module to run, such as "peers.run_llama".
        path: folders for PYTHONPATH.
        log: file for the output of the engine.
    """

    def __init__(self, python: Path, module: str, path: list[str], log: Path) -> None:
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        variables["PYTHONPATH"] = os.pathsep.join(path)
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=variables,
            )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> Any:
        """Resumes the process, sends a request, waits for the reply, and stops the process again.

        Raises:
            WorkerError: the process ended.
        """
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None and replies is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            requests.write(json.dumps({"do": do, **arguments}) + "\n")
            requests.flush()
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            last_lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise WorkerError(f"ended with status {self._process.returncode}: {' | '.join(last_lines)}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def sample(self, do: str, tokens: int, context: int, sequences: int) -> dict[str, float]:
        """Times one workload; returns tokens per second and the share of processor time that other processes used."""
        before = Clock.now()
        cpu = self._cpu_ticks()
        reply = self.ask(do, tokens=tokens, context=context, sequences=sequences)
        others = share_of_others(before, Clock.now(), (self._cpu_ticks() - cpu) / _TICKS, _TICKS)
        return {"tokens_per_second": tokens * sequences / reply["seconds"], "others": others}

    def _cpu_ticks(self) -> int:
        text = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        user, system = text.rsplit(")", 1)[1].split()[11:13]
        return int(user) + int(system)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
