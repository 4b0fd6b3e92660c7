"""A conversion from beginning to end: look, plan, write, check, rename."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from puna import __version__
from puna.checkpoint.loading import Checkpoint, open_checkpoint
from puna.checkpoint.weight import Rows
from puna.convert import error_report
from puna.convert.lazy_rows import pieces, rows_at_once
from puna.convert.mixes import find_mix
from puna.convert.model import Model, changed, chatting, find_dtype, opened
from puna.convert.options import Layout, Options
from puna.convert.plan import Plan, check_space, make_plan
from puna.convert.prefetch import made_ahead
from puna.convert.staging import check_goal, partial, publish
from puna.convert.target import Target
from puna.convert.to_gguf import Importance, gguf_target
from puna.convert.to_hf import hf_target
from puna.convert.to_meta import meta_target
from puna.convert.tokenizer_files import (
    check_instruct,
    tokenizer_files,
    write_hf_tokenizer,
    write_meta_tokenizer,
)
from puna.errors import CheckpointError, StorageError, TokenizerError
from puna.files import folder_path, storage_errors
from puna.formats.new_tensor import Buffer, NewTensor


@dataclass(frozen=True)
class Calibration:
    """Finding out how much each input of a matrix matters, which takes a while: done once the plan stands.

    Attributes:
        text: what identifies the text it is done on.
        measure: does it.
        notes: what the user should know of it.
    """

    text: str
    measure: Callable[[], Importance]
    notes: tuple[str, ...] = ()


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        errors: for each kind of tensor whose numbers changed, the root mean square of the change over that of the
            values, from a sample of rows.
        verified: tensors read back from the result and found as intended; None where that was not asked for.
    """

    plan: Plan
    seconds: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    verified: int | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


Progress = Callable[[int], None]


def convert_checkpoint(
    source: Checkpoint,
    target: str | Path,
    options: Options,
    *,
    calibration: Calibration | None = None,
    verify: bool = False,
    overwrite: bool = False,
    running: Callable[[int], int] = lambda result: 0,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: Progress = lambda count: None,
) -> Conversion:
    """Writes `source` as `target`, which appears once it is whole; an interrupted run is gone on with.

    Args:
        target: a folder, or a file for GGUF.
        calibration: measures the importance of the inputs of matrices, for the quantiser.
        verify: read the result back and compare every tensor.
        overwrite: replace what is at `target`.
        running: of the result's bytes, those of memory that the caller takes to run either model.
        on_plan: called with the plan before anything is written.
        progress: called with the bytes written (and, with `verify`, read back) since the last call.

    Raises:
        CheckpointError: the source is damaged, or cannot be expressed in the layout.
        StorageError: no space, no permission, or something at `target` already.
    """
    options.check()
    goal = _goal(target, options.layout, overwrite, source)
    before = opened(source)
    model = changed(before, options.kv_heads, options.vocab_size, options.pad_vocab_to)
    if options.instruct:
        model = chatting(model, options.layout)
    made = _target(model, goal, options, None if calibration is None else {})
    started = time.perf_counter()
    with partial(goal, _record(source, options, calibration)) as place:
        waiting = {file.name for file in made.files if not (place / file.name).exists()}
        plan = make_plan(before, model, goal, options, made, waiting, running)
        if calibration is not None:
            plan.notes.extend(calibration.notes)
        check_space(plan, goal)
        on_plan(plan)
        done = Conversion(plan)
        if calibration is not None:
            made = _target(model, goal, options, calibration.measure())
        _write(made, waiting, place, progress)
        single = goal.name if options.layout == "gguf" else None
        if single is None:
            with storage_errors(goal):
                done.notes += made.finish(place)
        if verify:
            try:
                done.verified = _verify(place if single is None else place / single, made, progress)
            except CheckpointError:
                for file in made.files:  # no later run may go on with them
                    (place / file.name).unlink(missing_ok=True)
                raise
        publish(place, goal, single, overwrite)
    done.errors = error_report.changes(before.tensors, made.tensors)
    done.seconds = time.perf_counter() - started
    return done


def convert_tokenizer(
    source: str | Path, target: str | Path, to: Layout | None = None, *, instruct: bool = False, overwrite: bool = False
) -> list[str]:
    """Writes only the tokenizer of `source` into a new folder, as that layout has it; returns what to know.

    Raises:
        CheckpointError: the layout is GGUF, whose tokenizer is part of the model's file.
        StorageError: as in `convert_checkpoint`.
        TokenizerError: there is no tokenizer at `source`.
    """
    layout = Options(to=to).layout
    if layout == "gguf":
        raise CheckpointError("a GGUF file has its tokenizer inside; convert the model, or give --to hf or meta")
    if instruct:
        check_instruct(Path(source), layout)
    goal = folder_path(target)
    check_goal(goal, overwrite, (Path(source),))
    with partial(goal, {"to": layout, "instruct": instruct} | _files_record(tokenizer_files(Path(source)))) as place:
        with storage_errors(goal):
            if layout == "meta":
                notes = write_meta_tokenizer(Path(source), place)
            else:
                notes = write_hf_tokenizer(Path(source), place, instruct)
        if not any(path.name.startswith("tokenizer") for path in place.iterdir()):
            raise TokenizerError(f"{source}: {'; '.join(notes)}")
        publish(place, goal, None, overwrite)
    return notes


def _target(model: Model, goal: Path, options: Options, importance: Importance | None) -> Target:
    layout, dtype = options.layout, find_dtype(options.dtype)
    mix = None if options.quantize is None else find_mix(options.quantize)
    if layout == "gguf":
        return gguf_target(model, goal.name, dtype, mix, importance, options.threads, options.instruct)
    if layout == "meta":
        return meta_target(model, dtype, options.shards)
    return hf_target(model, dtype, options.shard_size, options.shards, options.instruct)


def _goal(target: str | Path, layout: Layout, overwrite: bool, source: Checkpoint) -> Path:
    goal = folder_path(target)
    if layout == "gguf" and goal.is_dir() and not goal.is_symlink():
        raise StorageError(f"{goal} is a folder; a GGUF file needs a name, such as {goal / (goal.name + '.gguf')}")
    if layout != "gguf" and goal.suffix == ".gguf":
        raise StorageError(f"{goal} would be a folder in layout {layout!r}; for a GGUF file give --to gguf")
    check_goal(goal, overwrite, (source.path, *source.files, source.tokenizer))
    return goal


def _write(made: Target, waiting: Container[str], place: Path, progress: Progress) -> None:
    """Writes the big files that are waiting."""
    for file in made.files:
        if file.name in waiting:
            with made_ahead(file.tensors) as tensors:
                file.write(place / file.name, [_counted(tensor, progress) for tensor in tensors])
        else:
            progress(file.bytes)


def _counted(tensor: NewTensor, progress: Progress) -> NewTensor:
    def data() -> Iterator[Buffer]:
        for piece in tensor.pieces():
            yield piece
            progress(piece.nbytes)

    return replace(tensor, data=data)


def _verify(path: Path, made: Target, progress: Progress) -> int:
    """Compares every tensor of the result with what was to be written; returns their number."""
    written = open_checkpoint(path).tensors
    if written.keys() != made.tensors.keys():
        odd = sorted(written.keys() ^ made.tensors.keys())
        raise CheckpointError(f"{path}: tensors {odd[:5]} are not as intended; the disk may be failing, convert again")
    for name, rows in made.tensors.items():
        for wanted, found in zip(pieces(rows), _alike(written[name], rows), strict=True):
            if not np.array_equal(wanted, found):
                raise CheckpointError(f"{path}: {name} is not as intended; the disk may be failing, convert again")
            progress(found.nbytes)
    return len(written)


def _alike(found: Rows, wanted: Rows) -> Iterator[Any]:
    """Pieces of the same rows as those of `wanted`."""
    if found.format != wanted.format or found.shape != wanted.shape:
        raise CheckpointError(f"{found.name} is {found.format.name} {found.shape}, not as intended; convert again")
    yield from pieces(found, step=rows_at_once(wanted))


def _record(source: Checkpoint, options: Options, calibration: Calibration | None) -> dict[str, Any]:
    """Everything that decides what is written: the same record, the same files."""
    return _files_record([*source.files, *tokenizer_files(source.tokenizer)]) | {
        "kind": source.kind,
        "config": repr(source.config),
        "generation_config": repr(source.generation_config),
        "options": asdict(replace(options, to=options.layout, threads=None)),  # threads change no bytes
        "calibration": calibration and calibration.text,
    }


def _files_record(files: Iterable[Path]) -> dict[str, Any]:
    """What tells files from others, all of which can be read.

    Raises:
        CheckpointError: one cannot.
    """
    found = []
    for path in dict.fromkeys(files):
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
        except OSError as exc:
            raise CheckpointError(f"{path} cannot be read ({exc.strerror}); check its permissions") from exc
        found.append([ascii(str(path.resolve())), stat.st_size, stat.st_mtime_ns])  # names need not be UTF-8
    return {"puna": __version__, "files": found}
