"""metrics.jsonl: its lines, reading during the run, killed and resumed runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puna.training.events import End
from puna.training.report.metrics import METRICS_FILE, MetricsReader, read_metrics
from puna.training.report.recorder import MetricsWriter, plain
from tests.training.report.runs import METRICS, PROMPTS, loss, play, start, step


@pytest.fixture
def writer(tmp_path):
    writer = MetricsWriter(tmp_path)
    yield writer
    writer.ended(End(0, "interrupted"))  # closes the file


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_every_event_is_a_line_of_json_with_all_digits(tmp_path):
    play([MetricsWriter(tmp_path)], tmp_path, rank=4)
    records = lines(tmp_path)
    assert [item["loss"] for item in records if "loss" in item] == [loss(number) for number in range(1, 41)]
    kinds = [item["kind"] for item in records]
    assert kinds[:2] == ["start", "sample"]
    assert kinds[-3:] == ["saved", "sample", "end"]
    first = next(item for item in records if item["kind"] == "step")
    assert first["tokens_per_second"] == 800.0
    assert 0 < first["memory"] <= first["peak_memory"]
    assert records[0]["settings"] == {
        "model": "models/tiny", "data": "train.jsonl", "output": str(tmp_path), "rank": 4,
    }  # fmt: skip
    assert records[-1]["metrics"] == METRICS
    elapsed = [item["elapsed"] for item in records]
    assert elapsed == sorted(elapsed)


def test_the_reader_returns_what_the_writer_wrote(tmp_path):
    play([MetricsWriter(tmp_path)], tmp_path)
    metrics = read_metrics(tmp_path)
    assert metrics.losses == [loss(number) for number in range(1, 41)]
    assert [item["step"] for item in metrics.evaluations] == [10, 20, 30, 40]
    assert metrics.samples[0]["prompts"] == list(PROMPTS)
    assert metrics.saved[0]["step"] == 40
    assert metrics.status == "finished"
    assert read_metrics(tmp_path / "nothing").status == "empty"


def test_a_reader_follows_a_run(tmp_path, writer):
    reader = MetricsReader(tmp_path)
    assert reader.update().steps == []
    writer.started(start(tmp_path))
    for number in range(1, 6):
        writer.stepped(step(number))
        assert len(reader.update().steps) == number
    assert reader.metrics.status == "running"
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "step", "st')  # the writer is in the middle of a line
        file.flush()
        assert len(reader.update().steps) == 5
        file.write('ep": 6, "loss": 2.0}\nnot JSON\n[1]\n')
    assert len(reader.update().steps) == 6


def test_a_resumed_run_continues_after_the_steps_of_its_state(tmp_path, writer):
    reader = MetricsReader(tmp_path)
    play([writer], tmp_path, ends=False)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "step", "step": 41, "lo')  # killed while writing
    assert len(reader.update().steps) == 40
    resumed = MetricsWriter(tmp_path)
    resumed.started(start(tmp_path, first_step=15))
    resumed.stepped(step(16, loss=9.0))
    for metrics in (reader.update(), read_metrics(tmp_path)):
        assert [item["step"] for item in metrics.steps] == list(range(1, 17))
        assert metrics.losses[-1] == 9.0
        assert [item["step"] for item in metrics.evaluations] == [10]
        assert metrics.start["first_step"] == 15
    resumed.ended(End(16, "finished"))


def test_a_new_run_replaces_the_lines_of_an_earlier_one(tmp_path):
    play([MetricsWriter(tmp_path)], tmp_path)
    play([MetricsWriter(tmp_path)], tmp_path, steps=10)
    assert len(read_metrics(tmp_path).steps) == 10


@pytest.mark.parametrize("reason", ["finished", "interrupted", "failed", "stopped"])
def test_the_status_is_the_reason_of_the_end(tmp_path, reason):
    writer = MetricsWriter(tmp_path)
    writer.started(start(tmp_path))
    writer.ended(End(0, reason))
    assert read_metrics(tmp_path).status == reason


def test_a_run_whose_process_has_ended_was_killed(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from tests.training.report.runs import start\n"
        "from puna.training.report.recorder import MetricsWriter\n"
        "writer = MetricsWriter(Path(sys.argv[1])); writer.started(start(Path(sys.argv[1]))); os._exit(9)"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, check=False)
    assert read_metrics(tmp_path).status == "killed"


def test_an_error_before_the_start_writes_no_file(tmp_path):
    writer = MetricsWriter(tmp_path / "run")
    writer.ended(End(0, "failed", "the data has no rows"))
    assert not (tmp_path / "run").exists()


def test_values_that_json_lacks_are_converted(tmp_path, writer):
    value = {"a": float("nan"), "b": np.float32(1.5), "c": (np.arange(2), float("inf")), "d": tmp_path, "e": np.True_}
    assert plain(value) == {"a": None, "b": 1.5, "c": [[0, 1], None], "d": str(tmp_path), "e": True}
    writer.started(start(tmp_path))
    writer.stepped(step(1, gradient_norm=float("inf")))
    assert read_metrics(tmp_path).steps[0]["gradient_norm"] is None
