"""Finds the folder of a model if the user gives its config.json, or its folder in the hub's cache, instead."""

from __future__ import annotations

from pathlib import Path

from puna.errors import ModelNotFoundError


def model_folder(path: Path) -> Path:
    """Returns the folder of the `config.json` at `path`, or the only snapshot in a model's folder of the hub's cache.

    Any other path is returned unchanged.

    Raises:
        ModelNotFoundError: the folder of the cache has several snapshots or none; the message lists them.
    """
    try:
        if path.name == "config.json" and path.is_file():
            return path.parent
        entry = path.parent if path.name == "snapshots" else path
        if not (entry / "snapshots").is_dir() or not ((entry / "refs").is_dir() or (entry / "blobs").is_dir()):
            return path
        snapshots = sorted(item for item in (entry / "snapshots").iterdir() if item.is_dir())
        main = entry / "refs" / "main"
        current = f" ('main' is {main.read_text().strip()[:40]})" if main.is_file() else ""
    except (OSError, ValueError):  # the caller reports a path that cannot be read
        return path
    if len(snapshots) == 1:
        return snapshots[0]
    names = ", ".join(str(item) for item in snapshots[:5]) or "it is empty"
    raise ModelNotFoundError(
        f"{path}: a folder of the hub's cache with {len(snapshots)} snapshots: {names}. "
        + (f"Give the path of one of them{current}" if snapshots else "Download the model again")
    )
