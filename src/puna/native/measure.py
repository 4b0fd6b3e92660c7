"""Measures this machine's memory and arithmetic speed, the limits that a model's speed is compared with."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from puna.errors import BackendError
from puna.native.library import NativeMachine, chosen_kernels, default_threads, load_library

CORES_OK = 0.85
"""Minimum for `cores_ok`: speed per thread when all threads run, as a fraction of the speed of one thread alone."""


@dataclass(frozen=True)
class MachineSpeed:
    """Measured speeds, all threads together.

    Attributes:
        dram_gb_s: bandwidth of sequential reads from memory, in GB/s.
        int8_gops: 8-bit multiply-accumulates per second x 2 / 1e9, with the best instructions of the chosen kernels.
        bf16_gflops: the same for bf16, or for float32 if the processor has no bf16 products.
        cores_ok: whether each thread ran at full speed while all threads ran. False if other processes use the CPU, or
            if two virtual cores share a physical one.
    """

    dram_gb_s: float
    int8_gops: float
    bf16_gflops: float
    cores_ok: bool


def measure_machine(threads: int | None = None) -> MachineSpeed:
    """Measures the speeds of `threads` threads (None: one per physical core); takes about half a second."""
    library = load_library()
    speed = NativeMachine()
    if library.puna_measure(chosen_kernels().encode(), default_threads(threads), ctypes.byref(speed)):
        raise BackendError(f"the machine cannot be measured: {library.puna_error().decode()}")
    return MachineSpeed(
        speed.bytes_per_second / 1e9,
        2 * speed.integer_products_per_second / 1e9,
        2 * speed.float_products_per_second / 1e9,
        speed.share_of_one_thread >= CORES_OK,
    )
