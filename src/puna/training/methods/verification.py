"""Hashes of tensors, which show that frozen parameters did not change and that trained ones did."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from puna.training.methods.base import Trainable


def frozen_digest(trainable: Trainable) -> str:
    """Returns a hash of all bits of the model that do not train, packed matrices and buffers included."""
    model = trainable.model
    trained = {id(parameter) for parameter in trainable.parameters.values()}
    trained |= {id(parameter) for _, parameter in trainable.masters.values()}
    result = hashlib.blake2b(digest_size=16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in trained:
            result.update(name.encode())
            result.update(_bytes(tensor))
    return result.hexdigest()


def parameter_digests(trainable: Trainable) -> dict[str, str]:
    """Returns a hash of each trained parameter, by name."""
    return {
        name: hashlib.blake2b(_bytes(parameter), digest_size=16).hexdigest()
        for name, parameter in trainable.parameters.items()
    }


def unmoved_parameters(trainable: Trainable, before: Mapping[str, str]) -> list[str]:
    """Returns the names of the trained parameters whose bits are those of `before`, a result of `parameter_digests`.

    The first step moves only `b` of a low-rank change, because the gradient of `a` is zero while `b` is.
    """
    return [name for name, digest in parameter_digests(trainable).items() if before.get(name) == digest]


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
