"""`puna profile`: the time per token of each kind of kernel."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.measure.bench import mean_speed, open_native
from puna.cli.measure.disturbance import OtherPrograms, disturbance
from puna.cli.terminal import command, note, print_json, status

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from puna.benchmark import Work
    from puna.native import NativeBackend
    from puna.native.measure import MachineSpeed

_BAR = 10

_LEGEND = """
embedding     looking up the vectors of the tokens
norm          RMS norms
qkv, o        matrices before and after attention
rope          rotation of queries and keys by position
attention     products with the cached keys and values
gate and up, down
              matrices of the feed-forward network
activation    SiLU, and the product of gate and up
head          logits of the next token
outside       outside the forward pass: Python, and the choice of the token
of limit      speed divided by what memory bandwidth (decode) or arithmetic
              (prefill) allow"""


@command(
    {
        "puna profile": "the default model",
        "puna profile -m model.gguf -c 4096 --prefill 2048": "with a long context",
    },
    {
        "machine": "list of measured limits, as in puna bench",
        "other_cpu_cores": "cores that other programs used on average; null if unknown",
        "prefill, decode": "for each kind of kernel: microseconds_per_token, limit_fraction (null if the limit is not "
        "known)",
    },
)
def profile(
    model: options.Model = None,
    context: Annotated[
        int, options.number("--context", "-c", low=1, help="Tokens already in the cache when generating.")
    ] = 512,
    tokens: Annotated[int, options.number("--tokens", "-n", low=1, help="Tokens to generate.")] = 32,
    prefill: Annotated[int, options.number(low=1, help="Prompt length in tokens.")] = 512,
    repeat: Annotated[int, options.number(low=1, help="Number of repeats; medians are shown.")] = 3,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Show the time per token of each kernel.

    Kernels are measured while a prompt is read (prefill) and while tokens are generated (decode). "of limit" compares
    their speed with the limit of the processor's int8 or bf16 arithmetic (prefill) or of the memory's bandwidth
    (decode), which are measured before and after each run.
    """
    import numpy as np

    from puna import benchmark
    from puna.errors import RequestError
    from puna.native.measure import measure_machine

    with status(f"Loading {model or 'the default model'} ..."):
        native = open_native(model, backend, threads, device, dtype, quantize, 1)
    context_length = native.config.context_length
    if max(context + tokens, prefill) > context_length:
        raise RequestError(
            f"{max(context + tokens, prefill)} tokens exceed the model's context of {context_length}; choose fewer"
        )
    ids = np.random.default_rng(0).integers(0, native.config.vocab_size, context_length)
    works = [benchmark.Work("prefill", prefill, 0, 1), benchmark.Work("decode", tokens, context, 1)]
    benchmark.read(native, ids[:64])
    repeats: list[dict[str, dict[str, tuple[float, float | None]]]] = []
    speeds = []
    note(f"Measuring {prefill} tokens of a prompt and {tokens} generated tokens {repeat} times.")
    other_programs = OtherPrograms()
    started = time.perf_counter()
    for done in range(repeat):
        phases: dict[str, dict[str, tuple[float, float | None]]] = {}
        for work in works:
            with status(_progress(done, repeat, work, time.perf_counter() - started)):
                before = measure_machine(threads)
                seconds = _time(native, ids, work)
                speeds.append(mean_speed(before, measure_machine(threads)))
            phases[work.phase] = _compare_with_limits(native, speeds[-1], work, seconds)
        repeats.append(phases)
    report = _medians(repeats)
    cores = other_programs.cores()
    if json:
        print_json({"machine": [vars(speed) for speed in speeds], "other_cpu_cores": cores, **report})
        return
    _show(report, speeds)
    note(_LEGEND)
    if warning := disturbance(cores, all(speed.cores_ok for speed in speeds)):
        typer.secho(warning, fg="yellow")


def _progress(done: int, repeat: int, work: Work, seconds: float) -> str:
    left = f", about {seconds / done * (repeat - done):.0f} s left" if done else ""
    return f"Measuring {work.phase}, repeat {done + 1} of {repeat}{left} ..."


def _time(native: NativeBackend, ids: NDArray[np.int64], work: Work) -> dict[str, float]:
    """Returns the seconds spent in each kind of kernel, and as "outside" the remaining seconds."""
    from puna import benchmark
    from puna.backend import consecutive_pages

    pages = consecutive_pages(work.context + work.tokens)
    if work.phase == "decode":
        benchmark.read(native, ids[: work.context], pages)
    native.profile()
    started = time.perf_counter()
    if work.phase == "decode":
        for index in range(work.tokens):
            benchmark.step(native, ids, work.context + index, [pages])
    else:
        benchmark.read(native, ids[: work.tokens], pages)
    wall = time.perf_counter() - started
    seconds = native.profile()
    seconds["outside"] = max(0.0, wall - sum(seconds.values()))
    return seconds


def _compare_with_limits(
    native: NativeBackend, speed: MachineSpeed, work: Work, seconds: dict[str, float]
) -> dict[str, tuple[float, float | None]]:
    """Returns (microseconds per token, share of the limit) of each kind of kernel, of all matrices, and in total."""
    from puna import benchmark

    limits = benchmark.phase_limits(native, speed, work)
    times = {name: (duration, limits.get(name)) for name, duration in seconds.items()}
    matrices = [name for name in limits if name != "attention"]
    if matrices:
        times["matrices"] = (sum(seconds[name] for name in matrices), sum(limits[name] for name in matrices))
    max_speed = benchmark.limit(native, speed, work)
    times["total"] = (sum(seconds.values()), work.tokens / max_speed if max_speed else None)
    return {
        name: (duration / work.tokens * 1e6, None if limit is None else limit / duration)
        for name, (duration, limit) in times.items()
    }


def _medians(
    repeats: list[dict[str, dict[str, tuple[float, float | None]]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    report: dict[str, dict[str, dict[str, float | None]]] = {}
    for phase, kinds in repeats[0].items():
        report[phase] = {}
        for name in kinds:
            shares = [share for phases in repeats if (share := phases[phase][name][1]) is not None]
            report[phase][name] = {
                "microseconds_per_token": statistics.median(phases[phase][name][0] for phases in repeats),
                "limit_fraction": statistics.median(shares) if shares else None,
            }
    return report


def _show(report: dict[str, dict[str, dict[str, float | None]]], speeds: list[MachineSpeed]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("µs per token", no_wrap=True)
    for phase in report:
        table.add_column(phase, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("of limit", justify="right", no_wrap=True)
    for name in report["decode"]:
        if name == "matrices":
            table.add_section()
        row = [{"gate_up": "gate and up", "matrices": "all matrices"}.get(name, name)]
        for kinds in report.values():
            time_, total = kinds[name]["microseconds_per_token"], kinds["total"]["microseconds_per_token"]
            assert time_ is not None and total is not None
            share, limit = time_ / total, kinds[name]["limit_fraction"]
            bar = "" if name in ("matrices", "total") else "█" * round(_BAR * share)
            row += [f"{time_:.1f}", f"{share:4.0%} {bar}", "" if limit is None else f"{limit:.0%}"]
        table.add_row(*row, style="bold" if name == "total" else None)
    console = Console()
    console.print(table)
    memory, integers, floats = (
        statistics.median(getattr(speed, name) for speed in speeds)
        for name in ("dram_gb_s", "int8_gops", "bf16_gflops")
    )
    console.print(f"machine: memory {memory:.1f} GB/s, int8 {integers:.0f} Gop/s, bf16 {floats:.0f} Gflop/s")
