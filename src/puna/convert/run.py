"""`puna.convert`: writes any LLaMA checkpoint in any layout. The steps: open, edit, plan, write, verify, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from puna.checkpoint import Checkpoint, open_checkpoint
from puna.convert.calibration import CalibrationText, Importance, measure_importance, read_text
from puna.convert.destination import (
    check_destination,
    describe_replaced,
    files_record,
    locate_source,
    model_destination,
    model_record,
)
from puna.convert.edit import edit_checkpoint
from puna.convert.error_report import relative_errors
from puna.convert.mixes import check_calibration
from puna.convert.nll import compare_nll
from puna.convert.options import Layout, Options
from puna.convert.plan import Plan, check_space, make_plan
from puna.convert.prefetch import prefetched
from puna.convert.target import Target
from puna.convert.to_gguf import gguf_target
from puna.convert.to_hf import hf_target
from puna.convert.to_meta import meta_target
from puna.convert.tokenizer_files import check_instruct, tokenizer_files, write_hf_tokenizer, write_meta_tokenizer
from puna.convert.verification import verify_tensors
from puna.errors import CheckpointError, TokenizerError, show_bytes
from puna.files import folder_path, storage_errors
from puna.files.resumable import publish, resumable_staging
from puna.formats.new_tensor import Buffer, NewTensor

Progress = Callable[[int], None]


@dataclass
class Conversion:
    """The written files and the rounding errors of their tensors.

    Attributes:
        errors: for each kind of tensor whose values changed, the RMS of the change divided by the RMS of the values, on
            a sample of rows.
        bytes: size of the written files, with their headers.
        verified: number of tensors that were read back and compared; None without `verify`.
    """

    plan: Plan
    seconds: float = 0.0
    bytes: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    verified: int | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)


@dataclass
class Converted:
    """The result of `convert`.

    Attributes:
        conversion: the written files and the rounding errors of their tensors.
        nll: with `verify`, the mean negative log-likelihood in nats per token of a sample text, "before" and "after",
            and the number of "tokens"; empty if it was not measured.
        notes: notes for the user.
    """

    conversion: Conversion
    nll: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return self.conversion.to_dict() | {"nll": self.nll, "notes": self.notes}

    def __str__(self) -> str:
        """Returns the destination, its size, the time, and the result of the verification."""
        conversion = self.conversion
        parts = [f"{conversion.plan.target}: {show_bytes(conversion.bytes)} in {conversion.seconds:.1f} s"]
        if conversion.verified is not None:
            parts.append(f"{conversion.verified} tensors read back as intended")
        if self.nll:
            before, after = self.nll["before"], self.nll["after"]
            parts.append(f"NLL {before:.4f} -> {after:.4f} nats per token on {self.nll['tokens']:.0f} tokens")
        return "; ".join(parts)


@dataclass(frozen=True)
class Callbacks:
    """Functions that a conversion calls; `puna.convert` documents them."""

    on_plan: Callable[[Plan], None] = lambda plan: None
    progress: Progress = lambda count: None
    calibrating: Callable[[float], None] = lambda share: None
    on_step: Callable[[str], None] = lambda step: None


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
    progress: Progress = lambda count: None,
    calibrating: Callable[[float], None] = lambda share: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Converted:
    """Writes a model in another layout or type. `target` appears when it is complete; an interrupted run is resumed.

    Args:
        source: a folder in Hugging Face's or Meta's layout, or a GGUF file, detected from the content; None means the
            default model.
        target: a new folder, or for GGUF a new file.
        to: "hf", "meta" or "gguf"; None means gguf with `quantize` or if `target` ends with .gguf, else hf.
        dtype: "float32", "float16" or "bfloat16"; None keeps the source's types, except that "hf" and "meta" turn
            quantised weights into float32, which holds their values exactly.
        quantize: a format or mix of GGUF, such as "q8_0" or "Q4_K_M", in upper or lower case.
        shard_size: maximum bytes per file in Hugging Face's layout: a number, or a string such as "5GB", the default.
        shards: number of files, instead of `shard_size`; in Meta's layout, each file has one slice of every matrix.
        kv_heads: average groups of key and value heads, so that this number of heads remains.
        calibrate: path of a text; the quantiser weights errors by the mean square of each matrix's inputs for the text.
        vocab_size: new number of rows of the embedding and the head: drops rows, or appends copies of the mean row.
        pad_vocab_to: round the number of rows up to a multiple of this number.
        verify: read all tensors back and compare them; encode a sample text with both models and measure the change in
            negative log-likelihood.
        overwrite: replace the file or folder at `target`.
        llama_version: the release of a source in Meta's layout ("1", "2", "code", "3", "3.1", "3.2", "3.3"), which
            determines the context length; needed if the files do not show their release.
        instruct: add Llama 3's chat template to the tokenizer; Meta's files have none.
        threads: threads of the quantiser; None means one per physical core.
        on_plan: called with the plan before anything is written.
        progress: called with the number of bytes written (with `verify`, also read back) since its last call.
        calibrating: called with the fraction of the calibration text that was read.
        on_step: called with the name of each step after the plan, when the step begins.

    Raises:
        ModelNotFoundError: there is no model at `source`.
        CheckpointError: the source is damaged, or the result cannot be expressed in the layout.
        StorageError: space or a permission is missing, or `target` exists already.
    """
    path = locate_source(source, target, overwrite)
    options = Options(
        to or ("gguf" if folder_path(target).suffix == ".gguf" else None),
        dtype, quantize, shard_size, shards, kv_heads, vocab_size, pad_vocab_to, instruct, threads
    )  # fmt: skip
    if calibrate is not None:
        check_calibration(quantize)
    checkpoint = open_checkpoint(path, llama_version)
    text = None if calibrate is None else read_text(checkpoint, Path(calibrate))
    callbacks = Callbacks(on_plan, progress, calibrating, on_step)
    return write_model(checkpoint, target, options, callbacks, text, llama_version, verify=verify, overwrite=overwrite)


def write_model(
    checkpoint: Checkpoint,
    target: str | Path,
    options: Options,
    callbacks: Callbacks,
    text: CalibrationText | None = None,
    llama_version: str | None = None,
    *,
    verify: bool,
    overwrite: bool,
    original: Checkpoint | None = None,
    sample: str | None = None,
) -> Converted:
    """Writes an open model; `puna.convert` documents the steps.

    Args:
        text: the calibration text; None without calibration.
        original: the model that the sample text compares with the result; None means `checkpoint`.
        sample: the sample text; None means the one of the package.
    """
    options.check()
    destination = model_destination(target, options.layout, overwrite, checkpoint)
    edited = edit_checkpoint(checkpoint, options)
    output = _build_target(edited, destination, options, None if text is None else {})
    started = time.perf_counter()
    with resumable_staging(destination, model_record(checkpoint, options, text)) as folder:
        unfinished = {file.name for file in output.files if not (folder / file.name).exists()}
        plan = make_plan(checkpoint, edited, destination, options, output, unfinished, text, verify)
        plan = replace(plan, notes=[*plan.notes, *describe_replaced(destination)])
        check_space(plan, destination, edited.config.vocab_size)
        callbacks.on_plan(plan)
        if text is not None:
            callbacks.on_step("Reading the calibration text")
            importance = measure_importance(checkpoint, text, options.threads, callbacks.calibrating)
            output = _build_target(edited, destination, options, importance)
        callbacks.on_step("Writing")
        _write(output, unfinished, folder, callbacks.progress)
        with storage_errors(destination):
            conversion = Conversion(plan, notes=output.finish(folder))
        file_name = destination.name if options.layout == "gguf" else None
        if verify:
            callbacks.on_step("Reading back")
            conversion.verified = _verify(output, folder, file_name, callbacks.progress)
        publish(folder, destination, file_name, overwrite)
    written = destination.rglob("*") if destination.is_dir() else [destination]
    conversion.bytes = sum(path.stat().st_size for path in written if path.is_file())
    callbacks.on_step("Measuring rounding errors")
    conversion.errors = relative_errors(checkpoint.tensors, output.tensors)
    converted = Converted(conversion, notes=[*plan.notes, *conversion.notes])
    before = original or checkpoint
    if verify and before.head == edited.head == "lm":
        release = plan.llama_version or (llama_version if options.layout == "meta" else None)
        callbacks.on_step("Running both models on a sample text")
        converted.nll, notes = compare_nll(before, destination, release, options.threads, sample)
        converted.notes += notes
    conversion.seconds = time.perf_counter() - started
    return converted


def convert_tokenizer(
    source: str | Path | None,
    target: str | Path,
    to: Layout | None = None,
    *,
    instruct: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Writes only the tokenizer of `source` into a new folder, in the layout `to`; returns notes for the user.

    A `source` of None means the default model.

    Raises:
        CheckpointError: the layout is GGUF, whose tokenizer is part of the model's file.
        StorageError: as for `convert`.
        TokenizerError: there is no tokenizer at `source`.
    """
    layout = Options(to=to).layout
    if layout == "gguf":
        raise CheckpointError(
            "the tokenizer is part of a GGUF file; convert the model, or choose the layout hf or meta (--to hf)"
        )
    source, destination = locate_source(source, target, overwrite, "tokenizer"), folder_path(target)
    if instruct:
        check_instruct(source, layout)
    check_destination(destination, overwrite, (source,))
    record = {"to": layout, "instruct": instruct} | files_record(tokenizer_files(source))
    with resumable_staging(destination, record) as folder:
        with storage_errors(destination):
            if layout == "meta":
                notes = write_meta_tokenizer(source, folder)
            else:
                notes = write_hf_tokenizer(source, folder, instruct)
        if not any(path.name.startswith("tokenizer") for path in folder.iterdir()):
            raise TokenizerError(f"{source}: {'; '.join(notes)}")
        publish(folder, destination, None, overwrite)
    return notes


def _build_target(edited: Checkpoint, destination: Path, options: Options, importance: Importance | None) -> Target:
    if options.layout == "gguf":
        return gguf_target(edited, destination.name, options, importance)
    return meta_target(edited, options) if options.layout == "meta" else hf_target(edited, options)


def _write(target: Target, unfinished: Container[str], folder: Path, progress: Progress) -> None:
    """Writes the large files that an interrupted run has not written."""
    for file in target.files:
        if file.name in unfinished:
            with prefetched(file.tensors) as tensors:
                file.write(folder / file.name, [_report_pieces(tensor, progress) for tensor in tensors])
        else:
            progress(file.bytes)


def _report_pieces(tensor: NewTensor, progress: Progress) -> NewTensor:
    """Returns a tensor whose bytes are reported to `progress` when they have been written."""

    def data() -> Iterator[Buffer]:
        for piece in tensor.pieces():
            yield piece
            progress(piece.nbytes)

    return replace(tensor, data=data)


def _verify(target: Target, folder: Path, file_name: str | None, progress: Progress) -> int:
    try:
        return verify_tensors(folder if file_name is None else folder / file_name, target, progress)
    except CheckpointError:
        for file in target.files:  # a later run must not reuse these files
            (folder / file.name).unlink(missing_ok=True)
        raise
