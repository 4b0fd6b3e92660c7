"""`open_backend`: chooses the backend that runs a checkpoint, and loads the checkpoint into it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from puna.backend import Backend
from puna.checkpoint.names import HEADS
from puna.config import LlamaConfig
from puna.errors import BackendError, MissingExtraError, RequestError, puna_error, show
from puna.native.library import check_threads

if TYPE_CHECKING:
    from puna.checkpoint import Checkpoint


def open_backend(
    checkpoint: Checkpoint,
    name: str,
    threads: int | None,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
    max_batch: int,
    keep_quantized: bool = False,
    tensor_parallel: int = 1,
) -> Backend:
    """Returns a backend with the checkpoint's weights. The arguments are those of `LLM`.

    Without a language-model head, the backend computes hidden states, but no meaningful logits.

    Raises:
        BackendError: an argument is invalid, arguments contradict each other, or the backend cannot run the model.
        MissingExtraError: PyTorch is needed but not installed.
    """
    _check_arguments(name, threads, max_batch, tensor_parallel)
    _check_types(device, dtype)
    checkpoint = _with_tied_head(checkpoint)
    needs_torch = tensor_parallel > 1 or device is not None or str(dtype) not in ("None", "float32", "torch.float32")
    if keep_quantized and dtype is not None and not needs_torch:  # the native backend would load float32 weights
        if name == "native":
            raise BackendError(
                f"keep_quantized is True, but with dtype {dtype!r} backend 'native' dequantises the weights; to keep "
                "them packed, leave out dtype or use backend='torch'"
            )
        needs_torch = True
    if name == "native" and tensor_parallel > 1:
        raise BackendError("--tp shares a model of PyTorch, but the backend is 'native'; omit one of them")
    if name == "native" and needs_torch:
        raise BackendError(
            f"device is {device!r} and dtype is {dtype!r}, but backend 'native' computes in float32 on the CPU; leave "
            "out device, and dtype unless it is 'float32'"
        )
    if name == "native" or (name == "auto" and not needs_torch and _runs_natively(checkpoint.config)):
        from puna.native import NativeBackend

        return NativeBackend(
            checkpoint.config, checkpoint.tensors, threads, max_batch, quantize=quantize, float32=dtype is not None
        )
    if quantize is not None:
        raise BackendError(
            f"quantize is {show(quantize)}, which only the native backend supports; either leave out "
            "quantize, or leave out all of backend, device and dtype"
        )
    try:
        from puna.model import TorchBackend
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise MissingExtraError(
            "this model, device or dtype needs PyTorch; install it with: pip install 'puna[torch]'"
        ) from exc
    if tensor_parallel == 1:
        return TorchBackend.from_pretrained(checkpoint, threads, device, dtype, max_batch, keep_quantized)
    from puna.model.paged.parallel import ParallelBackend, join

    join(tensor_parallel)
    whole = TorchBackend.from_pretrained(checkpoint, threads, device, dtype, 1, keep_quantized)
    return ParallelBackend(whole, max_batch)


def follow(path: Path, size: int, threads: int | None, dtype: str | None, max_batch: int) -> bool:
    """Repeats the calls of the first process of `size` until it closes its model; returns False in the first process.

    The arguments are those of `LLM` in the first process.
    """
    from puna.checkpoint import open_checkpoint
    from puna.model.paged.parallel import ParallelBackend, join

    if join(size) == 0:
        return False
    backend = open_backend(open_checkpoint(path), "torch", threads, None, dtype, None, max_batch, tensor_parallel=size)
    assert isinstance(backend, ParallelBackend)
    backend.follow()
    return True


def check_language_model(head: str) -> None:
    """Raises RequestError if a model with this head is not a language model."""
    if head != "lm":
        methods = "embed or classify" if head == "classification" else "embed"
        raise RequestError(
            f"the model has no language-model head (its head: {head}), so that it can neither generate text nor "
            f"compute logits; use {methods}, or load a language model"
        )


def _with_tied_head(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with a language-model head.

    If it has none, the embedding serves as the head; a head of another kind is removed.
    """
    if checkpoint.head == "lm":
        return checkpoint
    config = LlamaConfig.from_dict(checkpoint.config.to_dict(), tie_word_embeddings=True)
    tensors = {name: weight for name, weight in checkpoint.tensors.items() if name not in HEADS[checkpoint.head]}
    return replace(checkpoint, config=config, tensors=tensors, head="lm")


def _check_arguments(name: object, threads: object, max_batch: object, processes: object) -> None:
    if name not in ("auto", "torch", "native"):
        raise BackendError(f"backend is {show(name)}; it must be 'auto', 'torch' or 'native'")
    check_threads(threads)
    for argument, value, most in (("max_batch", max_batch, 1024), ("tensor_parallel", processes, 64)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise BackendError(f"{argument} is {show(value)}; it must be a whole number from 1 to {most}")


def _check_types(device: object, dtype: object) -> None:
    if isinstance(device, int | float | bytes):
        raise BackendError(f"device is {show(device)}; it must be the name of a PyTorch device, such as 'cuda'")
    names = ("float32", "float16", "bfloat16", "float64")
    if dtype is not None and (isinstance(dtype, int) or str(dtype).removeprefix("torch.") not in names):
        raise BackendError(f"dtype is {show(dtype)}; it must be one of {', '.join(names)}, or None")


def _runs_natively(config: LlamaConfig) -> bool:
    """Returns whether the native backend supports the model; if not, warns with the reason."""
    from puna.native import check_supported

    try:
        check_supported(config)
    except BackendError as exc:
        warnings.warn(
            f"{exc} (puna chose this backend automatically; pass backend='torch' to avoid this warning)", stacklevel=5
        )
        return False
    return True


@contextmanager
def memory_errors() -> Iterator[None]:
    """Context manager: turns a MemoryError into a BackendError with the amount."""
    try:
        yield
    except MemoryError as exc:
        raise puna_error(exc) from exc
