"""The weights of a module for the native runtime, and the state that decides whether packed weights are still valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.formats.blocks import FORMATS, BlockFormat

FORMAT_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""The types of weights that the native runtime packs without changing a value, and the names of their formats."""

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass(frozen=True)
class ModuleWeight:
    """A parameter in the form that `NativeBackend` reads; `data` is the memory of the parameter, not a copy."""

    values: Tensor
    order: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape: (rows, columns) of a matrix, (size,) of a vector."""
        return tuple(self.values.shape)

    @property
    def format(self) -> BlockFormat:
        """The format of `data`."""
        return FORMATS[FORMAT_NAMES[self.values.dtype]]

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes, flat."""
        data: NDArray[np.uint8] = self.values.contiguous().view(torch.uint8).flatten().numpy()
        return data

    def to_float32(self) -> NDArray[np.float32]:
        """Returns the values in float32."""
        values: NDArray[np.float32] = self.values.float().contiguous().numpy()
        return values

    def release(self) -> None:
        """Does nothing: the module keeps its parameter."""


class WeightState:
    """The state of a module's parameters at one moment; states are equal if no parameter has changed in between.

    PyTorch counts the changes of a tensor, but not those through `parameter.data` or NumPy, such as merging an adapter
    of PEFT. Therefore the state also contains, for each parameter, the sum of the bits of each row, and the first row.
    Reading all weights takes about as long as decoding one token.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._identity = [(name, value.data_ptr(), _changes(value)) for name, value in parameters.items()]
        self._contents = [_digest(value.detach()) for value in parameters.values()]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightState) or self._identity != other._identity:
            return False
        return all(torch.equal(mine, others) for mine, others in zip(self._contents, other._contents, strict=True))

    __hash__ = None  # type: ignore[assignment]


def _changes(value: Tensor) -> int:
    """Returns how often the tensor was changed in place; 0 for tensors of inference mode, which do not count it."""
    return 0 if value.is_inference() else value._version


def _digest(value: Tensor) -> Tensor:
    """Returns a summary of the contents, (n,) int64: the sum of each row's bits in 64-bit words, and the first row."""
    width = value.shape[-1] * value.element_size()
    bits = value.contiguous().view(_BITS[next(size for size in _BITS if width % size == 0)])
    return torch.cat((bits.flatten() if bits.dim() == 1 else bits.sum(-1), bits.view(-1, bits.shape[-1])[0]))


def module_weights(parameters: Mapping[str, Tensor]) -> dict[str, ModuleWeight]:
    """Returns the weights by Hugging Face's names, without a head that is the embedding matrix."""
    tied = parameters["lm_head.weight"] is parameters["model.embed_tokens.weight"]
    return {
        name: ModuleWeight(value.detach())
        for name, value in parameters.items()
        if not (tied and name == "lm_head.weight")
    }
