"""metrics.jsonl: the events of a run as lines of JSON, which other processes can read while the run writes them.

Each line is an object with "kind": start, step, evaluation, sample, saved or end. Only lines of steps have "loss" at
the top level. Numbers are written with all their digits; NaN and infinity, which JSON lacks, as null. A run that is
killed leaves at most one incomplete line, at the end, which readers ignore.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from puna.files import atomic_write, make_folder, storage_errors
from puna.native.memory import peak_memory, resident_memory
from puna.training.events import End, EvaluationEvent, Observer, SampleEvent, Start, StepEvent
from puna.training.settings import TrainingSettings

METRICS_FILE = "metrics.jsonl"

Record = dict[str, Any]


class MetricsWriter(Observer):
    """Writes the events of a run to metrics.jsonl in the folder of its result.

    A resumed run keeps the lines of the steps that its state includes, and continues after them.

    Args:
        more: further values of the line of the start, such as the estimate of time and memory.
    """

    def __init__(self, folder: Path, more: Mapping[str, Any] | None = None) -> None:
        self._path = folder / METRICS_FILE
        self._more = dict(more or {})
        self._file: IO[str] | None = None
        self._begin = time.perf_counter()

    def started(self, event: Start) -> None:
        """Opens the file and writes the description of the run."""
        make_folder(self._path.parent)
        _keep_until(self._path, event.first_step)
        with storage_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        self._begin = time.perf_counter()
        values = {item.name: getattr(event, item.name) for item in fields(event) if item.name != "settings"}
        process = {"process": os.getpid(), "machine": platform.node(), "time": time.time()}
        self._write("start", {**process, **values, "settings": changed_settings(event.settings), **self._more})

    def stepped(self, event: StepEvent) -> None:
        """Writes a line with the loss, and the speed and memory of the process."""
        values = {item.name: getattr(event, item.name) for item in fields(event)}
        speed = event.tokens / event.seconds if event.seconds > 0 else 0.0
        memory = {"memory": resident_memory(), "peak_memory": peak_memory()}
        self._write("step", {**values, "tokens_per_second": round(speed, 1), **memory})

    def evaluated(self, event: EvaluationEvent) -> None:
        """Writes the metrics of held-out data."""
        self._write("evaluation", {"step": event.step, "best": event.best, "metrics": event.metrics})

    def sampled(self, event: SampleEvent) -> None:
        """Writes the prompts and their continuations."""
        self._write("sample", {"step": event.step, "prompts": event.prompts, "texts": event.texts})

    def saved(self, step: int, path: Path) -> None:
        """Writes the folder of a saved state."""
        self._write("saved", {"step": step, "path": path})

    def ended(self, event: End) -> None:
        """Writes the reason and closes the file. A run that failed before its start has no file, and gets none."""
        if self._file is None:
            return
        self._write("end", {item.name: getattr(event, item.name) for item in fields(event)})
        self._file.close()
        self._file = None

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        elapsed = round(time.perf_counter() - self._begin, 3)
        line = json.dumps(plain({"kind": kind, "elapsed": elapsed, **values}), ensure_ascii=False, allow_nan=False)
        with storage_errors(self._path):
            self._file.write(line + "\n")
            self._file.flush()


def changed_settings(settings: TrainingSettings) -> Record:
    """Returns the options that differ from their defaults."""
    defaults = {item.name: item.default for item in fields(settings)}
    return {name: value for name, value in settings.values().items() if value != defaults[name]}


def plain(value: Any) -> Any:
    """Returns a value in the types of JSON: lists, NumPy numbers and paths converted, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _keep_until(path: Path, step: int) -> None:
    """Removes the lines of steps after `step` and of the end of an earlier process; all lines, if `step` is 0."""
    if not path.exists():
        return
    records = _records(path.read_bytes()) if step else []
    kept = [item for item in records if item.get("kind") != "end" and item.get("step", 0) <= step]
    with atomic_write(path) as file:
        file.writelines((json.dumps(item, ensure_ascii=False) + "\n").encode() for item in kept)


def _records(data: bytes) -> list[Record]:
    """Returns the objects in complete lines; other lines, which puna did not write, are skipped."""
    records = []
    for line in data.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


@dataclass
class Metrics:
    """The events of a run so far; see `MetricsWriter` for their fields.

    Attributes:
        start: the latest start; a resumed run has several.
        steps, evaluations, samples, saved: the lines of these kinds, in their order.
        end: the end; None while the run is unfinished.
    """

    start: Record = field(default_factory=dict)
    steps: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    saved: list[Record] = field(default_factory=list)
    end: Record | None = None

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [item["loss"] for item in self.steps if item.get("loss") is not None]

    @property
    def status(self) -> str:
        """The reason of the end, else "running", or "killed" if the process has ended without one.

        The process of another machine cannot be checked; its run counts as running.
        """
        if self.end is not None:
            return str(self.end.get("reason", "finished"))
        if not self.start:
            return "empty"
        is_elsewhere = self.start.get("machine") != platform.node()
        return "running" if is_elsewhere or _is_alive(self.start.get("process")) else "killed"

    def add(self, record: Record) -> None:
        """Adds the object of a line."""
        lists = {"step": self.steps, "evaluation": self.evaluations, "sample": self.samples, "saved": self.saved}
        kind = record.get("kind")
        if kind == "start":
            self.start, self.end = record, None
        elif kind == "end":
            self.end = record
        elif kind in lists:
            lists[kind].append(record)


def _is_alive(process: Any) -> bool:
    if not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


class MetricsReader:
    """Reads metrics.jsonl while another process writes it.

    Args:
        folder: the folder of a run's result.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE
        self._identity, self._offset = 0, 0
        self.metrics = Metrics()

    def update(self) -> Metrics:
        """Returns the events so far. Only new lines are read, unless the file was replaced, as a resumed run does."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._identity or status.st_size < self._offset:
                    self._identity, self._offset, self.metrics = status.st_ino, 0, Metrics()
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return self.metrics
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for record in _records(complete):
            self.metrics.add(record)
        return self.metrics


def read_metrics(folder: Path) -> Metrics:
    """Returns the events in the metrics.jsonl of a run; none if there is no such file."""
    return MetricsReader(folder).update()
