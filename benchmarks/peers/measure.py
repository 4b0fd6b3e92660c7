"""Runs a block: engines take turns, the machine is measured between the turns, and samples it was not fit for are told.

A turn is one work in every engine. A sample is fit when the cores were whole right before and after its turn, and other
processes and guests took little of the processors during it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.blocks import Block, Runner, Work
from peers.state import MOST_BY_OTHERS
from peers.workers import Worker, WorkerError
from puna.native.measure import measure_machine


@dataclass(frozen=True)
class Places:
    """Where things are.

    Attributes:
        models: folder with one folder for each shape.
        peers: folder of the environments.
        root: folder of this package.
    """

    models: Path
    peers: Path
    root: Path

    def start(self, runner: Runner, log: Path) -> Worker:
        """A worker of an engine; puna's runs in this process's environment."""
        if runner.environment == "puna":
            path = [str(self.root), *(str(Path(part).absolute()) for part in sys.path[1:])]
            return Worker(Path(sys.executable), f"peers.{runner.worker}", path, log)
        python = self.peers / runner.environment / "bin" / "python"
        if not python.exists():
            raise WorkerError(f"{python} is missing; make peers installs it")
        return Worker(python, f"peers.{runner.worker}", [str(self.root)], log)

    def model(self, block: Block, runner: Runner) -> Path:
        """The file or folder that a runner loads."""
        return self.models / block.shape / runner.file


@dataclass
class Found:
    """What one block gave: for each engine its settings, load time, memory and samples of each work; JSON all over."""

    block: str
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    machine: list[dict[str, Any]] = field(default_factory=list)

    def fit(self, engine: str, work: str) -> list[float]:
        """Speeds of the samples that the machine was fit for."""
        samples = self.engines[engine]["samples"].get(work, [])
        return [sample["tokens_per_second"] for sample in samples if sample["fit"]]

    def speed(self, engine: str, work: str) -> tuple[float, int] | None:
        """(median tokens per second, how many fit samples it is of); with none fit, the median of all, and 0."""
        samples = [sample["tokens_per_second"] for sample in self.engines[engine]["samples"].get(work, [])]
        fit = self.fit(engine, work)
        if not samples:
            return None
        return statistics.median(fit or samples), len(fit)

    def best(self, starts: Sequence[str], work: str) -> tuple[str, float, int] | None:
        """The fastest of the engines whose names start so: (name, speed, fit samples)."""
        rivals = [name for name in self.engines if name.startswith(tuple(starts))]
        speeds = [(name, *speed) for name in rivals if (speed := self.speed(name, work))]
        return max(speeds, key=lambda entry: entry[1], default=None)

    def limit(self, work: str) -> float | None:
        """Tokens per second that puna's bytes or operations allow at the medians of what this block measured.

        None for decoding where the weights may lie in the processor's own cache, whose bandwidth is not measured.
        """
        puna = self.engines["puna"]
        settings, at = puna["settings"], puna["works"].index(work)
        decoding = work.startswith("decode")
        if settings["limits_of_unit_machine"][at] is None:
            return None
        peak = "int8_gops" if settings["integer_weights"] else "bf16_gflops"
        speed = statistics.median(entry["dram_gb_s" if decoding else peak] for entry in self.machine)
        return float(settings["limits_of_unit_machine"][at] * speed)


def run_block(block: Block, places: Places, threads: int, repeat: int, patience: int, logs: Path) -> Found:
    """Starts the engines, lets them take turns until each has `repeat` fit samples of each work, and ends them.

    Args:
        block: what to run.
        places: where things are.
        threads: of each engine.
        repeat: fit samples wanted.
        patience: most further rounds for samples that were not fit.
        logs: folder for what the engines print.
    """
    found = Found(block.name)
    workers: dict[str, Worker] = {}
    try:
        for runner in block.runners:
            _load(found, workers, block, runner, places, threads, logs)
        for turn in range(1 + repeat + patience):
            for work in block.works if workers else ():
                _take_turns(found, workers, work, turn, threads)
            if turn and all(len(found.fit(name, work.name)) >= repeat for name in workers for work in block.works):
                break
        for name in list(workers):
            _note_memory(found, workers, name)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def _load(
    found: Found,
    workers: dict[str, Worker],
    block: Block,
    runner: Runner,
    places: Places,
    threads: int,
    logs: Path,
) -> None:
    works = [asdict(work) for work in block.works]
    try:
        worker = places.start(runner, logs / f"{block.name}-{runner.name}.log".replace(" ", "-").replace(",", ""))
        workers[runner.name] = worker
        answer = worker.ask(
            "load", model=str(places.model(block, runner)), threads=threads, options=dict(runner.options), works=works,
            sequences=max(work.sequences for work in block.works),
        )  # fmt: skip
    except WorkerError as exc:
        workers.pop(runner.name, None)
        found.failed[runner.name] = str(exc)
        return
    found.engines[runner.name] = {**answer, "works": [work.name for work in block.works], "samples": {}}


def _take_turns(found: Found, workers: dict[str, Worker], work: Work, turn: int, threads: int) -> None:
    """One work in each engine, the first of them another one each time. Turn 0 warms up and is not kept."""
    before = measure_machine(threads)
    names = list(workers)
    samples = {}
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        if sample := _sample(found, workers, name, work):
            samples[name] = sample
    after = measure_machine(threads)
    if not turn:
        return
    found.machine += [asdict(before), asdict(after)]
    whole = before.cores_ok and after.cores_ok
    for name, sample in samples.items():
        kept = {**sample, "turn": turn, "whole": whole, "fit": whole and sample["others"] <= MOST_BY_OTHERS}
        found.engines[name]["samples"].setdefault(work.name, []).append(kept)


def _note_memory(found: Found, workers: dict[str, Worker], name: str) -> None:
    try:
        found.engines[name]["peak_memory_bytes"] = workers[name].ask("memory")
    except WorkerError as exc:  # its samples count all the same
        found.failed[name] = str(exc)


def _sample(found: Found, workers: dict[str, Worker], name: str, work: Work) -> dict[str, float] | None:
    """None when the engine ended; it is then left out, with the reason."""
    try:
        return workers[name].sample(**asdict(work))
    except WorkerError as exc:
        found.failed[name] = str(exc)
        del workers[name], found.engines[name]
        return None
