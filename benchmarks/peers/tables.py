"""The tables that compare.py prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from peers.blocks import ROWS
from peers.measure import Found


def _cell(speed: tuple[float, int] | None, repeat: int) -> str:
    if speed is None:
        return "-"
    return f"{speed[0]:.1f}" + (f" ({speed[1]}/{repeat})" if speed[1] < repeat else "")


def _share(found: Found, work: str) -> str:
    speed, limit = found.speed("puna", work), found.limit(work)
    return f"{speed[0] / limit:.0%}" if speed and limit else "-"


def show_block(console: Console, found: Found, repeat: int) -> None:
    """Every engine's speeds in one block, and what the machine was like."""
    works: list[str] = next((engine["works"] for engine in found.engines.values()), [])
    table = Table(title=f"{found.block}, tokens/s", box=None)
    table.add_column("engine")
    for column in (*works, "load s", "peak MB"):
        table.add_column(column, justify="right")
    for name, engine in found.engines.items():
        cells = [_cell(found.speed(name, work), repeat) for work in works]
        table.add_row(
            name, *cells, f"{engine['load_seconds']:.2f}", f"{engine.get('peak_memory_bytes', float('nan')) / 1e6:.0f}"
        )
    if "puna" in found.engines:
        table.add_row("puna, of the limit", *(_share(found, work) for work in works))
    console.print(table)
    for name, why in found.failed.items():
        console.print(f"  {name} failed: {why}", style="red", markup=False)
    if found.machine:
        _show_machine(console, found)


def _show_machine(console: Console, found: Found) -> None:
    speeds = {name: statistics.median(entry[name] for entry in found.machine) for name in ("dram_gb_s", "int8_gops")}
    whole = sum(entry["cores_ok"] for entry in found.machine)
    console.print(
        f"  memory {speeds['dram_gb_s']:.1f} GB/s, int8 {speeds['int8_gops']:.0f} Gop/s (medians); cores whole in "
        f"{whole} of {len(found.machine)} checks; (n/{'N'}) marks medians of fewer fit samples than wanted, 0 of none"
    )


def rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The promised ratios, as far as they were measured."""
    blocks = {entry.block: entry for entry in found}
    results = []
    for row in ROWS:
        block = blocks.get(row.block)
        ours = block.speed("puna", row.work.name) if block and "puna" in block.engines else None
        best = block.best(row.against, row.work.name) if block else None
        if ours is None or best is None:
            continue
        results.append({
            "block": row.block, "work": row.work.name, "puna": ours[0], "against": best[0], "best": best[1],
            "ratio": ours[0] / best[1], "at_least": row.at_least, "fit_samples": min(ours[1], best[2]),
        })  # fmt: skip
    return results


def show_rows(console: Console, found: Sequence[Found], repeat: int) -> None:
    """The promised ratios beside what was reached: missed ones in yellow, those of unfit samples alone dimmed."""
    table = Table(title="puna beside the best of those it is held against", box=None)
    for column in ("model", "work", "puna", "best", "", "ratio", "at least", "fit"):
        table.add_column(column, justify="left" if column in ("model", "work", "") else "right")
    for row in rows(found):
        style = "dim" if not row["fit_samples"] else None if row["ratio"] >= row["at_least"] else "yellow"
        table.add_row(
            row["block"], row["work"], f"{row['puna']:.1f}", f"{row['best']:.1f}", row["against"],
            f"{row['ratio']:.2f} x", f"{row['at_least']:.2f} x", f"{row['fit_samples']}/{repeat}",
            style=style,
        )  # fmt: skip
    if table.row_count:
        console.print(table)
