"""Runs a comparison: engines take turns, and the machine is measured between turns to detect disturbed samples.

In one turn, every engine runs one workload once, which yields one sample for each engine. A sample is undisturbed
("fit" in the JSON report) if no two threads shared a core right before and after its turn, and other processes and
guests used little processor time during the sample.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.comparisons import Comparison, Runner, Work
from peers.cpu_usage import MAX_SHARE_OF_OTHERS
from peers.workers import Worker, WorkerError
from puna.benchmark import Demand
from puna.native.measure import measure_machine


@dataclass(frozen=True)
class Paths:
    """Folders of models and environments.

    Attributes:
        models: contains one folder per shape.
        peers: contains one virtual environment per engine.
        root: contains this package.
    """

    models: Path
    peers: Path
    root: Path

    def start(self, runner: Runner, log: Path) -> Worker:
        """Starts the worker of an engine; puna's runs in the environment of this process."""
        if runner.environment == "puna":
            path = [str(self.root), *(str(Path(part).absolute()) for part in sys.path[1:])]
            return Worker(Path(sys.executable), f"peers.{runner.worker}", path, log)
        python = self.peers / runner.environment / "bin" / "python"
        if not python.exists():
            raise WorkerError(f"{python} is missing; `make peers` installs it")
        return Worker(python, f"peers.{runner.worker}", [str(self.root)], log)

    def model(self, comparison: Comparison, runner: Runner) -> Path:
        """Returns the file or folder that a runner loads."""
        return self.models / comparison.shape / runner.file


@dataclass
class Result:
    """Measurements of one comparison. All fields are written to the JSON report.

    Attributes:
        comparison: name of the comparison.
        engines: settings, load time, peak memory and samples of each workload, by engine.
        failed: message of each engine that failed.
        machine: speeds of the machine before and after each turn.
    """

    comparison: str
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    machine: list[dict[str, Any]] = field(default_factory=list)

    def undisturbed(self, engine: str, work: str) -> list[float]:
        """Returns the speeds of the undisturbed samples."""
        samples = self.engines[engine]["samples"].get(work, [])
        return [sample["tokens_per_second"] for sample in samples if sample["fit"]]

    def speed(self, engine: str, work: str) -> tuple[float, int] | None:
        """Returns the median tokens per second of the undisturbed samples, and their number.

        If there are no undisturbed samples, the median is that of all samples.
        """
        samples = [sample["tokens_per_second"] for sample in self.engines[engine]["samples"].get(work, [])]
        undisturbed = self.undisturbed(engine, work)
        if not samples:
            return None
        return statistics.median(undisturbed or samples), len(undisturbed)

    def best(self, prefixes: Sequence[str], work: str) -> tuple[str, float, int] | None:
        """Returns the name and `speed` of the fastest engine whose name starts with one of `prefixes`."""
        names = [name for name in self.engines if name.startswith(tuple(prefixes))]
        speeds = [(name, *speed) for name in names if (speed := self.speed(name, work))]
        return max(speeds, key=lambda entry: entry[1], default=None)

    def limit(self, work: str) -> float | None:
        """Returns the tokens per second that the machine allows: by memory bandwidth and by arithmetic.

        The machine's speeds are the medians of this comparison's measurements. None for decoding if the weights may
        fit into the processor's cache, whose bandwidth is not measured.
        """
        puna = self.engines["puna"]
        settings = puna["settings"]
        needed = settings["demands"][puna["works"].index(work)]
        if needed is None:
            return None
        peak = "int8_gops" if settings["integer_weights"] else "bf16_gflops"
        bandwidth, arithmetic = (
            statistics.median(entry[name] for entry in self.machine) * 1e9 for name in ("dram_gb_s", peak)
        )
        return Demand(**needed).limit(bandwidth, arithmetic)


def run_comparison(
    comparison: Comparison, paths: Paths, threads: int, repeat: int, patience: int, logs: Path
) -> Result:
    """Runs the engines in turns until each has `repeat` undisturbed samples of each workload.

    Args:
        comparison: engines, model and workloads.
        paths: folders of models and environments.
        threads: threads of each engine.
        repeat: undisturbed samples to collect.
        patience: maximum number of further rounds to replace disturbed samples.
        logs: folder for the output of the engines.
    """
    result = Result(comparison.name)
    workers: dict[str, Worker] = {}
    try:
        for runner in comparison.runners:
            _load(result, workers, comparison, runner, paths, threads, logs)
        for turn in range(1 + repeat + patience):
            for work in comparison.works if workers else ():
                _take_turns(result, workers, work, turn, threads)
            if turn and all(
                len(result.undisturbed(name, work.name)) >= repeat for name in workers for work in comparison.works
            ):
                break
        for name in list(workers):
            _record_memory(result, workers, name)
    finally:
        for worker in workers.values():
            worker.close()
    return result


def _load(
    result: Result,
    workers: dict[str, Worker],
    comparison: Comparison,
    runner: Runner,
    paths: Paths,
    threads: int,
    logs: Path,
) -> None:
    """Starts the worker of an engine and loads the model; stores the message in `failed` if this fails."""
    works = [asdict(work) for work in comparison.works]
    try:
        worker = paths.start(runner, logs / f"{comparison.name}-{runner.name}.log".replace(" ", "-").replace(",", ""))
        workers[runner.name] = worker
        reply = worker.ask(
            "load", model=str(paths.model(comparison, runner)), threads=threads, options=dict(runner.options),
            works=works, sequences=max(work.sequences for work in comparison.works),
        )  # fmt: skip
    except WorkerError as exc:
        workers.pop(runner.name, None)
        result.failed[runner.name] = str(exc)
        return
    result.engines[runner.name] = {**reply, "works": [work.name for work in comparison.works], "samples": {}}


def _take_turns(result: Result, workers: dict[str, Worker], work: Work, turn: int, threads: int) -> None:
    """Runs a workload in each engine, starting with a different engine in each turn. Turn 0 is a warm-up."""
    before = measure_machine(threads)
    names = list(workers)
    samples = {}
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        if sample := _take_sample(result, workers, name, work):
            samples[name] = sample
    after = measure_machine(threads)
    if not turn:
        return
    result.machine += [asdict(before), asdict(after)]
    separate_cores = before.cores_ok and after.cores_ok
    for name, sample in samples.items():
        entry = {**sample, "turn": turn, "whole": separate_cores}
        entry["fit"] = separate_cores and sample["others"] <= MAX_SHARE_OF_OTHERS
        result.engines[name]["samples"].setdefault(work.name, []).append(entry)


def _record_memory(result: Result, workers: dict[str, Worker], name: str) -> None:
    try:
        result.engines[name]["peak_memory_bytes"] = workers[name].ask("memory")
    except WorkerError as exc:  # the samples remain valid
        result.failed[name] = str(exc)


def _take_sample(result: Result, workers: dict[str, Worker], name: str, work: Work) -> dict[str, float] | None:
    """Returns a sample. If the engine ended, removes the engine, stores its message in `failed` and returns None."""
    try:
        return workers[name].sample(**asdict(work))
    except WorkerError as exc:
        result.failed[name] = str(exc)
        del workers[name], result.engines[name]
        return None
