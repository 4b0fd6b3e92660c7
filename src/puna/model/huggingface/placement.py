"""`device_map`: distributes the modules of a model over GPUs, the CPU and the disk. Several devices need accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from puna.errors import BackendError, MissingExtraError, RequestError, show
from puna.files import make_folder

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
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise BackendError(
            f"{argument} is {name!r}, which PyTorch cannot use here ({reason}); omit {argument} for the CPU"
        ) from exc
    return device


DeviceMap = DeviceLike | Mapping[str, DeviceLike]

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass
class Placement:
    """The device of each module.

    Attributes:
        devices: names of modules and their devices; "" is the model. The longest matching name applies. "disk" means
            that a module's weights stay in files of `offload_folder`.
        hf_device_map: the map that the model's attribute of this name shows; None if the user gave no map.
        offload_folder: the folder of weights that are kept on the disk.
        offload_buffers: whether buffers are moved together with offloaded weights.
    """

    devices: dict[str, torch.device | str]
    hf_device_map: dict[str, Any] | None = None
    offload_folder: Path | None = None
    offload_buffers: bool = False
    _index: dict[str, Any] = field(default_factory=dict)

    def device_of(self, name: str) -> torch.device | str:
        """Returns the device of a parameter or module."""
        while name not in self.devices:
            if not name:
                raise RequestError("the device_map provided does not give any device for the model; add the key ''")
            name = name.rpartition(".")[0]
        return self.devices[name]

    def put(self, name: str, tensor: Tensor) -> Tensor:
        """Returns the tensor on its device; a tensor for the disk is written to a file, and returned without values."""
        device = self.device_of(name)
        if device != "disk":
            return tensor.to(device)
        from accelerate.utils import offload_weight

        assert self.offload_folder is not None, "read_device_map requires a folder"
        make_folder(self.offload_folder)
        self._index = offload_weight(tensor, name, str(self.offload_folder), index=self._index)
        return torch.empty_like(tensor, device="meta")

    def finish(self, model: Any) -> None:
        """Moves the buffers, and adds hooks that move inputs between the devices if there are several."""
        if self.hf_device_map is not None:
            model.hf_device_map = dict(self.hf_device_map)
        if len(set(map(str, self.devices.values()))) == 1 and "disk" not in self.devices.values():
            model.to(next(iter(self.devices.values())))  # buffers, such as the rotary frequencies
            return
        from accelerate import dispatch_model
        from accelerate.utils import save_offload_index

        if self._index:
            save_offload_index(self._index, str(self.offload_folder))
        names = {name: str(device) for name, device in self.devices.items()}
        on_gpu = [device for device in names.values() if device not in ("cpu", "disk")]
        dispatch_model(
            model,
            device_map=names,
            main_device=on_gpu[0] if on_gpu else "cpu",
            offload_dir=self.offload_folder,
            offload_buffers=self.offload_buffers,
            skip_keys=model._skip_keys_device_placement,
            force_hooks=True,
        )


def choose_placement(
    device: DeviceLike | None,
    device_map: DeviceMap | None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    offload_buffers: bool = False,
) -> Placement | dict[str, Any]:
    """Returns the placement that the arguments of `from_pretrained` describe.

    For an automatic map it returns the arguments of `infer_placement`, which needs the model.

    Raises:
        RequestError: if `device` and `device_map` are both given, or the map is invalid.
        BackendError: if PyTorch has no such device here.
        MissingExtraError: if several devices are used and accelerate is not installed.
    """
    if device_map is None:
        return Placement({"": open_device("cpu" if device is None else device, "device")})
    if device is not None:
        raise RequestError(f"device is {device!r} and device_map is {device_map!r}; keep one of them")
    folder = None if offload_folder is None else Path(offload_folder)
    if isinstance(device_map, str) and device_map in _AUTOMATIC:
        if (
            max_memory is None
            and torch.cuda.device_count() < 2
            and not (torch.cuda.is_available() and has_accelerate())
        ):
            single = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return Placement({"": single}, {"": single})
        return {"strategy": device_map, "max_memory": max_memory, "folder": folder, "offload_buffers": offload_buffers}
    if not isinstance(device_map, Mapping):
        name: Any = device_map
        if not isinstance(name, torch.device | str | int) or isinstance(name, bool):
            raise RequestError(
                f"device_map is {show(device_map)}; it must be the name of a device, {', '.join(_AUTOMATIC)}, or a "
                "mapping from names of modules to devices"
            )
        return Placement({"": open_device(name, "device_map")}, {"": torch.device(name)})
    return _read_map(device_map, folder, offload_buffers)


def _read_map(device_map: Mapping[str, DeviceLike], folder: Path | None, offload_buffers: bool) -> Placement:
    if not device_map or not all(isinstance(name, str) for name in device_map):
        raise RequestError(f"device_map is {show(device_map)}; it must map names of modules to devices: {{'': 'cpu'}}")
    devices = {
        name: "disk" if device == "disk" else open_device(device, "device_map") for name, device in device_map.items()
    }
    if len(set(map(str, devices.values()))) > 1 or "disk" in devices.values():
        require_accelerate()
    if "disk" in devices.values() and folder is None:
        raise RequestError(
            "device_map puts modules on the disk, but offload_folder is not given; pass the folder for their weights"
        )
    return Placement(devices, dict(device_map), folder, offload_buffers)


def infer_placement(model: nn.Module, dtype: torch.dtype, arguments: Mapping[str, Any]) -> Placement:
    """Returns the placement for an automatic map, which depends on the memory of the devices.

    Args:
        model: a model on the meta device, which has no weights yet.
        dtype: the type that the weights will have.
        arguments: as `choose_placement` returned them.

    Raises:
        RequestError: if `max_memory` does not map devices to sizes.
    """
    require_accelerate()
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    model.tie_weights()  # type: ignore[operator]
    given = arguments["max_memory"]
    limits = _read_limits(given)  # checks them for every strategy
    options: dict[str, Any] = {"dtype": dtype, "no_split_module_classes": model._no_split_modules}
    if arguments["strategy"] != "sequential":
        low = arguments["strategy"] == "balanced_low_0"
        # accelerate keeps a tenth of a single GPU free only if it chooses the limits itself.
        limits = get_balanced_memory(model, max_memory=None if given is None else limits, low_zero=low, **options)
    inferred = infer_auto_device_map(model, max_memory=limits, **options)
    return _read_map(inferred, arguments["folder"], arguments["offload_buffers"])


def _read_limits(max_memory: Any) -> dict[int | str, int]:
    """Returns the memory to use on each device, in bytes: by default all that is free."""
    from accelerate.utils import get_max_memory

    try:
        limits: dict[int | str, int] = get_max_memory(max_memory)
        if any(size < 0 for size in limits.values()):
            raise ValueError("a size is negative")
    except (TypeError, ValueError, AttributeError) as exc:
        raise RequestError(
            f"max_memory is {show(max_memory)}, which accelerate cannot use ({exc}); it must map devices (numbers of "
            "GPUs, 'cpu', 'disk') to bytes or sizes such as '10GiB'"
        ) from exc
    return limits


def check_names(model: nn.Module, placement: Placement) -> None:
    """Checks that a map names modules of the model and covers it.

    Raises:
        RequestError: a name is not that of a module or parameter, a parameter has no device, or two layers that share a
            matrix are on different devices.
    """
    names = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    if unknown := sorted(placement.devices.keys() - names):
        raise RequestError(
            f"device_map has the keys {unknown[:5]}, which are not modules of {type(model).__name__}; its modules are "
            f"{', '.join(sorted(name for name, _ in model.named_children()))} and their parts"
        )
    covered = tuple(placement.devices)
    missing = [
        name
        for name, _ in model.named_parameters()
        if not any(not key or name == key or name.startswith(f"{key}.") for key in covered)
    ]
    if missing:
        raise RequestError(
            "The device_map provided does not give any device for the following parameters: "
            f"{', '.join(missing[:5])}; add their modules, or the key '' for all others"
        )
    shared: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = shared.setdefault(id(parameter), name)
        if str(placement.device_of(first)) != str(placement.device_of(name)):
            raise RequestError(f"device_map puts {first} and {name}, which share a matrix, on different devices")


def has_accelerate() -> bool:
    """Returns whether accelerate is installed."""
    from importlib.util import find_spec

    return find_spec("accelerate") is not None


def require_accelerate() -> None:
    """Raises MissingExtraError unless accelerate is installed."""
    if not has_accelerate():
        raise MissingExtraError(
            "a device_map over several devices needs the package accelerate: pip install accelerate, or give one device"
        )
