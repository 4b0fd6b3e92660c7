"""Calibration: measures on a text how much each input of a matrix matters, so that the quantiser can weight errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.backend import Chunk, consecutive_pages
from puna.checkpoint import Checkpoint
from puna.errors import RequestError

Importance = dict[str, NDArray[np.float32]]
"""Importance of the inputs of each matrix, by Hugging Face's name of the matrix."""

WINDOW = 512
"""Tokens in one forward pass."""

_MIN_TOKENS, _MAX_TOKENS = 128, 32_768
"""Minimum number of tokens in a text, and maximum number of tokens read from it."""

_CHARACTERS = 2**18
"""Characters that are read first; more are read if these have fewer than `_MAX_TOKENS` tokens."""

_MIN_IMPORTANCE = 1e-4
"""Added to every importance, whose mean is 1: an input that is 0 throughout the text may matter in other texts."""


@dataclass(frozen=True)
class CalibrationText:
    """The tokens of a text.

    Attributes:
        digest: SHA-256 of the ids.
        notes: notes for the user.
    """

    ids: list[int]
    digest: str
    notes: tuple[str, ...] = ()


def read_text(checkpoint: Checkpoint, path: Path) -> CalibrationText:
    """Reads the text and checks it, so that errors in it show before the model is loaded.

    Raises:
        RequestError: the text cannot be read or is too short, or the model is not a language model.
    """
    if checkpoint.head != "lm":
        raise RequestError(f"calibrating needs a language model; {checkpoint.path} has the head {checkpoint.head!r}")
    ids, complete = _read_tokens(checkpoint, path)
    if len(ids) < _MIN_TOKENS:
        raise RequestError(f"{path} has {len(ids)} tokens; give a text of {_MIN_TOKENS} or more to calibrate on")
    digest = hashlib.sha256(np.asarray(ids, np.int64).tobytes()).hexdigest()
    return CalibrationText(
        ids, digest, () if complete else (f"calibration reads only the first {len(ids)} tokens of {path}",)
    )


def _read_tokens(checkpoint: Checkpoint, path: Path) -> tuple[list[int], bool]:
    """Returns the first tokens of a text, and whether they are the entire text."""
    from puna.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(_CHARACTERS)
            while True:
                ids = tokenizer.encode(text)
                more = "" if len(ids) > _MAX_TOKENS else file.read(len(text))
                if not more:
                    return ids[:_MAX_TOKENS], len(ids) <= _MAX_TOKENS
                text += more
    except UnicodeDecodeError as exc:
        raise RequestError(f"{path} is not UTF-8 text ({exc}); convert it first") from exc
    except OSError as exc:
        raise RequestError(f"{path} cannot be read: {exc.strerror}") from exc


def calibration_format(checkpoint: Checkpoint) -> str | None:
    """Returns the format of the weights during the measurement; None means their stored formats.

    Plain weights are quantised to eight bits, which are fast and change the result by a fraction of a percent.
    """
    plain = all(weight.format.values == 1 and weight.shape[-1] % 32 == 0 for weight in checkpoint.tensors.values())
    return "q8_0" if plain else None


def measure_importance(
    checkpoint: Checkpoint, text: CalibrationText, threads: int | None, progress: Callable[[float], None]
) -> Importance:
    """Returns the importance of each matrix's inputs; the model reads the text in independent windows.

    The importance of an input is its mean square on the text, relative to the mean over the inputs of its matrix.

    Args:
        progress: called with the fraction of the text that was read.
    """
    from puna.native import NativeBackend

    window = min(WINDOW, checkpoint.config.context_length)
    starts = range(0, len(text.ids), window)
    quantize = calibration_format(checkpoint)
    backend = NativeBackend(checkpoint.config, checkpoint.tensors, threads, slots=1, quantize=quantize)
    with backend.observing() as totals:
        for number, start in enumerate(starts):
            progress(number / len(starts))
            tokens = np.asarray(text.ids[start : start + window], np.int64)
            backend.forward([Chunk(consecutive_pages(len(tokens)), tokens, 0, len(tokens))])
        squares = totals()
    return {name: _relative(mean_squares) for name, mean_squares in squares.items()}


def _relative(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scales the mean squares of a matrix's inputs to a mean of 1."""
    mean = float(squares.mean()) or 1.0
    return (squares / mean + _MIN_IMPORTANCE).astype(np.float32)
