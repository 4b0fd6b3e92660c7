"""What a conversion will do, told before the first byte is written: sizes, memory, and what the user should know."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.checkpoint.weight import Rows
from puna.convert.lazy_rows import FORGET, PIECE
from puna.convert.model import Model
from puna.convert.options import Layout, Options
from puna.convert.staging import partial_folder
from puna.convert.target import Target
from puna.errors import StorageError

_SMALL = 64 * 2**20
"""Bytes left for headers, configurations and the tokenizer, beside the tensors."""

_INTERPRETER = 96 * 2**20
"""Bytes that Python and NumPy take."""

_TOKEN = 1600
"""Bytes that a tokenizer takes for each token while it is read and written."""

_PIECES = 4
"""Pieces held at once: one is made, two wait and one is written."""


@dataclass(frozen=True)
class Plan:
    """What a conversion will do, before the first byte is written.

    Attributes:
        files: name and bytes of each big file.
        bytes: of all of them; `finished`: of those that an interrupted run has written already.
        free: bytes free on the disk they go to.
        memory: bytes the process will take, about.
        before, formats: number of tensors in each format, as stored and as they will be.
        fallbacks: formats of matrices whose rows do not fit the one that the mix wants, by name.
        notes: what changes, and what the user might not expect.
        llama_version: in Meta's layout, the release to read the result as, where its files do not show it.
    """

    source: str
    target: str
    kind: str
    layout: Layout
    files: list[dict[str, Any]]
    bytes: int
    finished: int
    free: int
    memory: int
    before: dict[str, int]
    formats: dict[str, int]
    fallbacks: dict[str, str]
    notes: list[str]
    llama_version: str | None = None


def make_plan(
    source: Model,
    model: Model,
    goal: Path,
    options: Options,
    made: Target,
    waiting: Container[str],
    running: Callable[[int], int],
) -> Plan:
    """The plan of writing `made` to `goal`.

    Args:
        source, model: as it is, and changed as asked.
        waiting: names of the files that are still to be written.
        running: of the result's bytes, those of memory that the caller takes to run either model.
    """
    total = sum(file.bytes for file in made.files)
    parent = next(folder for folder in goal.absolute().parents if folder.exists())
    return Plan(
        source=str(model.path),
        target=str(goal),
        kind=model.kind,
        layout=options.layout,
        files=[{"name": file.name, "bytes": file.bytes} for file in made.files],
        bytes=total,
        finished=sum(file.bytes for file in made.files if file.name not in waiting),
        free=shutil.disk_usage(parent).free,
        memory=_INTERPRETER + max((FORGET + _PIECES) * PIECE, _TOKEN * source.config.vocab_size, running(total)),
        before=_count(source.tensors.values()),
        formats=_count(made.tensors.values()),
        fallbacks=dict(made.fallbacks),
        notes=_notes(source, model, made),
        llama_version=made.llama_version,
    )


def _count(tensors: Iterable[Rows]) -> dict[str, int]:
    found: dict[str, int] = {}
    for rows in tensors:
        found[rows.format.name] = found.get(rows.format.name, 0) + 1
    return found


def _notes(source: Model, model: Model, made: Target) -> list[str]:
    notes = []
    pairs = {(source.tensors[name].format, rows.format) for name, rows in made.tensors.items()}
    again = sorted({(a.name, b.name) for a, b in pairs if a.values > 1 and b.values > 1 and a != b})
    if again:
        kinds = ", ".join(f"{a} to {b}" for a, b in again)
        notes.append(f"quantised again ({kinds}): a float checkpoint as source would lose less")
    before, after = source.config, model.config
    if after.num_key_value_heads != before.num_key_value_heads:
        heads = f"{before.num_key_value_heads} key-value heads become {after.num_key_value_heads}"
        notes.append(f"{heads}: the model needs training before it is good again")
    if after.vocab_size > before.vocab_size:
        notes.append(f"{after.vocab_size - before.vocab_size} new rows of vocabulary are the mean of the others")
    if model.kind == "meta":
        context = after.max_position_embeddings
        notes.append(f"context of {context} tokens, which Meta's files do not say: --llama-version does")
    return [*notes, *made.notes]


def check_space(plan: Plan, goal: Path) -> None:
    """Raises StorageError where the disk has no room for what is still to be written."""
    needed = plan.bytes - plan.finished + _SMALL
    if needed > plan.free:
        raise StorageError(
            f"{goal} needs {needed / 1e9:.2f} GB more and the disk has {plan.free / 1e9:.2f} GB free; free space, or "
            f"choose another disk. Nothing was written"
            + (f"; finished files lie in {partial_folder(goal)}" if plan.finished else "")
        )
