"""Kernels of training in bfloat16: norms, activations, cross-entropy and decoders for AVX2; attention for AVX-512 BF16.

Arguments are contiguous CPU tensors of PyTorch, of which only the addresses are read, without importing PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from puna.errors import BackendError
from puna.native.library import BF16_KERNELS, chosen_kernels, load_library

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Array(Protocol):
    """A tensor of PyTorch."""

    def data_ptr(self) -> int:
        """Returns the address of its first value."""
        ...


class NativeAttention(ctypes.Structure):
    """The C struct puna_attention."""

    _fields_ = (
        ("qkv", _POINTER),
        ("out", _POINTER),
        ("lse", _POINTER),
        ("grad", _POINTER),
        ("grad_qkv", _POINTER),
        ("lengths", _POINTER),
        ("documents", _INT),
        ("heads", _INT),
        ("kv_heads", _INT),
        ("width", _INT),
        ("threads", _INT),
    )


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "puna_train_attention": (_POINTER,),
    "puna_train_attention_backward": (_POINTER,),
    "puna_train_norm": (_INT, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _POINTER),
    "puna_train_norm_backward": (_INT, _POINTER, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _POINTER, _POINTER),
    "puna_train_gated": (_INT, _POINTER, _LONG, _LONG, _POINTER),
    "puna_train_gated_backward": (_INT, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER),
    "puna_train_rotate": (_INT, _POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _POINTER, _FLOAT),
    "puna_train_cross_entropy": (_INT, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _INT, _POINTER),
    "puna_train_decode": (_INT, _INT, _POINTER, _LONG, _LONG, _POINTER, _POINTER),
    "puna_train_squares": (_INT, _POINTER, _POINTER, _INT, _POINTER),
}

_X86_KERNELS = frozenset({"avx2", "avx_vnni", "avx512", BF16_KERNELS})

DECODED = frozenset({"q4_0", "q4_1", "q8_0", "q4_K", "q5_K", "q6_K"})
"""The block formats that puna_train_decode decodes."""


def limit_compiled_products() -> None:
    """Limits the products of different shapes whose code oneDNN keeps, before the first product of this process.

    The default is 1024; documents of many lengths then need up to a gigabyte.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def is_available() -> bool:
    """Returns whether this processor and the chosen kernels have these functions, perhaps without attention."""
    try:
        return chosen_kernels() in _X86_KERNELS and hasattr(load_library(), "puna_train_bf16")
    except BackendError:
        return False


def has_attention() -> bool:
    """Returns whether attention is available as well."""
    return is_available() and chosen_kernels() == BF16_KERNELS


@functools.cache
def _library() -> ctypes.CDLL:
    """Returns the native library, which uses the threads of PyTorch's OpenMP library if that is GNU's."""
    library = load_library()
    for name, arguments in _FUNCTIONS.items():
        getattr(library, name).argtypes, getattr(library, name).restype = arguments, _INT
    library.puna_train_openmp.argtypes, library.puna_train_openmp.restype = (_POINTER,), None
    library.puna_train_bf16.argtypes, library.puna_train_bf16.restype = (_INT,), None
    library.puna_train_bf16(int(has_attention()))
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
    if len(paths) == 1:
        parallel = ctypes.CDLL(paths.pop()).GOMP_parallel
        library.puna_train_openmp(ctypes.cast(parallel, _POINTER))
    return library


def call(function: str, *arguments: Array | float | None) -> None:
    """Calls puna_train_FUNCTION with addresses and numbers.

    Raises:
        BackendError: if the system refused threads or memory.
    """
    name = f"puna_train_{function}"
    if getattr(_library(), name)(
        *(value if value is None or isinstance(value, int | float) else value.data_ptr() for value in arguments)
    ):
        raise BackendError(f"{name} failed: the system refused threads or memory; use fewer threads or a smaller batch")


def attention(
    qkv: Array, out: Array, lse: Array, lengths: Array, documents: int, shape: tuple[int, int, int], threads: int,
    grad: Array | None = None, grad_qkv: Array | None = None,
) -> None:  # fmt: skip
    """Computes causal attention within documents, or its gradient if `grad` is set.

    Args:
        qkv: (T, (H + 2 K) E) rotated queries, rotated keys, and values.
        out: (T, H E) the attention: the result, or an argument of the backward pass.
        lse: float32, (H T): the result, or an argument of the backward pass.
        lengths: int32, (documents,).
        shape: H, K and E, which is a multiple of 16.
        grad: (T, H E) the gradient of `out`.
        grad_qkv: the result of the backward pass, in the shape of `qkv`.
    """
    job = NativeAttention(
        qkv.data_ptr(), out.data_ptr(), lse.data_ptr(),
        None if grad is None else grad.data_ptr(), None if grad_qkv is None else grad_qkv.data_ptr(),
        lengths.data_ptr(), documents, *shape, threads,
    )  # fmt: skip
    name = "puna_train_attention" if grad is None else "puna_train_attention_backward"
    if getattr(_library(), name)(ctypes.byref(job)):
        raise BackendError(f"{name} failed: the system refused threads or memory; use fewer threads or a smaller batch")


def sum_of_squares(tensors: Sequence[tuple[Array, int]], threads: int) -> float:
    """Returns the sum of squares of contiguous float32 tensors, given with their sizes, in float64.

    Sums of 16,384 values are in float32; the result does not depend on the number of threads.
    """
    addresses = (_POINTER * len(tensors))(*(tensor.data_ptr() for tensor, _ in tensors))
    sizes = (_LONG * len(tensors))(*(size for _, size in tensors))
    result = ctypes.c_double()
    if _library().puna_train_squares(threads, addresses, sizes, len(tensors), ctypes.byref(result)):
        raise BackendError("puna_train_squares failed: the system refused threads or memory; use fewer threads")
    return result.value
