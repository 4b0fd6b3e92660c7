"""Where a model goes, and in which type, by the names a caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from puna.errors import BackendError, RequestError

Place = torch.device | str | int
"""A device as PyTorch takes it; a number is an accelerator's."""


def open_device(name: Place, argument: str) -> torch.device:
    """The device `name`, tried out with one number.

    Args:
        name: as PyTorch spells it.
        argument: the name of the caller's argument, for the error.

    Raises:
        BackendError: PyTorch has no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise BackendError(
            f"{argument} is {name!r}, which PyTorch cannot use here ({reason}); leave it out for the CPU"
        ) from exc
    return device


def choose_device(device: Place | None, device_map: Place | Mapping[str, Place] | None) -> torch.device:
    """The one device that `device`, or Hugging Face's `device_map`, names; the CPU where neither does.

    Raises:
        RequestError: both are given, or the map spreads the model over several devices.
        BackendError: PyTorch has no such device here.
    """
    if device_map is None:
        return open_device("cpu" if device is None else device, "device")
    if device is not None:
        raise RequestError(f"device is {device!r} and device_map is {device_map!r}; keep one of them")
    place: Any = device_map
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        place = device_map[""]
    elif device_map == "auto":
        place = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(place, torch.device | str | int):
        raise RequestError(
            f"device_map is {device_map!r}; a model goes to one device: give its name, {{'': name}} or 'auto', and "
            "shard from outside (fully_shard)"
        )
    return open_device(place, "device_map")
