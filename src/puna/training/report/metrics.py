"""The records of metrics.jsonl, also while another process writes the file."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"

Record = dict[str, Any]


def read_records(data: bytes) -> list[Record]:
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
        except (FileNotFoundError, NotADirectoryError):
            return self.metrics
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for record in read_records(complete):
            self.metrics.add(record)
        return self.metrics


def read_metrics(folder: Path) -> Metrics:
    """Returns the events in the metrics.jsonl of a run; none if there is no such file."""
    return MetricsReader(folder).update()
