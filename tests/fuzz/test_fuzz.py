"""A short, deterministic run of the fuzzer, and checks that the fuzzer recognises failures."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puna.errors import CheckpointError
from tests.fuzz import cases, run
from tests.fuzz.cases import KINDS, Kind
from tests.fuzz.json_mutations import mutate

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("count", [240, pytest.param(4000, marks=pytest.mark.soak)])
@pytest.mark.slow
def test_mutated_files_of_every_kind_load_or_are_refused(tmp_path: Path, count: int) -> None:
    pytest.importorskip("torch")  # writes some of the seeds
    command = [sys.executable, "-m", "tests.fuzz.run", "--count", str(count), "--seed", "7", "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    summary = json.loads(process.stdout.rpartition("}")[0] + "}")
    assert summary["failures"] == []
    assert process.returncode == 0, process.stderr[-2000:]
    assert {name.split()[0] for name in summary["results"]} == set(KINDS)
    assert sum(summary["results"].values()) >= 0.97 * count
    assert summary["different_messages"] > 70
    # The mutations are effective and the seeds are valid: many files are refused, and many load.
    assert sum(count for name, count in summary["results"].items() if name.endswith("refused")) > count / 4
    assert sum(count for name, count in summary["results"].items() if name.endswith("loaded")) > count / 10


def _raise_puna_error() -> None:
    raise CheckpointError("damaged")


def _raise_other_error() -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("action", "result"),
    [
        (lambda: None, "loaded"),
        (_raise_puna_error, "refused: CheckpointError: damaged"),
        (_raise_other_error, "FOREIGN: KeyError: 'x' at "),
        (lambda: bytearray(3 * 2**30), "FOREIGN: MemoryError: "),
        (os.abort, "ABORT: SIGABRT"),
        (lambda: os._exit(3), "ABORT: exit 3"),
        (lambda: time.sleep(60), "HANG: 1 s"),
    ],
)
def test_the_fuzzer_recognises_failures(tmp_path, monkeypatch, action, result):
    monkeypatch.setattr(run, "SECONDS", 1 if "HANG" in result else 60)
    monkeypatch.setattr(run, "MEMORY", 2**40)  # the test's process has loaded torch
    if "MemoryError" in result:
        monkeypatch.setattr(run, "MEMORY", 2**31)
    monkeypatch.setitem(cases.KINDS, "test", Kind(1, lambda rng, seeds, work: work, lambda rng, path: action()))
    assert run.outcome("test-1-1", tmp_path, tmp_path / "work").startswith(result)


def test_mutations_are_deterministic_and_change_the_document():
    document = {"a": 1, "b": [1, 2, {"c": "x"}], "d": {"e": None}}
    texts = [mutate(random.Random(seed), document, ["k"], [5]) for seed in range(300)]
    assert texts == [mutate(random.Random(seed), document, ["k"], [5]) for seed in range(300)]
    assert len(set(texts)) > 200
    assert document == {"a": 1, "b": [1, 2, {"c": "x"}], "d": {"e": None}}
