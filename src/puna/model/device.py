"""Converts names of devices to devices that work."""

from __future__ import annotations

import torch

from puna.errors import BackendError

DeviceLike = torch.device | str | int
"""A device in any form that PyTorch accepts; a number is the index of an accelerator."""


def open_device(name: DeviceLike, argument: str) -> torch.device:
    """Returns the device, after allocating a tensor there to check that it works.

    Args:
        name: PyTorch's name of the device.
        argument: the name of the caller's argument, for the error.

    Raises:
        BackendError: if PyTorch has no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise BackendError(
            f"{argument} is {name!r}, which PyTorch cannot use here ({reason}); omit {argument} for the CPU"
        ) from exc
    return device
