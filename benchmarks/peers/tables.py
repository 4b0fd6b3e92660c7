"""The tables that compare.py prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from peers.comparisons import TARGETS
from peers.measure import Result


def _format_speed(speed: tuple[float, int] | None, repeat: int) -> str:
    """Formats a speed; notes the number of undisturbed samples if there are fewer than `repeat`."""
    if speed is None:
        return "-"
    return f"{speed[0]:.1f}" + (f" ({speed[1]}/{repeat})" if speed[1] < repeat else "")


def _format_share(result: Result, work: str) -> str:
    """Returns puna's speed as a share of the machine's limit."""
    speed, limit = result.speed("puna", work), result.limit(work)
    return f"{speed[0] / limit:.0%}" if speed and limit else "-"


def show_comparison(console: Console, result: Result, repeat: int) -> None:
    """Prints the speeds of every engine in one comparison and the speeds of the machine."""
    work_names: list[str] = next((engine["works"] for engine in result.engines.values()), [])
    table = Table(title=f"{result.comparison}, tokens/s", box=None)
    table.add_column("engine")
    for column in (*work_names, "load s", "peak MB"):
        table.add_column(column, justify="right")
    for name, engine in result.engines.items():
        cells = [_format_speed(result.speed(name, work), repeat) for work in work_names]
        table.add_row(
            name, *cells, f"{engine['load_seconds']:.2f}", f"{engine.get('peak_memory_bytes', float('nan')) / 1e6:.0f}"
        )
    if "puna" in result.engines:
        table.add_row("puna, share of the limit", *(_format_share(result, work) for work in work_names))
    console.print(table)
    for name, message in result.failed.items():
        console.print(f"  {name} failed: {message}", style="red", markup=False)
    if result.machine:
        _show_machine(console, result)


def _show_machine(console: Console, result: Result) -> None:
    speeds = {name: statistics.median(entry[name] for entry in result.machine) for name in ("dram_gb_s", "int8_gops")}
    checks_ok = sum(entry["cores_ok"] for entry in result.machine)
    console.print(
        f"  memory {speeds['dram_gb_s']:.1f} GB/s, int8 {speeds['int8_gops']:.0f} Gop/s (medians); threads at full "
        f"speed in {checks_ok} of {len(result.machine)} checks; (n/N): only n of N samples were undisturbed; "
        f"the speed is their median, or the median of all samples if n is 0"
    )


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns the measured ratios that have a target."""
    by_comparison = {result.comparison: result for result in results}
    entries = []
    for target in TARGETS:
        result = by_comparison.get(target.comparison)
        puna = result.speed("puna", target.work.name) if result and "puna" in result.engines else None
        best = result.best(target.against, target.work.name) if result else None
        if puna is None or best is None:
            continue
        entries.append({
            "comparison": target.comparison, "work": target.work.name, "puna": puna[0], "against": best[0],
            "best": best[1], "ratio": puna[0] / best[1], "at_least": target.target,
            "undisturbed_samples": min(puna[1], best[2]),
        })  # fmt: skip
    return entries


def show_rows(console: Console, results: Sequence[Result], repeat: int) -> None:
    """Prints ratios and their targets: missed targets in yellow, ratios without undisturbed samples dimmed."""
    table = Table(title="puna and the fastest engine compared with it", box=None)
    for column in ("model", "work", "puna", "best", "", "ratio", "target", "undisturbed"):
        table.add_column(column, justify="left" if column in ("model", "work", "") else "right")
    for row in rows(results):
        style = "dim" if not row["undisturbed_samples"] else None if row["ratio"] >= row["at_least"] else "yellow"
        table.add_row(
            row["comparison"], row["work"], f"{row['puna']:.1f}", f"{row['best']:.1f}", row["against"],
            f"{row['ratio']:.2f} x", f"{row['at_least']:.2f} x", f"{row['undisturbed_samples']}/{repeat}",
            style=style,
        )  # fmt: skip
    if table.row_count:
        console.print(table)
