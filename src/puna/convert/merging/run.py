"""`puna.merge`: writes a model with the changes of an adapter in its weights, and measures the errors of rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from puna.adapters import Adapter, open_adapter
from puna.checkpoint import Checkpoint, open_checkpoint
from puna.checkpoint.names import EMBEDDING
from puna.convert.destination import locate_source
from puna.convert.error_report import spread
from puna.convert.lazy_rows import values
from puna.convert.merging.checkpoint import Kept, changed_tensors, merge_checkpoint
from puna.convert.options import Options
from puna.convert.plan import Plan
from puna.convert.run import Callbacks, Converted, Progress, write_model
from puna.errors import RequestError
from puna.files import folder_path, read_file

_TEXT_LIMIT = 2**20
"""Maximum bytes of the sample text; only its first window of tokens is read."""

_ROWS = 64
"""Rows of each matrix that are compared."""


@dataclass
class Merged:
    """The result of `merge`.

    Attributes:
        converted: the written files; `nll` holds the mean negative log-likelihood of a sample text with the base model
            ("before") and with the merged model as written ("after").
        tensors: for each changed matrix, the RMS of its change ("change") and of the rounding error ("error"), each
            divided by the RMS of the exact merged values, on a sample of rows. If the error is about as large as the
            change, the change is lost in rounding.
    """

    converted: Converted
    tensors: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return self.converted.to_dict() | {"tensors": self.tensors}

    def __str__(self) -> str:
        """Returns a summary of the written files and of the largest rounding error."""
        worst = max(self.tensors, key=lambda name: self.tensors[name]["error"], default=None)
        error = "" if worst is None else f"; largest rounding error {self.tensors[worst]['error']:.4%} in {worst}"
        return f"{self.converted}{error}"


def merge(
    model: str | Path | None,
    adapter: str | Path,
    target: str | Path,
    *,
    to: Literal["hf", "gguf"] | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    shard_size: int | str | None = None,
    verify: bool = True,
    sample: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: Progress = lambda count: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Merged:
    """Writes a model with the changes of a LoRA (also rsLoRA, DoRA), IA3 or trained tokens in its weights.

    In a GGUF file without `quantize` and `dtype`, a quantised matrix that changes is dequantised, changed, and
    quantised again to its format. `target` appears when it is complete; an interrupted run is resumed.

    Args:
        model: the base model: a folder in Hugging Face's or Meta's layout, or a GGUF file; None means the default.
        adapter: a PEFT folder, or a GGUF adapter.
        target: a new folder, or for GGUF a new file.
        to, dtype, quantize, shard_size, overwrite, threads, on_plan, progress, on_step: as in `puna.convert`.
        verify: read all tensors back, and measure the change in negative log-likelihood of a sample text.
        sample: a text file for this measurement; None means a text of the package.

    Raises:
        ModelNotFoundError: there is no model or adapter at the path.
        CheckpointError: the adapter does not fit the model, or cannot be merged; or as in `puna.convert`.
        StorageError: space or a permission is missing, or `target` exists already.
    """
    layout = to or ("gguf" if quantize is not None or folder_path(target).suffix == ".gguf" else "hf")
    if sample is not None and not verify:
        raise RequestError(f"sample is {str(sample)!r}, but verify is false, so that no text is read; omit one of them")
    text = None if sample is None else _read_text(Path(sample))
    if layout not in ("hf", "gguf"):
        raise RequestError(f"to is {to!r}; an adapter is merged into hf or gguf, which puna.convert turns into meta")
    options = Options(layout, dtype, quantize, shard_size, threads=threads)
    options.check()
    checkpoint = open_checkpoint(locate_source(model, target, overwrite))
    source = open_adapter(adapter, checkpoint.config)
    kept: Kept = "nothing" if dtype or quantize else "formats" if layout == "gguf" else "plain types"
    merged = merge_checkpoint(checkpoint, source, kept)
    converted = write_model(
        merged, target, options, Callbacks(on_plan, progress, on_step=on_step), verify=verify, overwrite=overwrite,
        original=checkpoint, sample=text,
    )  # fmt: skip
    on_step("Measuring the errors of the changed matrices")
    tensors = _measure(checkpoint, source, merged, open_checkpoint(folder_path(target)))
    lost = [name for name, item in tensors.items() if 2 * item["error"] ** 2 > item.get("change", math.inf) ** 2]
    if lost:
        converted.notes.append(
            f"in {len(lost)} of {len(tensors)} changed matrices, the power of the rounding error is more than half of "
            "the change's; merge into float weights, or quantize to a format with more bits"
        )
    return Merged(converted, tensors)


def _read_text(path: Path) -> str:
    data = read_file(path, RequestError, _TEXT_LIMIT)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise RequestError(f"{path} is not UTF-8 text ({exc}); convert it first") from exc


def _measure(
    checkpoint: Checkpoint, adapter: Adapter, merged: Checkpoint, written: Checkpoint
) -> dict[str, dict[str, float]]:
    """Returns the relative change and rounding error of each changed matrix."""
    exact = merge_checkpoint(checkpoint, adapter, "nothing")
    result = {}
    changed = changed_tensors(adapter)
    for name in (name for name, weight in merged.tensors.items() if name in changed and len(weight.shape) == 2):
        old = checkpoint.tensors.get(name, checkpoint.tensors[EMBEDDING])
        new = exact.tensors[name]
        rows = spread(new.shape[0], _ROWS)
        x, y = (values(tensor, rows).astype(np.float64) for tensor in (new, written.tensors[name]))
        power = math.sqrt(np.square(x).sum()) or 1.0
        errors = {"error": math.sqrt(np.square(y - x).sum()) / power}
        if old.shape == new.shape:
            change = x - values(old, rows).astype(np.float64)
            errors = {"change": math.sqrt(np.square(change).sum()) / power} | errors
        result[name] = errors
        written.tensors[name].release()
    return result
