"""`Projection`: linear layers that read the same inputs, computed as one, with low-rank changes and scalings.

Legend: T tokens, I inputs, O outputs of one layer or of all, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from puna.training.forward.fused.block import Block, block_bytes
from puna.training.forward.fused.matrices import matrix_of, product_with, product_with_rows
from puna.training.forward.fused.products import add_product, product, product_dtype, weight_gradient, writes_products
from puna.training.methods.attach import row_factors
from puna.training.methods.base import Trainable

Tensors = Mapping[str, Tensor]
"""Values that a layer of the model reads and that may train, by name."""


@dataclass(frozen=True)
class Change:
    """A low-rank change of one layer, in the type of the products; `b` includes the scale."""

    name: str
    rows: slice
    a: Tensor
    b: Tensor
    scale: float
    dropout: float


@dataclass
class Kept:
    """Values of the forward pass that the backward pass reads.

    Attributes:
        inner: the results of each `a`, (T, R).
        unscaled: the outputs before they are scaled, in the type of the activations.
    """

    inner: list[Tensor] = field(default_factory=list)
    unscaled: Tensor | None = None


class Projection:
    """Computes linear layers, and their gradients.

    Args:
        trainable: the model and its trainable parameters.
        layers: the layers by the names of their matrices.
        dtype: the type of inputs and outputs. `product_dtype` is that of the products, whose results are rounded once.
    """

    def __init__(self, trainable: Trainable, layers: Mapping[str, nn.Linear], dtype: torch.dtype) -> None:
        self._trainable, self._layers = trainable, layers
        self._dtype = product_dtype(dtype)
        self._matrix = matrix_of(list(layers.values()), dtype)
        biases = [layer.bias.detach().to(self._dtype) for layer in layers.values() if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._rows: dict[str, slice] = {}
        start = 0
        for name, layer in layers.items():
            self._rows[name] = slice(start, start + layer.out_features)
            start += layer.out_features
        self._indices = {name: index for index, name in enumerate(trainable.low_rank)}

    def inputs(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the trainable values by name, and the factors of outputs and inputs, which depend on some."""
        for name, layer in self._layers.items():
            change = self._trainable.low_rank.get(name)
            if change is not None:
                yield f"{name}.a", change.a
                yield f"{name}.b", change.b
                if change.magnitude is not None:
                    yield f"{name}.outputs", row_factors(layer, change)
            scaling = self._trainable.scalings.get(name)
            if scaling is not None:
                yield f"{name}.{scaling.side}", scaling.factors
            if layer.weight.requires_grad:
                yield name, master_of(self._trainable, name, layer.weight)

    def kept_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Returns the bytes in a block of the outputs, in a type, and of what `forward` keeps."""
        outputs = (tokens, sum(rows.stop - rows.start for rows in self._rows.values()))
        changes = [self._trainable.low_rank[name] for name in self._rows if name in self._trainable.low_rank]
        scaled = any(change.magnitude is not None for change in changes) or any(
            name in self._trainable.scalings and self._trainable.scalings[name].side == "outputs" for name in self._rows
        )
        inner = sum(block_bytes((tokens, len(change.a)), self._dtype) for change in changes)
        return block_bytes(outputs, dtype) * (2 if scaled else 1) + inner

    def forward(self, x: Tensor, tensors: Tensors, block: Block) -> tuple[Tensor, Kept]:
        """Returns the outputs, (T, O), of x, (T, I), and what `backward` needs besides x, in the block."""
        kept, factors, dtype = Kept(), self._input_factors(tensors), x.dtype
        x = (x if factors is None else x * factors).to(self._dtype)
        written = self._dtype == dtype and writes_products(dtype)
        y = product_with(x, self._matrix, block.empty((len(x), self._matrix.rows), dtype) if written else None)
        if self._bias is not None:
            y += self._bias
        changes = self._changes(tensors)
        masks = self._masks(x, changes)
        if changes and all(mask is None for mask in masks):
            inner = product(x, _joined([change.a for change in changes]))  # (T, R of all)
            inner = block.keep(inner, inner.dtype)
            kept.inner = list(torch.split(inner, [len(change.a) for change in changes], dim=1))
        else:
            for mask, change in zip(masks, changes, strict=True):
                kept.inner.append(block.keep(product(_masked(x, mask), change.a), self._dtype))
        for change, inner in zip(changes, kept.inner, strict=True):
            add_product(y[:, change.rows], inner, change.b)
        scales = self._output_factors(tensors)
        if scales is not None:
            kept.unscaled, y = block.keep(y, dtype), (y * scales).to(y.dtype)
        return block.keep(y, dtype), kept

    def backward(
        self, g: Tensor, x: Tensor, kept: Kept, tensors: Tensors, gradients: dict[str, Tensor], propagate: bool
    ) -> Tensor:
        """Returns the gradient of x, and adds those of `tensors` to `gradients`; g is that of the outputs, (T, O).

        The gradient of x lacks the part of the matrix unless `propagate`.
        """
        scales, factors, dtype = self._output_factors(tensors), self._input_factors(tensors), x.dtype
        g = g.to(self._dtype)
        if scales is not None:
            assert kept.unscaled is not None
            sums = (g.float() * kept.unscaled).sum(0)
            gradients.update((f"{name}.outputs", sums[rows]) for name, rows in self._rows.items())
            g = (g * scales).to(g.dtype)
        scaled = (x if factors is None else x * factors).to(self._dtype)
        propagate = propagate or factors is not None
        gx = product_with_rows(g, self._matrix) if propagate else torch.zeros_like(scaled)
        self._changes_backward(g, scaled, gx, kept, self._changes(tensors), gradients)
        if any(name in tensors for name in self._rows):
            whole = weight_gradient(g, scaled)  # (O, I)
            gradients.update((name, whole[rows]) for name, rows in self._rows.items() if name in tensors)
        if factors is not None:
            (name,) = self._rows
            gradients[f"{name}.inputs"] = (gx.float() * x).sum(0)
            gx = (gx * factors).to(gx.dtype)
        return gx.to(dtype)

    def _changes_backward(
        self, g: Tensor, x: Tensor, gx: Tensor, kept: Kept, changes: list[Change], gradients: dict[str, Tensor]
    ) -> None:
        """Adds the part of the low-rank changes to gx, the gradient of x; R times O or I numbers, never I times O."""
        masks = self._masks(x, changes)
        inner = [product(g[:, change.rows], change.b.t()) for change in changes]  # (T, R) each
        for change, forward in zip(changes, kept.inner, strict=True):
            gradient = weight_gradient(forward, g[:, change.rows]).t()  # (O, R): a product with more columns is faster
            gradients[f"{change.name}.b"] = torch.mul(gradient, change.scale).float().contiguous()
        if changes and all(mask is None for mask in masks):
            joined = _joined(inner, dim=1)
            sums = torch.split(product(joined.t(), x.t()).float(), [len(change.a) for change in changes])
            gradients.update((f"{change.name}.a", part) for change, part in zip(changes, sums, strict=True))
            add_product(gx, joined, _joined([change.a for change in changes]).t())
            return
        for change, mask, part in zip(changes, masks, inner, strict=True):
            gradients[f"{change.name}.a"] = product(part.t(), _masked(x, mask).t()).float()
            gx += _masked(product(part, change.a.t()), mask)

    def _masks(self, x: Tensor, changes: list[Change]) -> list[Tensor | None]:
        return [self._trainable.dropout_mask(self._indices[change.name], x, change.dropout) for change in changes]

    def _changes(self, tensors: Tensors) -> list[Change]:
        changes = []
        for name, rows in self._rows.items():
            change = self._trainable.low_rank.get(name)
            if change is None:
                continue
            b = (tensors[f"{name}.b"].detach() * change.scale).to(self._dtype)
            a = tensors[f"{name}.a"].detach().to(self._dtype)
            changes.append(Change(name, rows, a, b, change.scale, change.dropout))
        return changes

    def _output_factors(self, tensors: Tensors) -> Tensor | None:
        """Returns the factors of all outputs, (O,) float32; None if nothing scales them."""
        if not any(f"{name}.outputs" in tensors for name in self._rows):
            return None
        ones = {name: torch.ones(rows.stop - rows.start) for name, rows in self._rows.items()}
        return torch.cat([tensors.get(f"{name}.outputs", one).detach() for name, one in ones.items()])

    def _input_factors(self, tensors: Tensors) -> Tensor | None:
        """Returns the factors of the inputs, (I,) float32; only a projection of one layer can have them."""
        for name in self._rows:
            if f"{name}.inputs" in tensors:
                return tensors[f"{name}.inputs"].detach()
        return None


def master_of(trainable: Trainable, name: str, parameter: Tensor) -> Tensor:
    """Returns the float32 values of a parameter of the model: its own, or the copy that the optimizer changes."""
    return trainable.masters[name][0] if name in trainable.masters else parameter


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else (x * mask).to(x.dtype)
