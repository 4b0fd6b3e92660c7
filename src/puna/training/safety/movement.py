"""`Movement`: proves by hashes that every trainable tensor changes and that no frozen tensor does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from puna.errors import TrainingError
from puna.training.methods.base import Trainable

_FEW = 5
"""Number of names in a message."""


def tensor_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns a hash of the bytes of each tensor. hashlib hashes in parallel, 1.3 GB/s per thread."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return dict(zip(tensors, pool.map(_hash, tensors.values()), strict=True))


def _hash(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=8).hexdigest()


def frozen_tensors(trainable: Trainable) -> dict[str, Tensor]:
    """Returns the parameters and buffers of the model that must not change."""
    model = trainable.model
    parameters = {name: item for name, item in model.named_parameters() if not item.requires_grad}
    return parameters | dict(model.named_buffers())


class Movement:
    """The hashes of a run's tensors at its start.

    Args:
        initial: the hashes of the trainable tensors before the first step, if the run is resumed.
    """

    def __init__(self, trainable: Trainable, initial: Mapping[str, str] | None = None) -> None:
        self._trainable = trainable
        self.initial = dict(tensor_hashes(trainable.parameters) if initial is None else initial)
        self._frozen = tensor_hashes(frozen_tensors(trainable))

    def check(self, excepted: frozenset[str] | None = frozenset(), frozen: bool = True) -> None:
        """Checks all tensors.

        Args:
            excepted: trainable tensors whose gradient was exactly zero, as that of LoRA's `a` is in the first step;
                None: unknown, so that trainable tensors are not checked.
            frozen: also check the frozen tensors, which takes a second per 1.3 GB and thread.

        Raises:
            TrainingError: a trainable tensor equals its initial value, or a frozen one does not.
        """
        if excepted is not None:
            self._check_trained(excepted)
        hashes = tensor_hashes(frozen_tensors(self._trainable)) if frozen else {}
        changed = [name for name, value in hashes.items() if self._frozen.get(name) != value]
        if changed:
            raise TrainingError(
                f"{len(changed)} frozen tensors changed during the training, such as {', '.join(changed[:_FEW])}; this "
                "is an error of the training method"
            )

    def _check_trained(self, excepted: frozenset[str]) -> None:
        now = tensor_hashes(self._trainable.parameters)
        still = [name for name, value in now.items() if value == self.initial[name] and name not in excepted]
        if still or excepted >= now.keys():
            raise TrainingError(
                f"{len(still) or len(now)} of {len(now)} trainable tensors did not change, such as "
                f"{', '.join((still or list(now))[:_FEW])}; raise the learning rate, or train parameters that the loss "
                "depends on"
            )
