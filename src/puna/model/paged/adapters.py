"""Adapters of `TorchBackend`: low-rank products and replaced tensors, which change the tokens of some chunks.

Legend: N tokens of the batch, I inputs, O outputs.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.backend import LowRank
from puna.errors import BackendError
from puna.model.causal_lm import LlamaForCausalLM

Segment = tuple[slice, int]
"""Consecutive tokens of a batch, and the number of their adapter."""


@dataclass(frozen=True)
class Product:
    """`puna.backend.LowRank` as tensors of the model's device, in float32."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    row_scale: Tensor | None

    def change(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """Returns a layer's changed output, (n, O), for its inputs, (n, I), and its output without the adapter."""
        model_bias = layer.bias if isinstance(layer, nn.Linear) else None
        delta = F.linear(F.linear(x.float(), self.a), self.b)
        changed = output.float() + delta
        if self.row_scale is not None:
            own = 0.0 if model_bias is None else model_bias.float()
            changed = (changed - own) * self.row_scale + own
        return (changed if self.bias is None else changed + self.bias).to(output.dtype)


@dataclass(frozen=True)
class Replacement:
    """Values that replace the weight of a linear layer or a norm."""

    weight: Tensor

    def change(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """Returns the output of the layer with this weight, (n, O), for its inputs, (n, I)."""
        if isinstance(layer, nn.Linear):
            return F.linear(x, self.weight, layer.bias)
        other = copy.copy(layer)  # without the hooks of the layer
        other._parameters, other._forward_hooks = {"weight": nn.Parameter(self.weight, False)}, OrderedDict()
        result: Tensor = other(x)
        return result


Change = Product | Replacement


class Adapters:
    """The loaded adapters of a model, by number: the changes of each layer in the order in which they apply."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.loaded: dict[int, dict[str, list[Change]]] = {}
        self._model = model
        self._last = 0

    def load(self, products: Mapping[str, LowRank], replaced: Mapping[str, NDArray[np.float32]]) -> int:
        """Loads changes by the names of the tensors; returns a new number.

        Raises:
            BackendError: if the model has no such tensor, or it has another shape.
        """
        changes: dict[str, list[Change]] = {name: [self._replacement(name, new)] for name, new in replaced.items()}
        for name, low in products.items():
            changes.setdefault(name, []).append(self._product(name, low))
        self._last += 1
        self.loaded[self._last] = changes
        return self._last

    @contextmanager
    def applied(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Context manager: the model's layers apply the changes of each segment's adapter."""
        changes: dict[str, list[tuple[slice, Change]]] = {}
        for rows, number in segments:
            for name, parts in self.loaded.get(number, {}).items():
                changes.setdefault(name, []).extend((rows, part) for part in parts)
        hooks = [self._layer(name).register_forward_hook(_hook(parts)) for name, parts in changes.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _layer(self, name: str) -> nn.Module:
        try:
            return self._model.get_submodule(name.removesuffix(".weight"))
        except AttributeError as exc:
            raise BackendError(f"the adapter changes {name!r}, which the model does not have") from exc

    def _replacement(self, name: str, values: NDArray[np.float32]) -> Replacement:
        layer = self._layer(name)
        if isinstance(layer, nn.Linear):
            expected: tuple[int, ...] = (layer.out_features, layer.in_features)
        else:
            expected = tuple(parameter.shape[0] for parameter in layer.parameters())
        if values.shape != expected:
            raise BackendError(
                f"the adapter's {name!r} has the shape {values.shape}; the model needs {expected}. Use the adapter's "
                "base model"
            )
        model = next(self._model.parameters())
        return Replacement(torch.from_numpy(values).to(model.device, self._model.dtype))

    def _product(self, name: str, low: LowRank) -> Product:
        layer = self._layer(name)
        if not isinstance(layer, nn.Linear):
            raise BackendError(f"the adapter changes {name!r}, which is not a matrix product of the model")
        expected = (layer.out_features, layer.in_features)
        if (low.b.shape[0], low.a.shape[1]) != expected or low.a.shape[0] != low.b.shape[1]:
            raise BackendError(
                f"the adapter's matrices of {name!r} have shapes {low.a.shape} and {low.b.shape}; they must be (rank, "
                f"{expected[1]}) and ({expected[0]}, rank). Use the adapter's base model"
            )
        device = next(self._model.parameters()).device

        def tensor(values: NDArray[np.float32] | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values).to(device, torch.float32)

        return Product(*map(tensor, (low.a, low.b, low.bias, low.row_scale)))  # type: ignore[arg-type]


def segments_of(rows: Iterable[tuple[int, int]]) -> list[Segment]:
    """Returns the segments of chunks, given as (number of tokens, adapter); neighbours with one adapter are joined."""
    segments: list[Segment] = []
    row = 0
    for tokens, adapter in rows:
        if segments and segments[-1][1] == adapter:
            segments[-1] = slice(segments[-1][0].start, row + tokens), adapter
        else:
            segments.append((slice(row, row + tokens), adapter))
        row += tokens
    return [segment for segment in segments if segment[1]]


def _hook(parts: Sequence[tuple[slice, Change]]) -> Callable[..., Tensor]:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """`inputs` is (1, N, I) or, in the head, (N, I)."""
        x, changed = inputs[0], output.clone()
        for rows, part in parts:
            changed[..., rows, :] = part.change(layer, x[..., rows, :], changed[..., rows, :])
        return changed

    return add
