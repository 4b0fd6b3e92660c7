"""`puna profile`: where a token's time goes, kernel by kernel."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.bench import open_native
from puna.cli.terminal import command, loading, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from puna.native import NativeBackend

_BAR = 16


@command
def profile(
    model: options.Model = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens that stand before the generated ones.")] = 512,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 32,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 512,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Show where the time of reading and of generating goes, kernel by kernel."""
    import numpy as np

    from puna import benchmark
    from puna.errors import RequestError

    with loading(model):
        native = open_native(model, backend, threads, device, dtype, quantize, 1)
    longest = native.config.context_length
    if max(context + tokens, prefill) > longest:
        raise RequestError(
            f"{max(context + tokens, prefill)} tokens exceed the model's context of {longest}; ask for fewer"
        )
    ids = np.random.default_rng(0).integers(0, native.config.vocab_size, longest)
    benchmark.read(native, ids[:64], 0)
    native.free(0)
    found = {"prefill": _timed(native, lambda: benchmark.read(native, ids[:prefill], 0), prefill)}
    native.free(0)
    benchmark.read(native, ids[:context], 0)

    def decode() -> None:
        for at in range(tokens):
            benchmark.step(native, ids, context + at, 1)

    found["decode"] = _timed(native, decode, tokens)
    if json:
        print_json(found)
    else:
        _show(found)


def _timed(native: NativeBackend, work: Callable[[], None], count: int) -> dict[str, float]:
    """Microseconds per token of each kind of kernel, and of what lies outside the native call."""
    native.profile()
    started = time.perf_counter()
    work()
    wall = time.perf_counter() - started
    inside = native.profile()
    inside["outside"] = max(0.0, wall - sum(inside.values()))
    return {name: seconds / count * 1e6 for name, seconds in inside.items()}


def _show(found: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("microseconds per token")
    for phase in found:
        table.add_column(phase, justify="right")
        table.add_column("")
    totals = {phase: sum(times.values()) for phase, times in found.items()}
    for name in found["decode"]:
        row = [name.replace("_", " and ")]
        for phase, times in found.items():
            share = times[name] / totals[phase]
            row += [f"{times[name]:.1f}", f"{share:4.0%} " + "█" * round(_BAR * share)]
        table.add_row(*row)
    row = ["total"]
    for total in totals.values():
        row += [f"{total:.1f}", ""]
    table.add_row(*row, style="bold")
    Console().print(table)
