"""Locates the model that the user named; short names of downloaded models; completion of names in the shell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from puna.cli.terminal import did_you_mean, from_environment, is_quiet, note
from puna.errors import ModelNotFoundError
from puna.files import name_from_path

if TYPE_CHECKING:
    from puna.hub import Need


VARIABLE = "PUNA_MODEL"
"""Environment variable with the model to use if the command line names none."""

_DEFAULT_NAME = "SmolLM2-135M-Instruct"


def locate(model: str | None, need: Need = "model") -> Path:
    """Returns the path of a model: a path, a model of the hub, or a part of a downloaded model's name.

    Args:
        model: the path or name in the command line; None means the default model.
        need: the part of the model to download, if it is not in the cache.

    Raises:
        ModelNotFoundError: there is no such model; the message suggests similar names.
        typer.BadParameter: the name is empty.
    """
    from puna.checkpoint import locate_model

    with similar_models(model):
        return locate_model(expand(model, need), need)


def expand(model: str | None, need: Need = "model") -> str | Path | None:
    """Returns the path of the downloaded or default model of which `model` is a part of the name, else `model`.

    Downloads nothing.

    Raises:
        ModelNotFoundError: several downloaded models match.
        typer.BadParameter: the name is empty.
    """
    from puna import hub
    from puna.checkpoint.locate import default_model

    hub.show_progress(not is_quiet())
    if model is None:
        return None
    if not model.strip():
        raise typer.BadParameter(
            "the model's name is empty; give a folder, a GGUF file or owner/name, or leave it out for the default model"
        )
    if _exists(Path(model)) or hub.parse(model) is not None:
        return model
    reference = hub.find_cached(model)
    if reference is None:
        default = default_model()
        return default if default is not None and model.lower() in default.stem.lower() else model
    note(f"using {reference} from the cache")
    return hub.fetch(reference, need, local_files_only=True)


@contextmanager
def similar_models(model: str | None) -> Iterator[None]:
    """Context manager: adds similar names to the error if there is no model of this name."""
    try:
        yield
    except ModelNotFoundError as exc:
        source = f" The name is the value of {VARIABLE}." if model in from_environment else ""
        question = "" if model is None else similar_model(model)
        raise ModelNotFoundError(f"{exc}.{source}{question}" if source or question else str(exc)) from exc


def similar_model(model: str) -> str:
    """Returns " Did you mean ...?" with files and downloaded models whose names are similar; "" if there is none."""
    from puna import hub
    from puna.checkpoint.locate import default_model

    names = hub.cached_names()
    short = {name.partition("/")[2]: name for name in names}
    defaults = [] if default_model() is None else [_DEFAULT_NAME, _DEFAULT_NAME.partition("-")[0]]
    key = model.partition(":")[0]
    return similar_file(Path(model)) or did_you_mean(key, names) or did_you_mean(key, [*short, *defaults])


def similar_file(path: Path) -> str:
    """Returns " Did you mean ...?" with the files in the folder of `path` whose names are similar; "" if there is none.

    If the folder does not exist either, a folder with a similar name is suggested.
    """
    for missing in (path, *path.parents):
        if _exists(missing.parent):
            try:
                names = [entry.name for entry in missing.parent.iterdir()]
            except OSError:
                return ""
            question = did_you_mean(missing.name, names)
            prefix = "" if str(missing.parent) == "." else f"{missing.parent}/"
            return question.replace("Did you mean ", f"Did you mean {prefix}").replace(" or ", f" or {prefix}")
    return ""


def model_name(path: Path) -> str:
    """Returns the name of a model to show to the user."""
    from puna import hub
    from puna.checkpoint.locate import default_model

    if path == default_model():
        return _DEFAULT_NAME
    parts = path.absolute().parts
    cached = [name for part in parts if (name := hub.cached_model(part)) is not None]
    if cached and "snapshots" in parts:
        return cached[-1]
    return name_from_path(path) or str(path)


def complete_model(incomplete: str) -> list[str]:
    """Returns the completions of a model's name: downloaded models, folders and GGUF files."""
    from puna import hub

    return [name for name in hub.cached_names() if name.startswith(incomplete)] + complete_path(incomplete, ".gguf")


def complete_cached(incomplete: str) -> list[str]:
    """Returns the completions of a downloaded model's name."""
    from puna import hub

    return [name for name in hub.cached_names() if name.startswith(incomplete)]


def complete_path(incomplete: str, suffix: str = "") -> list[str]:
    """Returns the folders, and the files with this suffix, whose paths begin with `incomplete`."""
    folder, separator, start = incomplete.rpartition("/")
    root = Path(folder + separator or ".").expanduser()
    try:
        entries = sorted(root.iterdir())
    except OSError:
        return []
    shown = [entry for entry in entries if entry.name.startswith(start) and (start or not entry.name.startswith("."))]
    return [
        f"{folder}{separator}{entry.name}{'/' * entry.is_dir()}"
        for entry in shown
        if entry.is_dir() or entry.name.endswith(suffix)
    ]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True
