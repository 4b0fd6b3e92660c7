"""Loads the shared library in this package's folder, and declares its structs and functions (csrc/include/puna.h)."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from puna.errors import BackendError, show

ABI_VERSION = 7
"""PUNA_ABI_VERSION in csrc/include/puna.h."""

MAX_THREADS = 256
"""PUNA_MAX_THREADS in csrc/include/puna.h."""

KERNELS_VARIABLE = "PUNA_KERNELS"
"""Environment variable that forces an instruction set by name, for tests."""

BF16_KERNELS = "avx512_bf16"
"""Name of the kernels that round activations to bf16 before they multiply them by bf16 weights or a bf16 cache."""

_FEATURES = ("avx2", "fma", "f16c", "avx512", "avx512_vnni", "avx512_bf16", "neon", "dotprod", "avx_vnni")
"""Names of the PUNA_CPU_* bits, lowest bit first."""

_REMEDY = "reinstall puna with: pip install --force-reinstall --no-deps puna"


class Shape(ctypes.Structure):
    """The C struct puna_shape."""

    _fields_ = (
        ("vocab_size", ctypes.c_int32),
        ("hidden_size", ctypes.c_int32),
        ("intermediate_size", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("rms_norm_eps", ctypes.c_float),
        ("cache", ctypes.c_int32),
        ("unrotated_keys", ctypes.c_int32),
    )


class NativeTensor(ctypes.Structure):
    """The C struct puna_tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("format", ctypes.c_int32),
        ("quantize", ctypes.c_int32),
    )


class NativeChunk(ctypes.Structure):
    """The C struct puna_chunk. Arrays are passed as bytes, since reading a NumPy array's address takes microseconds.

    Do not read these fields back: ctypes would stop at the first zero byte.
    """

    _fields_ = (
        ("tokens", ctypes.c_char_p),
        ("embeddings", ctypes.c_char_p),
        ("pages", ctypes.c_char_p),
        ("inv_freq", ctypes.c_char_p),
        ("rope_scale", ctypes.c_float),
        ("count", ctypes.c_int32),
        ("page_count", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("adapter", ctypes.c_int32),
    )


OUTPUTS = {"logits": 0, "hidden": 1}
"""The numbers PUNA_OUTPUT_*."""


class NativeLowRank(ctypes.Structure):
    """The C struct puna_low_rank."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("layer", ctypes.c_int32),
        ("rank", ctypes.c_int32),
    )


class NativeMachine(ctypes.Structure):
    """The C struct puna_machine."""

    _fields_ = (
        ("bytes_per_second", ctypes.c_double),
        ("integer_products_per_second", ctypes.c_double),
        ("float_products_per_second", ctypes.c_double),
        ("share_of_one_thread", ctypes.c_double),
    )


OK, FAILED, STOPPED = 0, 1, 2
"""The statuses PUNA_OK, PUNA_FAILED and PUNA_STOPPED."""

PHASES = ("embedding", "norm", "qkv", "rope", "attention", "o", "gate_up", "activation", "down", "head")
"""Names of the phases PUNA_PHASE_*, in order."""

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "puna_abi_version": (ctypes.c_uint32, ()),
    "puna_cpu_features": (ctypes.c_uint32, ()),
    "puna_physical_cores": (_INT, ()),
    "puna_logical_cores": (_INT, ()),
    "puna_error": (ctypes.c_char_p, ()),
    "puna_kernels": (ctypes.c_char_p, ()),
    "puna_model_new": (_POINTER, (_POINTER, _INT, ctypes.c_char_p)),
    "puna_model_free": (None, (_POINTER,)),
    "puna_model_load": (_INT, (_POINTER, _INT, _INT, _POINTER)),
    "puna_packed_bytes": (_LONG, (_INT, _LONG, _LONG)),
    "puna_model_read": (_INT, (_POINTER, _INT, _INT, _POINTER)),
    "puna_model_ready": (_INT, (_POINTER, _INT)),
    "puna_cache_bytes": (_LONG, (_POINTER,)),
    "puna_model_weight_bytes": (None, (_POINTER, _POINTER)),
    "puna_model_integers": (_INT, (_POINTER,)),
    "puna_forward": (_INT, (_POINTER, _POINTER, _INT, _INT, _POINTER, _POINTER)),
    "puna_adapter_load": (_INT, (_POINTER, _POINTER, _INT, _POINTER)),
    "puna_adapter_drop": (_INT, (_POINTER, _INT)),
    "puna_pages_read": (_INT, (_POINTER, ctypes.c_char_p, _INT, _POINTER)),
    "puna_pages_write": (_INT, (_POINTER, ctypes.c_char_p, _INT, _POINTER)),
    "puna_pages_fill": (_INT, (_POINTER, ctypes.c_char_p, _INT, _INT, _POINTER, _POINTER)),
    "puna_model_sample": (_INT, (_POINTER, _LONG, _POINTER, _INT)),
    "puna_sample": (_INT, (ctypes.c_char_p, _LONG, _POINTER, _INT)),
    "puna_quantize": (_INT, (ctypes.c_char_p, _INT, _POINTER, _INT, _LONG, _LONG, _INT, _POINTER, _POINTER)),
    "puna_measure": (_INT, (ctypes.c_char_p, _INT, _POINTER)),
    "puna_model_observe": (None, (_POINTER, _POINTER)),
    "puna_model_profile": (None, (_POINTER, _POINTER)),
}
"""Result and argument types of each function."""


@dataclass(frozen=True)
class Machine:
    """The processor's features, and the cores that this process may use.

    Attributes:
        features: names of the instruction sets that the processor and the operating system support.
        kernels: names of the kernel builds that this processor can run, best first.
        physical_cores: number of physical cores; the default number of threads.
        logical_cores: number of processors in the affinity mask, limited by the control group's quota.
    """

    features: tuple[str, ...]
    kernels: tuple[str, ...]
    physical_cores: int
    logical_cores: int


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads the native library; later calls return the same object.

    Raises:
        BackendError: if the library is missing, cannot be loaded, or belongs to another version of puna.
    """
    path = _library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as exc:
        raise BackendError(f"the native library cannot be loaded ({exc}); {_REMEDY}") from exc
    library.puna_abi_version.restype = ctypes.c_uint32
    version = library.puna_abi_version()
    if version != ABI_VERSION:
        raise BackendError(f"{path} has ABI version {version}; this puna needs {ABI_VERSION}; {_REMEDY}")
    for function, (result, arguments) in _FUNCTIONS.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library


@functools.cache
def library_digest() -> str:
    """Returns a digest of the native library's file and of the system's C library, whose `cos` and `sin` it calls."""
    digest = hashlib.blake2b(_library_path().read_bytes(), digest_size=32).hexdigest()
    return f"{digest} {' '.join(platform.libc_ver())} {platform.machine()}"


@functools.cache
def machine() -> Machine:
    """Returns the processor's features and the cores that this process may use."""
    library = load_library()
    bits = library.puna_cpu_features()
    features = tuple(name for bit, name in enumerate(_FEATURES) if bits >> bit & 1)
    kernels = tuple(library.puna_kernels().decode().split())
    return Machine(features, kernels, library.puna_physical_cores(), library.puna_logical_cores())


def _library_path() -> Path:
    name = "libpuna.dylib" if sys.platform == "darwin" else "libpuna.so"
    return Path(str(resources.files("puna.native").joinpath(name)))


def check_threads(threads: object) -> None:
    """Raises BackendError unless `threads` is None or a whole number from 1 to MAX_THREADS."""
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, int) or not 0 < threads <= MAX_THREADS
    ):
        raise BackendError(f"threads is {show(threads)}; it must be a whole number from 1 to {MAX_THREADS}")


def default_threads(threads: int | None) -> int:
    """Returns `threads`, or the number of physical cores if `threads` is None."""
    return machine().physical_cores if threads is None else threads


def chosen_kernels() -> str:
    """Returns the name of the kernels to use: the value of the variable PUNA_KERNELS, or else the best kernels.

    Raises:
        BackendError: if the environment variable names kernels that this machine cannot run.
    """
    available = machine().kernels
    name = os.environ.get(KERNELS_VARIABLE) or available[0]
    if name not in available:
        raise BackendError(f"{KERNELS_VARIABLE} is {name!r}; this machine can run {', '.join(available)}")
    return name


def float32_kernels() -> str:
    """Returns the kernels to use if activations must not be rounded to bf16."""
    name = chosen_kernels()
    return "avx512" if name == BF16_KERNELS else name
