"""Converts the arguments `device` and `device_map` to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from puna.errors import BackendError, RequestError

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


def choose_device(device: DeviceLike | None, device_map: DeviceLike | Mapping[str, DeviceLike] | None) -> torch.device:
    """Returns the device named by `device` or by Hugging Face's `device_map`; the CPU if both are None.

    Raises:
        RequestError: if both are given, or the map distributes the model over several devices.
        BackendError: if PyTorch has no such device here.
    """
    if device_map is None:
        return open_device("cpu" if device is None else device, "device")
    if device is not None:
        raise RequestError(f"device is {device!r} and device_map is {device_map!r}; keep one of them")
    name: Any = device_map
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        name = device_map[""]
    elif device_map == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(name, torch.device | str | int):
        raise RequestError(
            f"device_map is {device_map!r}; it must name one device: name, {{'': name}} or 'auto'. To shard a model, "
            "apply fully_shard to it"
        )
    return open_device(name, "device_map")
