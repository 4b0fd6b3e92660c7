"""The plan of a conversion: sizes, memory and notes for the user, before the first byte is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.checkpoint import Checkpoint
from puna.checkpoint.weight import RowSource
from puna.convert.calibration import WINDOW, CalibrationText, calibration_format
from puna.convert.lazy_rows import PIECE, RELEASE_EVERY
from puna.convert.options import Layout, Options
from puna.convert.prefetch import QUEUED
from puna.convert.target import Target
from puna.errors import StorageError, show_bytes
from puna.files import free_bytes
from puna.files.resumable import staging_folders

_SMALL_FILES, _TOKEN_ON_DISK = 2**20, 200
"""Bytes on the disk for headers and configurations, and for each token: Llama 3's tokenizer.json has 134 per token."""

_INTERPRETER = 96 * 2**20
"""Bytes of memory that Python and NumPy need."""

TOKEN_MEMORY = 1600
"""Bytes of memory that a tokenizer needs per token while it is read and written."""

_PIECES = QUEUED + 2
"""Pieces in memory at once: one is computed, some are queued and one is written."""


@dataclass(frozen=True)
class Plan:
    """The plan of a conversion, before the first byte is written.

    Attributes:
        files: name and bytes of each large file.
        bytes, finished: the size of all these files, and of those that an interrupted run finished.
        free: free bytes on the disk of the target.
        memory: approximate bytes of memory that the process needs.
        before, formats: number of tensors in each format: in the source, and in the target.
        fallbacks: for each matrix whose rows do not fit the format of the mix, the format that is used instead.
        notes: changes and side effects, for the user.
        llama_version: in Meta's layout, the release to pass when reading the result, if its files do not determine it.
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
    source: Checkpoint,
    edited: Checkpoint,
    destination: Path,
    options: Options,
    target: Target,
    unfinished: Container[str],
    text: CalibrationText | None,
    verify: bool,
) -> Plan:
    """Returns the plan of writing `target`.

    Args:
        source, edited: the model before and after the edits that the options request.
        unfinished: names of the files that are still to be written.
        text: the calibration text; None without calibration. Calibration runs the source, which needs memory.
        verify: whether both models will run, which needs memory.
    """
    total = sum(file.bytes for file in target.files)
    tokenizer = TOKEN_MEMORY * source.config.vocab_size
    model_memory = _model_memory(source, total, text is not None, verify)
    return Plan(
        source=str(source.path),
        target=str(destination),
        kind=source.kind,
        layout=options.layout,
        files=[{"name": file.name, "bytes": file.bytes} for file in target.files],
        bytes=total,
        finished=sum(file.bytes for file in target.files if file.name not in unfinished),
        free=free_bytes(destination.absolute().parent),
        memory=_INTERPRETER + max((RELEASE_EVERY + _PIECES) * PIECE, tokenizer + model_memory),
        before=_count_formats(source.tensors),
        formats=_count_formats(target.tensors),
        fallbacks=dict(target.fallbacks),
        notes=[*source.notes, *_notes(source, edited, target), *(() if text is None else text.notes)],
        llama_version=target.llama_version,
    )


def check_space(plan: Plan, destination: Path, tokens: int) -> None:
    """Raises StorageError if the disk is too small for the files that are still to be written.

    Args:
        tokens: size of the vocabulary, which determines the size of the tokenizer.
    """
    needed = plan.bytes - plan.finished + _SMALL_FILES + _TOKEN_ON_DISK * tokens
    if needed > plan.free:
        raise StorageError(
            f"{destination} needs {show_bytes(needed)} more and the disk has {show_bytes(plan.free)} free; free "
            "space, or choose another disk. Nothing was written"
            + (f" now; an earlier run's files are in {staging_folders(destination)[0]}" if plan.finished else "")
        )


def _model_memory(source: Checkpoint, target_bytes: int, calibrate: bool, verify: bool) -> int:
    """Returns the bytes of memory needed to run models, one at a time: the source to calibrate, and both to verify.

    Args:
        target_bytes: bytes of the converted tensors.
    """
    if source.head != "lm" or not (calibrate or verify):
        return 0
    from puna.native.tensors import packed_bytes, quantized_format

    tensors, sizes = source.tensors, [0]
    if calibrate:
        sizes.append(packed_bytes(tensors, quantized_format(calibration_format(source), tensors)))
    if verify:
        sizes += [packed_bytes(tensors, None), target_bytes]
    config = source.config
    logits = 2 * 4 * WINDOW * config.vocab_size  # float32, and a copy
    keys = 2 * WINDOW * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # float16
    return max(sizes) + logits + 2 * 2 * keys  # keys and values, in memory for twice as many tokens


def _count_formats(tensors: Mapping[str, RowSource]) -> dict[str, int]:
    return dict(Counter(tensor.format.name for tensor in tensors.values()))


def _notes(source: Checkpoint, edited: Checkpoint, target: Target) -> list[str]:
    notes = []
    pairs = {(source.tensors[name].format, tensor.format) for name, tensor in target.tensors.items()}
    requantised = sorted({(a.name, b.name) for a, b in pairs if a.values > 1 and b.values > 1 and a != b})
    if requantised:
        kinds = ", ".join(f"{a} to {b}" for a, b in requantised)
        notes.append(f"quantised again ({kinds}): converting from unquantised weights would lose less")
    before, after = source.config, edited.config
    if after.num_key_value_heads != before.num_key_value_heads:
        heads = f"{before.num_key_value_heads} key-value heads become {after.num_key_value_heads}"
        notes.append(f"{heads}: the model needs training to recover its quality")
    if after.vocab_size > before.vocab_size:
        notes.append(f"{after.vocab_size - before.vocab_size} new rows of vocabulary are the mean of the existing rows")
    if source.kind == "meta":
        context = after.max_position_embeddings
        notes.append(
            f"context of {context} tokens assumed, since Meta's files do not contain it; llama_version determines it"
        )
    return [*notes, *target.notes]
