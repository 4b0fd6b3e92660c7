"""`puna bench`: speeds of a model on this machine, compared with the limits of the machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli import options
from puna.cli.measure.disturbance import OtherPrograms, disturbance
from puna.cli.models import locate
from puna.cli.terminal import command, is_watched, note, print_json, status, stderr_console, usage_errors
from puna.errors import BackendError, RequestError, show, show_bytes

if TYPE_CHECKING:
    from puna.benchmark import Result, Work
    from puna.native import NativeBackend
    from puna.native.measure import MachineSpeed

_BAR = 24

_LEGEND = """
prefill N        reading a prompt of N tokens, limited by arithmetic
decode N after C generating N tokens when the cache holds C, limited by memory
B sequences      that many at once; the speed is that of all together; with many
                 sequences, arithmetic is the limit
of the limit     speed divided by the limit; "in cache": the model may fit in
                 the processor's cache, whose bandwidth is not measured"""


@command(
    {
        "puna bench": "the default model, in about a minute",
        "puna bench -m model.gguf --prefill 512 --context 16 --batch 1 --repeat 3": "only two workloads",
    },
    {
        "model": "the model as given",
        "machine": "measured limits: dram_gb_s, int8_gops, bf16_gflops; cores_ok: no thread slowed another down",
        "other_cpu_cores": "cores that other programs used on average; null if unknown",
        "results": "for each workload: phase, tokens, context, batch, tokens_per_second (median), samples, "
        "limit_fraction (null if the limit is not known)",
        "load_seconds, first_token_seconds": "time until the model is loaded, and until its first token",
        "peak_memory_bytes": "maximum memory of the process",
    },
)
def bench(
    model: options.Model = None,
    prefill: Annotated[
        str, typer.Option(metavar="N,N,...", help="Prompt lengths in tokens, comma-separated.")
    ] = "128,512,2048",
    decode: Annotated[int, options.number(low=1, help="Tokens to generate per sequence.")] = 64,
    context: Annotated[
        str, typer.Option("--context", "-c", metavar="N,N,...", help="Tokens already in the cache, comma-separated.")
    ] = "16,512,2048",
    batch: Annotated[
        str, typer.Option(metavar="N,N,...", help="Sequences generated at once, comma-separated.")
    ] = "1,4,16",
    repeat: Annotated[int, options.number(low=1, help="Number of repeats; the median is shown.")] = 5,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Measure a model's speed and compare it with the machine's limits.

    Generating (decode) is limited by the memory's bandwidth, reading a prompt (prefill) by the processor's arithmetic;
    both limits are measured.
    """
    import numpy as np

    from puna import benchmark
    from puna.native.measure import measure_machine
    from puna.native.memory import peak_memory

    lengths, contexts = _numbers("--prefill", prefill), _numbers("--context", context)
    sequences = _numbers("--batch", batch)
    started = time.perf_counter()
    name = model or "the default model"
    with status(f"Loading {name} ..."):
        native = open_native(model, backend, threads, device, dtype, quantize, max(sequences))
    loaded = time.perf_counter()
    benchmark.read(native, np.array([1]))
    first = time.perf_counter()
    works, skipped = benchmark.plan(native.config, native.pages, lengths, decode, contexts, sequences)
    for work, reason in skipped.items():
        note(f"skipped: {_name(work)} {reason}")
    if not works:
        raise RequestError("nothing is left to measure; choose shorter prompts and contexts")
    peak = peak_memory()
    note(f"Measuring {len(works)} workloads {repeat} times.")
    other_programs = OtherPrograms()
    before = measure_machine(threads)
    _reset_peak()
    samples = _measure(native, works, repeat)
    peak = max(peak, peak_memory())
    speed = mean_speed(before, measure_machine(threads))
    results = [
        benchmark.Result(work, tuple(speeds), _share(speeds, benchmark.limit(native, speed, work)))
        for work, speeds in samples.items()
    ]
    report = {
        "model": str(model or "default"),
        "machine": vars(speed),
        "other_cpu_cores": other_programs.cores(),
        "results": [_as_json(result) for result in results],
        "load_seconds": loaded - started,
        "first_token_seconds": first - started,
        "peak_memory_bytes": peak,
    }
    if json:
        print_json(report)
    else:
        _show(report, results)


def open_native(
    model: str | None,
    backend: str,
    threads: int | None,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
    sequences: int,
) -> NativeBackend:
    """Loads a model into the native backend.

    Raises:
        BackendError: the options require PyTorch, or the native backend cannot run the model.
        RequestError: the model has no language-model head.
    """
    from puna.backends import check_language_model
    from puna.checkpoint import open_checkpoint
    from puna.native import NativeBackend

    with usage_errors():
        if backend == "torch" or device is not None or dtype not in (None, "float32"):
            raise BackendError("only the native backend can be measured; leave out --backend, --device and --dtype")
        if dtype is not None and quantize is not None:
            raise BackendError("--dtype float32 rounds no weights; leave out --dtype or --quantize")
    checkpoint = open_checkpoint(locate(model))
    check_language_model(checkpoint.head)
    return NativeBackend(
        checkpoint.config, checkpoint.tensors, threads, sequences, quantize=quantize, float32=dtype is not None
    )


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) > 2**20:
        raise typer.BadParameter(
            f"must be a list of integers from 1 to 1048576, such as 16,512; got {show(text)}", param_hint=option
        )
    return list(dict.fromkeys(numbers))


def _measure(native: NativeBackend, works: list[Work], repeat: int) -> dict[Work, list[float]]:
    from rich.progress import Progress

    from puna import benchmark

    samples: dict[Work, list[float]] = {work: [] for work in works}
    with Progress(console=stderr_console(), transient=True, disable=not is_watched()) as progress:
        task = progress.add_task("measuring", total=repeat * len(works))
        for work, speed in benchmark.run(native, works, repeat):
            samples[work].append(speed)
            progress.update(task, advance=1, description=_name(work))
    return samples


def mean_speed(first: MachineSpeed, second: MachineSpeed) -> MachineSpeed:
    """Combines two measurements of the machine: the mean bandwidth and the maximum arithmetic speeds."""
    from puna.native.measure import MachineSpeed

    return MachineSpeed(
        (first.dram_gb_s + second.dram_gb_s) / 2,
        max(first.int8_gops, second.int8_gops),
        max(first.bf16_gflops, second.bf16_gflops),
        first.cores_ok and second.cores_ok,
    )


def _share(samples: list[float], limit: float | None) -> float | None:
    import statistics

    return None if limit is None else statistics.median(samples) / limit


def _name(work: Work) -> str:
    if work.phase == "prefill":
        return f"prefill {work.tokens}"
    sequences = f", {work.batch} sequences" if work.batch > 1 else ""
    return f"decode {work.tokens} after {work.context}{sequences}"


def _as_json(result: Result) -> dict[str, object]:
    return {
        **vars(result.work),
        "tokens_per_second": result.tokens_per_second,
        "samples": list(result.samples),
        "limit_fraction": result.limit_fraction,
    }


def _reset_peak() -> None:
    """Resets the peak memory, since measuring the machine also needs memory; only Linux can (proc(5))."""
    from contextlib import suppress
    from pathlib import Path

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _show(report: dict[str, Any], results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    machine = report["machine"]
    table = Table(box=None)
    table.add_column("work")
    table.add_column("tokens/s", justify="right")
    table.add_column("of the limit", justify="right")
    table.add_column("")
    for result in results:
        share = result.limit_fraction
        bar = "█" * round(_BAR * min(share or 0.0, 1.0))
        percent = "in cache" if share is None else f"{share:.0%}"
        table.add_row(_name(result.work), f"{result.tokens_per_second:.1f}", percent, bar)
    console = Console()
    console.print(table)
    console.print(
        f"machine: memory {machine['dram_gb_s']:.1f} GB/s, int8 {machine['int8_gops']:.0f} Gop/s, "
        f"bf16 or f32 {machine['bf16_gflops']:.0f} Gflop/s"
    )
    console.print(
        f"load {report['load_seconds']:.2f} s, first token {report['first_token_seconds']:.2f} s, "
        f"peak memory {show_bytes(report['peak_memory_bytes'])}"
    )
    note(_LEGEND)
    if warning := disturbance(report["other_cpu_cores"], machine["cores_ok"]):
        console.print(warning, style="yellow")
