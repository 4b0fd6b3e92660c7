"""Speed of puna beside llama.cpp, onnxruntime-genai, OpenVINO and transformers, in one run, as ratios.

    make peers                                            install the others, each in an environment of its own
    python benchmarks/compare.py --prepare                make their models, once (about 20 GB; --only for fewer)
    python benchmarks/compare.py [--json FILE]            everything
    python benchmarks/compare.py --only smollm2-q4_1 7b   some blocks, or all of a shape
    python benchmarks/compare.py FILE.gguf                a file of one's own: puna and llama.cpp
    python benchmarks/compare.py --start                  process start to first token, and memory

Each engine runs in a process of its own, stopped while another one works; they take turns, so that a slow minute of the
machine meets all of them. Each has its fastest documented settings, which --json records, and none speculates. Before
and after each turn the machine is measured: samples taken while two cores shared one, or while others worked beside,
are kept but do not count. Speeds are medians.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.blocks import BLOCKS, Block, block_of_file
from peers.measure import Found, Places, run_block
from peers.prepare import Kitchen
from peers.start import measure_start
from peers.tables import rows, show_block, show_rows
from rich.console import Console
from rich.table import Table

from puna.checkpoint import locate_model

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    """What the user asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.gguf")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="BLOCK", help=", ".join(block.name for block in BLOCKS)
    )
    parser.add_argument("--repeat", type=int, default=5, help="Samples of each work that count.")
    parser.add_argument("--patience", type=int, default=5, help="Further rounds for samples that do not count.")
    parser.add_argument("--threads", type=int, default=2, help="Of each engine.")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "puna" / "benchmarks")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".peers", help="Environments of the others.")
    parser.add_argument("--without", nargs="+", default=[], metavar="ENGINE", help="Engines to leave out.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prepare", action="store_true", help="Make the models and stop.")
    parser.add_argument("--start", "--memory", action="store_true", help="Measure start and memory instead of speed.")
    return parser.parse_args()


def chosen(wanted: argparse.Namespace) -> list[Block]:
    """The blocks that were named; without any name, all of them."""
    known = {block.name: block for block in BLOCKS}
    shapes = {block.shape for block in BLOCKS}
    unknown = [name for name in wanted.only if name not in known and name not in shapes]
    if unknown:
        raise SystemExit(f"--only {unknown[0]!r} is no block; there are: {', '.join(known)}; or {', '.join(shapes)}")
    if missing := [path for path in wanted.files if not path.is_file()]:
        raise SystemExit(f"{missing[0]} is no file")
    blocks = [block_of_file(path.resolve()) for path in wanted.files]
    if wanted.only or not blocks:
        blocks += [block for block in BLOCKS if not wanted.only or {block.name, block.shape} & set(wanted.only)]
    return [_without(block, tuple(wanted.without)) for block in blocks]


def _without(block: Block, left_out: tuple[str, ...]) -> Block:
    runners = tuple(runner for runner in block.runners if not (left_out and runner.name.startswith(left_out)))
    return Block(block.name, block.shape, runners, block.works)


def write(path: Path | None, report: dict[str, Any]) -> None:
    """The report so far, so that a long run that is stopped leaves what it had."""
    if path:
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")


def compare(console: Console, blocks: list[Block], places: Places, wanted: argparse.Namespace, logs: Path) -> None:
    """Runs the blocks and prints their tables."""
    found: list[Found] = []
    about = {"processor": _processor(), "threads": wanted.threads, "repeat": wanted.repeat}
    for block in blocks:
        found.append(run_block(block, places, wanted.threads, wanted.repeat, wanted.patience, logs))
        show_block(console, found[-1], wanted.repeat)
        write(wanted.json, {**about, "rows": rows(found), "blocks": [asdict(entry) for entry in found]})
    show_rows(console, found, wanted.repeat)


def start(console: Console, blocks: list[Block], places: Places, wanted: argparse.Namespace, logs: Path) -> None:
    """Measures start and memory of the blocks' GGUF files and prints a table."""
    table = Table(title="process start to first token", box=None)
    for column in ("model", "what", "seconds", "peak MB"):
        table.add_column(column, justify="left" if column in ("model", "what") else "right")
    report = {}
    for block in blocks:
        report[block.name] = measure_start(block, places, wanted.threads, wanted.repeat, logs)
        for name, entry in report[block.name].items():
            table.add_row(block.name, name, f"{entry['seconds']:.2f}", f"{entry['bytes'] / 1e6:.0f}")
        write(wanted.json, {"processor": _processor(), "threads": wanted.threads, "start": report})
    console.print(table)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Does what was asked."""
    wanted = arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    blocks = chosen(wanted)
    places = Places(wanted.models.resolve(), wanted.peers.absolute(), HERE)
    kitchen = Kitchen(places.models, places.peers, HERE, locate_model(None))
    places.models.mkdir(parents=True, exist_ok=True)
    kitchen.prepare(blocks)
    if wanted.prepare:
        return
    logs = places.models / "logs"
    logs.mkdir(exist_ok=True)
    (start if wanted.start else compare)(console, blocks, places, wanted, logs)


if __name__ == "__main__":
    main()
