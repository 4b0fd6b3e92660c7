"""Writes metrics.jsonl: the events of a run as lines of JSON, which other processes can read during the run.

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
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from puna.files import atomic_write, make_folder, storage_errors
from puna.native.memory import peak_memory, resident_memory
from puna.training.events import End, EvaluationEvent, Observer, SampleEvent, Start, StepEvent
from puna.training.report.metrics import METRICS_FILE, Record, read_records
from puna.training.settings import TrainingSettings


class Recorder(Observer):
    """Converts the events of a run to records, the objects of the lines of metrics.jsonl."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def add(self, record: Record) -> None:
        """Receives a record."""
        raise NotImplementedError

    def started(self, event: Start) -> None:
        """Records the description of the run."""
        self._begin = time.perf_counter()
        process = {"process": os.getpid(), "machine": platform.node(), "time": time.time()}
        values = {name: value for name, value in vars(event).items() if name != "settings"}
        self._record("start", {**process, **values, "settings": changed_settings(event.settings)})

    def stepped(self, event: StepEvent) -> None:
        """Records the loss, and the speed and memory of the process."""
        speed = event.tokens / event.seconds if event.seconds > 0 else 0.0
        memory = {"memory": resident_memory(), "peak_memory": peak_memory()}
        self._record("step", {**vars(event), "tokens_per_second": round(speed, 1), **memory})

    def evaluated(self, event: EvaluationEvent) -> None:
        """Records the metrics of held-out data."""
        self._record("evaluation", {"step": event.step, "best": event.best, "metrics": event.metrics})

    def sampled(self, event: SampleEvent) -> None:
        """Records the prompts and their continuations."""
        self._record("sample", vars(event))

    def saved(self, step: int, path: Path) -> None:
        """Records the folder of a saved state."""
        self._record("saved", {"step": step, "path": path})

    def ended(self, event: End) -> None:
        """Records the reason."""
        self._record("end", vars(event))

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        elapsed = round(time.perf_counter() - self._begin, 3)
        self.add(plain({"kind": kind, "elapsed": elapsed, **values}))


class MetricsWriter(Recorder):
    """Writes the records of a run to metrics.jsonl in the folder of its result.

    A resumed run keeps the lines of the steps that its state includes, and continues after them. A run that fails
    before its start has no file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        self._file: IO[str] | None = None

    def started(self, event: Start) -> None:
        """Opens the file."""
        make_folder(self._path.parent)
        _keep_until(self._path, event.first_step)
        with storage_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        super().started(event)

    def add(self, record: Record) -> None:
        """Writes a line, which other processes can read at once."""
        if self._file is not None:
            with storage_errors(self._path):
                self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                self._file.flush()

    def ended(self, event: End) -> None:
        """Closes the file. If the disk is full, the line of the end is missing: that may be the reason of the end."""
        with suppress(OSError):
            super().ended(event)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


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
    records = read_records(path.read_bytes()) if step else []
    kept = [item for item in records if item.get("kind") != "end" and item.get("step", 0) <= step]
    with atomic_write(path) as file:
        file.writelines((json.dumps(item, ensure_ascii=False) + "\n").encode() for item in kept)
