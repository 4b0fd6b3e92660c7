"""compare.py's side of the talk: a process for each engine, stopped dead while another one works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from peers.state import Clock, taken_by_others

_TICKS = os.sysconf("SC_CLK_TCK")


class WorkerError(RuntimeError):
    """An engine ended, with the last lines it wrote."""


class Worker:
    """A process that answers JSON lines. Between questions it is stopped, so that none of its threads can spin.

    Args:
        python: of the engine's environment.
        module: to run, such as "peers.run_llama".
        path: of the interpreter, beside its environment.
        log: file for what the engine prints.
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

    def ask(self, do: str, **more: Any) -> Any:
        """Wakes the process, asks, waits for the answer, and stops it again.

        Raises:
            WorkerError: when the process ended instead.
        """
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            to.write(json.dumps({"do": do, **more}) + "\n")
            to.flush()
            line = back.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            last = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise WorkerError(f"ended with status {self._process.returncode}: {' | '.join(last)}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def sample(self, do: str, tokens: int, context: int, sequences: int) -> dict[str, float]:
        """One timed piece of work: tokens per second, and the share of the processors that others took meanwhile."""
        before = Clock.now()
        cpu = self._cpu_ticks()
        answer = self.ask(do, tokens=tokens, context=context, sequences=sequences)
        others = taken_by_others(before, Clock.now(), (self._cpu_ticks() - cpu) / _TICKS, _TICKS)
        return {"tokens_per_second": tokens * sequences / answer["seconds"], "others": others}

    def _cpu_ticks(self) -> int:
        text = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        user, system = text.rsplit(")", 1)[1].split()[11:13]
        return int(user) + int(system)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
