"""The change in a model's predictions: its negative log-likelihood (NLL) of a sample text, before and after."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

import numpy as np

from puna.checkpoint import Checkpoint, open_checkpoint
from puna.convert.calibration import WINDOW
from puna.errors import PunaError, RequestError


def compare_nll(
    before: Checkpoint, target: Path, llama_version: str | None, threads: int | None, sample: str | None = None
) -> tuple[dict[str, float], list[str]]:
    """Compares the model with the converted one at `target` on a sample text.

    Args:
        llama_version: the release of Meta's files at `target`, if the files do not determine it.
        sample: a text, of which the first window is read; None means the text of the package.

    Returns:
        (nll, notes). nll holds the mean NLL in nats per token, "before" and "after", and the number of "tokens"; it is
        empty if the measurement failed. notes are for the user.
    """
    notes: list[str] = []
    try:
        text = resources.files("puna").joinpath("sample.txt").read_text("utf-8") if sample is None else sample
        return _measure(before, open_checkpoint(target, llama_version), text, threads, notes), notes
    except PunaError as exc:
        return {}, [*notes, f"the change in negative log-likelihood was not measured: {exc}"]


def _measure(
    before: Checkpoint, after: Checkpoint, text: str, threads: int | None, notes: list[str]
) -> dict[str, float]:
    """Returns the dictionary `nll`. Adds notes to the caller's list, so that they are kept if a later step fails."""
    from puna.llm import LLM

    with LLM(before, threads=threads, max_batch=1) as llm:  # freed before the next is loaded: memory for one is enough
        ids = llm.tokenizer.encode(text)
        sample = ids[: min(WINDOW, llm.config.context_length)]
        if len(sample) < 2:
            raise RequestError(f"a context of {llm.config.context_length} tokens leaves nothing to predict")
        old = float(np.mean(llm.nll(sample)))
    with LLM(after, threads=threads, max_batch=1) as llm:
        new = float(np.mean(llm.nll(sample)))
        if llm.tokenizer.encode(text) != ids:
            notes.append("the converted tokenizer encodes a sample text to ids that differ from the source's")
    if not math.isfinite(old + new):
        raise RequestError(f"a value is not finite ({old} before and {new} after the conversion)")
    quantised = [any(weight.format.values > 1 for weight in model.tensors.values()) for model in (before, after)]
    if quantised[0] != quantised[1]:
        notes.append(
            "the change in negative log-likelihood includes the rounding of activations to 8 bits, which puna applies "
            "to the inputs of quantised weights"
        )
    return {"before": old, "tokens": float(len(sample) - 1), "after": new}
