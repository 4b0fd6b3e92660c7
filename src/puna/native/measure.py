"""What this machine can do, measured in about half a second: the limits that speeds are held against."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from puna.errors import BackendError
from puna.native.library import NativeMachine, chosen_kernels, default_threads, load_library

CORES_OK = 0.85
"""Least share of its lone speed that each of several threads keeps while every core is whole."""


@dataclass(frozen=True)
class MachineSpeed:
    """Measured speeds, all threads together.

    Attributes:
        dram_gb_s: memory read in sequence, in GB/s.
        int8_gops: 2 x multiply-accumulates of bytes per second / 1e9, by the best instructions of the kernels in use.
        bf16_gflops: 2 x multiply-accumulates of bf16, or of float32 where the processor has none of bf16, / 1e9.
        cores_ok: whether the threads run side by side at full speed; two virtual cores may share one physical core.
    """

    dram_gb_s: float
    int8_gops: float
    bf16_gflops: float
    cores_ok: bool


def measure_machine(threads: int | None = None) -> MachineSpeed:
    """Measures with `threads` threads; None means one per physical core."""
    library = load_library()
    found = NativeMachine()
    if library.puna_measure(chosen_kernels().encode(), default_threads(threads), ctypes.byref(found)):
        raise BackendError(f"the machine cannot be measured: {library.puna_error().decode()}")
    return MachineSpeed(
        found.bytes_per_second / 1e9,
        2 * found.integer_products_per_second / 1e9,
        2 * found.float_products_per_second / 1e9,
        found.share_of_one_thread >= CORES_OK,
    )
