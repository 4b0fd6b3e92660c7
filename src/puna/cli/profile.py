"""`puna profile`: where a token's time goes, kernel by kernel."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.bench import mean_speed, open_native
from puna.cli.terminal import command, loading, print_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from puna.benchmark import Work
    from puna.native import NativeBackend
    from puna.native.measure import MachineSpeed

_BAR = 10


@command
def profile(
    model: options.Model = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens that stand before the generated ones.")] = 512,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 32,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 512,
    repeat: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Show where the time of reading and of generating goes, kernel by kernel.

    The limit is what the memory (generating) or the processor's integer or bf16 products (reading) allow, measured
    before and after each repeat. Medians.
    """
    import numpy as np

    from puna import benchmark
    from puna.errors import RequestError
    from puna.native.measure import measure_machine

    with loading(model):
        native = open_native(model, backend, threads, device, dtype, quantize, 1)
    longest = native.config.context_length
    if max(context + tokens, prefill) > longest:
        raise RequestError(
            f"{max(context + tokens, prefill)} tokens exceed the model's context of {longest}; ask for fewer"
        )
    ids = np.random.default_rng(0).integers(0, native.config.vocab_size, longest)
    works = [benchmark.Work("prefill", prefill, 0, 1), benchmark.Work("decode", tokens, context, 1)]
    benchmark.read(native, ids[:64], 0)
    native.free(0)
    turns: list[dict[str, dict[str, tuple[float, float | None]]]] = []
    speeds = []
    for _ in range(repeat):
        turn: dict[str, dict[str, tuple[float, float | None]]] = {}
        for work in works:
            before = measure_machine(threads)
            seconds = _timed(native, ids, work)
            speeds.append(mean_speed(before, measure_machine(threads)))
            turn[work.phase] = _beside_limits(native, speeds[-1], work, seconds)
        turns.append(turn)
    report = _medians(turns)
    if json:
        print_json({"machine": [vars(speed) for speed in speeds], **report})
    else:
        _show(report, speeds)


def _timed(native: NativeBackend, ids: NDArray[np.int64], work: Work) -> dict[str, float]:
    """Seconds in each kind of kernel, and of what lies outside the native call."""
    from puna import benchmark

    if work.phase == "decode":
        benchmark.read(native, ids[: work.context], 0)
    native.profile()
    started = time.perf_counter()
    if work.phase == "decode":
        for at in range(work.tokens):
            benchmark.step(native, ids, work.context + at, 1)
    else:
        benchmark.read(native, ids[: work.tokens], 0)
    wall = time.perf_counter() - started
    inside = native.profile()
    native.free(0)
    inside["outside"] = max(0.0, wall - sum(inside.values()))
    return inside


def _beside_limits(
    native: NativeBackend, speed: MachineSpeed, work: Work, seconds: dict[str, float]
) -> dict[str, tuple[float, float | None]]:
    """(microseconds per token, share of the limit) of each kind of kernel, of all of those with limits, and in all."""
    from puna import benchmark

    limits = benchmark.phase_limits(native, speed, work)
    found = {name: (took, limits.get(name)) for name, took in seconds.items()}
    matrices = [name for name in limits if name != "attention"]
    if matrices:
        found["matrices"] = (sum(seconds[name] for name in matrices), sum(limits[name] for name in matrices))
    bound = benchmark.limit(native, speed, work)
    found["total"] = (sum(seconds.values()), work.tokens / bound if bound else None)
    return {
        name: (took / work.tokens * 1e6, None if least is None else least / took)
        for name, (took, least) in found.items()
    }


def _medians(
    turns: list[dict[str, dict[str, tuple[float, float | None]]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    report: dict[str, dict[str, dict[str, float | None]]] = {}
    for phase, kinds in turns[0].items():
        report[phase] = {}
        for name in kinds:
            shares = [share for turn in turns if (share := turn[phase][name][1]) is not None]
            report[phase][name] = {
                "microseconds_per_token": statistics.median(turn[phase][name][0] for turn in turns),
                "limit_fraction": statistics.median(shares) if shares else None,
            }
    return report


def _show(report: dict[str, dict[str, dict[str, float | None]]], speeds: list[MachineSpeed]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("us per token", no_wrap=True)
    for phase in report:
        table.add_column(phase, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("of limit", justify="right", no_wrap=True)
    for name in report["decode"]:
        if name == "matrices":
            table.add_section()
        row = [{"gate_up": "gate and up", "matrices": "all matrices"}.get(name, name)]
        for kinds in report.values():
            took, total = kinds[name]["microseconds_per_token"], kinds["total"]["microseconds_per_token"]
            assert took is not None and total is not None
            share, limit = took / total, kinds[name]["limit_fraction"]
            bar = "" if name in ("matrices", "total") else "█" * round(_BAR * share)
            row += [f"{took:.1f}", f"{share:4.0%} {bar}", "" if limit is None else f"{limit:.0%}"]
        table.add_row(*row, style="bold" if name == "total" else None)
    console = Console()
    console.print(table)
    memory, bytes_, floats = (
        statistics.median(getattr(speed, name) for speed in speeds)
        for name in ("dram_gb_s", "int8_gops", "bf16_gflops")
    )
    console.print(f"memory {memory:.1f} GB/s, int8 {bytes_:.0f} Gop/s, bf16 {floats:.0f} Gflop/s")
