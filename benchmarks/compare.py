"""Compares the speed of puna with llama.cpp, onnxruntime-genai, OpenVINO and transformers, and prints ratios.

    make peers                                            install the other engines, each in its own environment
    python benchmarks/compare.py --prepare                create the models, once (about 20 GB; less with --only)
    python benchmarks/compare.py [--json FILE]            run all comparisons
    python benchmarks/compare.py --only smollm2-q4_1 7b   run the named comparisons, and all comparisons of named shapes
    python benchmarks/compare.py FILE.gguf                compare puna with llama.cpp on any GGUF file
    python benchmarks/compare.py --limits                 only compare with the machine's limits, and 16 sequences
    python benchmarks/compare.py --start                  measure the time from process start to first token, and memory

A comparison has some engines and one model. Each engine runs in its own process, which is stopped while
another engine works. The engines take turns, so that a slow minute of the machine affects all of them. Each engine has
its fastest documented settings, which --json records, without speculative decoding. The machine is measured before and
after each turn: a sample is disturbed, and does not count, if two threads shared a core or other processes used the
processors. Speeds are medians of the undisturbed samples.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.comparisons import COMPARISONS, LIMITS, Comparison, comparison_of_file
from peers.measure import Paths, Result, run_comparison
from peers.prepare import ModelBuilder
from peers.start import measure_start
from peers.tables import rows, show_comparison, show_rows
from rich.console import Console
from rich.table import Table

from puna.checkpoint import locate_model

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.gguf", help="GGUF files to compare on.")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help=", ".join(comparison.name for comparison in COMPARISONS)
    )
    parser.add_argument("--repeat", type=int, default=5, help="Undisturbed samples to collect for each workload.")
    parser.add_argument(
        "--patience", type=int, default=5, help="Maximum number of further rounds to replace disturbed samples."
    )
    parser.add_argument("--threads", type=int, default=2, help="Threads of each engine.")
    parser.add_argument(
        "--models", type=Path, default=Path.home() / ".cache" / "puna" / "benchmarks", help="Folder of the models."
    )
    parser.add_argument(
        "--peers", type=Path, default=HERE.parent / ".peers", help="Folder of the other engines' environments."
    )
    parser.add_argument("--without", nargs="+", default=[], metavar="ENGINE", help="Engines to leave out.")
    parser.add_argument("--json", type=Path, help="File for all settings and samples.")
    parser.add_argument(
        "--limits",
        action="store_true",
        help="Only compare puna with the machine's limits, and with llama.cpp and OpenVINO on 16 sequences.",
    )
    parser.add_argument("--prepare", action="store_true", help="Create the models and stop.")
    parser.add_argument(
        "--start", "--memory", action="store_true", help="Measure start-up time and memory instead of speed."
    )
    return parser.parse_args()


def select_comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """Returns the comparisons that the command line names; without names, all of them."""
    table = LIMITS if arguments.limits else COMPARISONS
    by_name = {comparison.name: comparison for comparison in table}
    shapes = {comparison.shape for comparison in table}
    unknown = [name for name in arguments.only if name not in by_name and name not in shapes]
    if unknown:
        raise SystemExit(
            f"--only {unknown[0]!r} is neither a comparison nor a shape; comparisons are {', '.join(by_name)}; "
            f"shapes are {', '.join(sorted(shapes))}"
        )
    if missing := [path for path in arguments.files if not path.is_file()]:
        raise SystemExit(f"{missing[0]} is not a file")
    comparisons = [comparison_of_file(path.resolve()) for path in arguments.files]
    if arguments.only or not comparisons:
        names = set(arguments.only)
        comparisons += [comparison for comparison in table if not names or {comparison.name, comparison.shape} & names]
    return [_exclude_engines(comparison, tuple(arguments.without)) for comparison in comparisons]


def _exclude_engines(comparison: Comparison, excluded: tuple[str, ...]) -> Comparison:
    runners = tuple(runner for runner in comparison.runners if not (excluded and runner.name.startswith(excluded)))
    return Comparison(comparison.name, comparison.shape, runners, comparison.works)


def write(path: Path | None, report: dict[str, Any]) -> None:
    """Writes the report so far, so that an interrupted run keeps its results."""
    if path:
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")


def compare_speeds(
    console: Console, comparisons: list[Comparison], paths: Paths, arguments: argparse.Namespace, logs: Path
) -> None:
    """Measures the speeds of the comparisons and prints their tables."""
    results: list[Result] = []
    header = {"processor": _processor_name(), "threads": arguments.threads, "repeat": arguments.repeat}
    for comparison in comparisons:
        results.append(run_comparison(comparison, paths, arguments.threads, arguments.repeat, arguments.patience, logs))
        show_comparison(console, results[-1], arguments.repeat)
        write(arguments.json, {**header, "rows": rows(results), "comparisons": [asdict(result) for result in results]})
    show_rows(console, results, arguments.repeat)


def compare_start(
    console: Console, comparisons: list[Comparison], paths: Paths, arguments: argparse.Namespace, logs: Path
) -> None:
    """Measures start-up time and memory with the GGUF files of the comparisons and prints a table."""
    table = Table(title="from process start to first token", box=None)
    for column in ("model", "what", "seconds", "peak MB"):
        table.add_column(column, justify="left" if column in ("model", "what") else "right")
    report = {}
    for comparison in comparisons:
        report[comparison.name] = measure_start(comparison, paths, arguments.threads, arguments.repeat, logs)
        for name, entry in report[comparison.name].items():
            table.add_row(comparison.name, name, f"{entry['seconds']:.2f}", f"{entry['bytes'] / 1e6:.0f}")
        write(arguments.json, {"processor": _processor_name(), "threads": arguments.threads, "start": report})
    console.print(table)


def _processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Creates missing models, then measures speed or start-up time."""
    arguments = parse_arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    comparisons = select_comparisons(arguments)
    paths = Paths(arguments.models.resolve(), arguments.peers.absolute(), HERE)
    builder = ModelBuilder(paths.models, paths.peers, HERE, locate_model(None))
    paths.models.mkdir(parents=True, exist_ok=True)
    builder.prepare(comparisons)
    if arguments.prepare:
        return
    logs = paths.models / "logs"
    logs.mkdir(exist_ok=True)
    (compare_start if arguments.start else compare_speeds)(console, comparisons, paths, arguments, logs)


if __name__ == "__main__":
    main()
