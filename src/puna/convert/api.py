"""`puna.convert`: any LLaMA checkpoint into any other, and what that does to the model's predictions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from puna.backend import Chunk
from puna.checkpoint import locate_model
from puna.checkpoint.loading import Checkpoint, open_checkpoint
from puna.convert.mixes import find_mix
from puna.convert.options import Options
from puna.convert.plan import Plan
from puna.convert.run import Calibration, Conversion, convert_checkpoint
from puna.errors import PunaError, RequestError
from puna.formats.blocks import FORMATS

if TYPE_CHECKING:
    from puna.convert.options import Layout
    from puna.convert.to_gguf import Importance

_WINDOW = 512
"""Tokens that a model reads at once: of a calibration text, and all that is read of the sample text."""

_LEAST_TOKENS, _MOST_TOKENS = 128, 32_768
"""Tokens of a calibration text that are needed, and read at most."""

_CHARACTERS = 2**18
"""Characters of a calibration text that are read first; more are where they make too few tokens."""

_UNSEEN = 1e-4
"""Importance of an input that is 0 throughout a text, over the mean of all."""


@dataclass
class Converted:
    """What `convert` did.

    Attributes:
        conversion: the files written, and how far their numbers are from the source's.
        nll: with `verify`, mean negative log-likelihood in nats per token of a sample text, "before" and "after", and
            the number of "tokens"; empty where it was not measured.
        notes: what the user should know.
    """

    conversion: Conversion
    nll: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.conversion.to_dict() | {"nll": self.nll, "notes": self.notes}


def convert(
    source: str | Path | None,
    target: str | Path,
    *,
    to: Layout | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    shard_size: int | str | None = None,
    shards: int | None = None,
    kv_heads: int | None = None,
    calibrate: str | Path | None = None,
    vocab_size: int | None = None,
    pad_vocab_to: int | None = None,
    verify: bool = False,
    overwrite: bool = False,
    llama_version: str | None = None,
    instruct: bool = False,
    threads: int | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[int], None] = lambda count: None,
    calibrating: Callable[[float], None] = lambda share: None,
) -> Converted:
    """Writes a model in another layout or type. The result appears once it is whole; a killed run can be repeated.

    Args:
        source: a folder in Hugging Face's or Meta's layout, a GGUF file, or None for the default model. Which of them
            is found from the content.
        target: a new folder, or for GGUF a new file.
        to: "hf", "meta" or "gguf"; None means gguf with `quantize`, else hf.
        dtype: "float32", "float16" or "bfloat16"; None keeps the source's (and gives quantised weights as float32,
            which holds what they mean exactly).
        quantize: a format or mix of GGUF, such as "q8_0" or "Q4_K_M", in any case of letters.
        shard_size: most bytes of a file in Hugging Face's layout: a number, or a string such as "5GB", which None
            means.
        shards: the number of files instead; in Meta's layout, the ways that matrices are split.
        kv_heads: pool key and value heads, group by group, to this number.
        calibrate: a text; the quantiser weighs errors by how large the inputs of each matrix are on it.
        vocab_size: rows of embedding and head: cut, or filled up with their mean.
        pad_vocab_to: round the number of rows up to a multiple.
        verify: read all tensors back and compare; encode a sample text with both models and measure the change in
            negative log-likelihood.
        overwrite: replace what is at `target`.
        llama_version: the release of Meta's files ("1", "2", "code", "3", "3.1", "3.2", "3.3"), where they do not show
            it: it gives the context.
        instruct: give Llama 3's chat template to its tokenizer; Meta's files have none.
        threads: of the quantiser; None means one per physical core.
        on_plan: called with what will happen before anything is written.
        progress: called with the bytes written or read back since its last call.
        calibrating: called with the share of the calibration text that was read.

    Raises:
        ModelNotFoundError: there is no model at `source`.
        CheckpointError: the source is damaged, or cannot be expressed as asked.
        StorageError: there is no space or permission, or something at `target` already.
    """
    place = locate_model(source)
    options = Options(
        to, dtype, quantize, shard_size, shards, kv_heads, vocab_size, pad_vocab_to, instruct, threads
    )  # fmt: skip
    if calibrate is not None and (quantize is None or FORMATS[find_mix(quantize).main].values == 1):
        raise RequestError("calibrate weighs the errors of a quantiser; give a format of blocks with quantize too")
    checkpoint = open_checkpoint(place, llama_version)
    done = Converted(
        convert_checkpoint(
            checkpoint,
            target,
            options,
            calibration=None if calibrate is None else _calibration(checkpoint, Path(calibrate), threads, calibrating),
            verify=verify,
            overwrite=overwrite,
            running=lambda result: _running(checkpoint, result, calibrate is not None, verify),
            on_plan=on_plan,
            progress=progress,
        )
    )
    done.notes = [*done.conversion.plan.notes, *done.conversion.notes]
    if verify and checkpoint.head == "lm":
        release = done.conversion.plan.llama_version or (llama_version if options.layout == "meta" else None)
        try:
            _compare(checkpoint, open_checkpoint(target, release), threads, done)
        except PunaError as exc:
            done.notes.append(f"the change in negative log-likelihood was not measured: {exc}")
    return done


def _running(checkpoint: Checkpoint, result: int, calibrate: bool, verify: bool) -> int:
    """Bytes of memory in which models run: one at a time, the source for calibration, and both to verify."""
    if checkpoint.head != "lm":
        return 0
    from puna.native.tensors import packed_bytes, quantized_format

    tensors, taken = checkpoint.tensors, [0]
    if calibrate:
        taken.append(packed_bytes(tensors, quantized_format(_observed_in(checkpoint), tensors)))
    if verify:
        taken += [packed_bytes(tensors, None), result]
    logits = 2 * 4 * _WINDOW * checkpoint.config.vocab_size  # as they are computed, and a copy
    return max(taken) + logits * (calibrate or verify)


def _compare(before: Checkpoint, after: Checkpoint, threads: int | None, done: Converted) -> None:
    """Adds to `done` what the sample text shows: other token ids, another negative log-likelihood."""
    from puna.llm import LLM

    text = resources.files("puna").joinpath("sample.txt").read_text("utf-8")
    first = LLM(before, threads=threads, max_batch=1)
    whole = first.tokenizer.encode(text)
    ids = whole[: min(_WINDOW, first.config.context_length)]
    if len(ids) < 2:
        raise RequestError(f"a context of {first.config.context_length} tokens leaves nothing to predict")
    old = float(np.mean(first.nll(ids)))
    del first  # one model at a time
    second = LLM(after, threads=threads, max_batch=1)
    new = float(np.mean(second.nll(ids)))
    if second.tokenizer.encode(text) != whole:
        done.notes.append("the tokenizer of the result gives other ids for a sample text than the source's")
    if not math.isfinite(old + new):
        raise RequestError(f"it is {old} before and {new} after")
    done.nll = {"before": old, "tokens": float(len(ids) - 1), "after": new}
    blocks = [any(weight.format.values > 1 for weight in one.tensors.values()) for one in (before, after)]
    if blocks[0] != blocks[1]:
        done.notes.append(
            "the change in negative log-likelihood is also that of activations, which are rounded to 8 bits beside "
            "quantised weights"
        )


def _calibration(
    checkpoint: Checkpoint, text: Path, threads: int | None, calibrating: Callable[[float], None]
) -> Calibration:
    """Reading the text now, so that what is wrong with it is said at once, and the model later."""
    if checkpoint.head != "lm":
        raise RequestError(f"calibrating needs a language model; {checkpoint.path} has the head {checkpoint.head!r}")
    ids, whole = _read_tokens(checkpoint, text)
    if len(ids) < _LEAST_TOKENS:
        raise RequestError(f"{text} has {len(ids)} tokens; give a text of {_LEAST_TOKENS} or more to calibrate on")
    return Calibration(
        hashlib.sha256(np.asarray(ids, np.int64).tobytes()).hexdigest(),
        lambda: _importance(checkpoint, ids, threads, calibrating),
        () if whole else (f"calibration reads the first {len(ids)} tokens of {text}",),
    )


def _read_tokens(checkpoint: Checkpoint, text: Path) -> tuple[list[int], bool]:
    """The first tokens of a text, and whether they are all it has."""
    from puna.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer)
    try:
        with text.open(encoding="utf-8", newline="") as file:
            read = file.read(_CHARACTERS)
            while True:
                ids = tokenizer.encode(read)
                more = "" if len(ids) > _MOST_TOKENS else file.read(len(read))
                if not more:
                    return ids[:_MOST_TOKENS], len(ids) <= _MOST_TOKENS
                read += more
    except UnicodeDecodeError as exc:
        raise RequestError(f"{text} is not UTF-8 text ({exc}); convert it first") from exc
    except OSError as exc:
        raise RequestError(f"{text} cannot be read: {exc.strerror}") from exc


def _observed_in(checkpoint: Checkpoint) -> str | None:
    """The format to observe a model in: eight bits change what is measured by a fraction of a percent, and are fast."""
    plain = all(weight.format.values == 1 and weight.shape[-1] % 32 == 0 for weight in checkpoint.tensors.values())
    return "q8_0" if plain else None


def _importance(
    checkpoint: Checkpoint, ids: list[int], threads: int | None, calibrating: Callable[[float], None]
) -> Importance:
    """The mean square of every matrix's inputs on a text, read in windows without what stands before them."""
    from puna.native import NativeBackend

    window = min(_WINDOW, checkpoint.config.context_length)
    starts = range(0, len(ids), window)
    backend = NativeBackend(checkpoint.config, checkpoint.tensors, threads, slots=1, quantize=_observed_in(checkpoint))
    with backend.observing() as noted:
        for number, start in enumerate(starts):
            calibrating(number / len(starts))
            tokens = np.asarray(ids[start : start + window], np.int64)
            backend.forward([Chunk(0, tokens, 0, len(tokens))])
            backend.free(0)
        squares = noted()
    return {name: _weights(found) for name, found in squares.items()}


def _weights(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Importances with a mean of 1; what was never seen on this text may still matter a little."""
    mean = float(squares.mean()) or 1.0
    return (squares / mean + _UNSEEN).astype(np.float32)
