"""Loads the shared library that lies beside this package, and reads what the processor can do."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from puna.errors import BackendError

ABI_VERSION = 1
"""PUNA_ABI_VERSION in csrc/include/puna.h."""

_FEATURES = ("avx2", "fma", "f16c", "avx512", "avx512_vnni", "avx512_bf16", "neon", "dotprod")
"""Names of the PUNA_CPU_* bits, lowest first."""

_REMEDY = "reinstall puna with: pip install --force-reinstall --no-deps puna"


@dataclass(frozen=True)
class Machine:
    """What this process may use.

    Attributes:
        features: instruction sets the processor has and the system supports, by name.
        physical_cores: the default number of threads.
        logical_cores: processors of the affinity mask, within the control group's quota.
    """

    features: tuple[str, ...]
    physical_cores: int
    logical_cores: int


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads the native library once.

    Raises:
        BackendError: when it is missing, cannot be loaded, or belongs to another version of puna.
    """
    name = "libpuna.dylib" if sys.platform == "darwin" else "libpuna.so"
    path = Path(str(resources.files("puna.native").joinpath(name)))
    try:
        library = ctypes.CDLL(str(path))
    except OSError as exc:
        raise BackendError(f"the native library cannot be loaded ({exc}); {_REMEDY}") from exc
    library.puna_abi_version.restype = ctypes.c_uint32
    library.puna_abi_version.argtypes = []
    version = library.puna_abi_version()
    if version != ABI_VERSION:
        raise BackendError(f"{path} has ABI version {version}; this puna needs {ABI_VERSION}; {_REMEDY}")
    library.puna_cpu_features.restype = ctypes.c_uint32
    library.puna_cpu_features.argtypes = []
    for function in (library.puna_physical_cores, library.puna_logical_cores):
        function.restype = ctypes.c_int32
        function.argtypes = []
    return library


@functools.cache
def machine() -> Machine:
    """Reads the processor's features and the cores this process may use."""
    library = load_library()
    bits = library.puna_cpu_features()
    features = tuple(name for bit, name in enumerate(_FEATURES) if bits >> bit & 1)
    return Machine(features, library.puna_physical_cores(), library.puna_logical_cores())
