"""The destination of a conversion: checks of its path, and the record that identifies an interrupted run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from puna import __version__
from puna.checkpoint import Checkpoint, locate_model
from puna.convert.calibration import CalibrationText
from puna.convert.options import Layout, Options
from puna.convert.tokenizer_files import tokenizer_files
from puna.errors import CheckpointError, StorageError, show_bytes
from puna.files import folder_path, resumable, storage_errors
from puna.hub import Need, parse


def locate_source(source: str | Path | None, target: str | Path, overwrite: bool, need: Need = "model") -> Path:
    """Returns the local path of the source; checks `target` before it downloads a model from the hub."""
    if isinstance(source, str | Path) and parse(source) is not None:
        check_destination(folder_path(target), overwrite, ())
    return locate_model(source, need)


_MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".pth", ".model", ".gguf", ".jinja"}
_MAX_LISTED = 5
"""Maximum number of file names in a note."""


def model_destination(target: str | Path, layout: Layout, overwrite: bool, source: Checkpoint) -> Path:
    """Returns the path of the converted model; raises StorageError if it cannot be used (see `check_destination`)."""
    destination = folder_path(target)
    if layout == "gguf" and destination.is_dir() and not destination.is_symlink():
        example = destination / (destination.name + ".gguf")
        raise StorageError(f"{destination} is a folder; a GGUF file needs a name, such as {example}")
    if layout != "gguf" and destination.suffix == ".gguf":
        raise StorageError(
            f"{destination} would be a folder in layout {layout!r}; for a GGUF file choose the layout gguf (--to gguf)"
        )
    check_destination(destination, overwrite, (source.path, *source.files, source.tokenizer))
    return destination


def check_destination(destination: Path, overwrite: bool, sources: Iterable[Path]) -> None:
    """Checks that `destination` does not exist, or with `overwrite` that replacing it does not delete the source.

    If a run was killed while it replaced the destination, the old content is restored first.

    Raises:
        StorageError: the destination cannot be used.
    """
    try:
        resolved, current = destination.resolve(), Path.cwd()
    except (OSError, RuntimeError) as exc:  # a loop of symbolic links, or the current folder was deleted
        raise StorageError(f"{destination} cannot be written to ({exc}); choose another name") from exc
    if resolved in (current, *current.parents):
        raise StorageError(f"{destination} is the current folder, or contains it; choose another name")
    staging = [path.resolve() for path in resumable.staging_folders(destination)]
    for source in sources:
        if any(path in (source.resolve(), *source.resolve().parents) for path in staging):
            raise StorageError(
                f"{source} is in a staging folder of {destination}; move it, or choose another name for the result"
            )
        for path in (source, *(source.iterdir() if source.is_dir() else ())):
            # Checks both the given path, which may be a link inside the destination, and the path to which it links.
            for real in (path.parent.resolve() / path.name, path.resolve()):
                if resolved in (real, *real.parents):
                    raise StorageError(f"{destination} is, or contains, the model to be converted; choose another name")
    resumable.recover(destination)
    with storage_errors(destination):
        exists = resumable.is_occupied(destination)
    if exists and not overwrite:
        raise StorageError(
            f"{destination} exists already; choose another name, or replace it with --overwrite "
            "(overwrite=True in Python)"
        )


def describe_replaced(destination: Path) -> list[str]:
    """Returns a note on the present content of `destination`, which will be replaced; [] if nothing exists there."""
    if not resumable.is_occupied(destination):
        return []
    if destination.is_symlink():
        return [f"replaces the link {destination}; {destination.readlink()}, to which it points, does not change"]
    files = [path for path in destination.rglob("*") if path.is_file()] if destination.is_dir() else [destination]
    size = show_bytes(sum(path.lstat().st_size for path in files))
    if not destination.is_dir():
        with destination.open("rb") as file:
            kind = "a GGUF file" if file.read(4) == b"GGUF" else "which is not a GGUF file"
        return [f"replaces {destination} ({size}), {kind}"]
    other = sorted(str(path.relative_to(destination)) for path in files if path.suffix not in _MODEL_SUFFIXES)
    listed = ", ".join(other[:_MAX_LISTED]) + (", ..." if len(other) > _MAX_LISTED else "")
    return [
        f"replaces the folder {destination} with {len(files)} files ({size})"
        + (f", of which {len(other)} do not look like parts of a model: {listed}" if other else "")
    ]


def model_record(source: Checkpoint, options: Options, text: CalibrationText | None) -> dict[str, Any]:
    """Returns everything that determines the files of a converted model: equal records mean equal files."""
    return files_record([*source.files, *tokenizer_files(source.tokenizer)]) | {
        "kind": source.kind,
        "config": repr(source.config),
        "generation_config": repr(source.generation_config),
        "options": asdict(replace(options, to=options.layout, threads=None)),  # threads do not change the bytes
        "calibration": text and text.digest,
    }


def files_record(files: Iterable[Path]) -> dict[str, Any]:
    """Returns puna's version, and the path, size and modification time of each file.

    Raises:
        CheckpointError: a file cannot be read.
    """
    identities = []
    for path in dict.fromkeys(files):
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
        except OSError as exc:
            raise CheckpointError(f"{path} cannot be read ({exc.strerror}); check its permissions") from exc
        identities.append([ascii(str(path.resolve())), stat.st_size, stat.st_mtime_ns])  # names need not be UTF-8
    return {"puna": __version__, "files": identities}
