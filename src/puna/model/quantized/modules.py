"""Linear layers and embeddings whose matrices stay packed: a model in Q4_0 needs the memory of its file.

The forward and the backward pass dequantise a matrix and drop it again. Packed matrices are constants: gradients flow
through them, so that adapters, norms and other float parameters can be trained.

Legend: O rows (outputs), I columns (inputs).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from puna.errors import RequestError
from puna.formats.blocks import FORMATS
from puna.model.quantized.unpack import UNPACK

PART_VALUES = 1 << 26
"""Maximum number of values dequantised at once: 256 MB in float32. Only heads of large vocabularies have more."""


_DECODED_VALUES = 1 << 20
"""Values decoded at once: 4 MB in float32, and as much again for each intermediate result."""


class PackedMatrix(nn.Module):
    """A matrix in blocks. Its only buffer, uint8 (O, bytes per row), has the name of the format.

    A state dict therefore names the format, and blocks cannot be loaded as blocks of another format.

    Raises:
        RequestError: if PyTorch has no decoder of the format.
    """

    def __init__(self, name: str, form: str, rows: Tensor, columns: int) -> None:
        super().__init__()
        if form not in UNPACK:
            raise RequestError(
                f"keep_quantized is True, but {name} is stored in {form}; {', '.join(UNPACK)} can be kept. Omit "
                "keep_quantized, or convert the model (puna convert --quantize)"
            )
        self.format, self.rows, self.columns = form, len(rows), columns
        self.register_buffer(form, rows)

    def extra_repr(self) -> str:
        """Shows the format and the shape."""
        return f"{self.format}, {self.rows}, {self.columns}"

    @property
    def blocks(self) -> Tensor:
        """The packed rows, (O, bytes per row)."""
        return self.get_buffer(self.format)

    def unpack(self, rows: Tensor) -> Tensor:
        """Returns the values, (n, I) float32, of packed rows, (n, bytes per row)."""
        return UNPACK[self.format](rows.reshape(-1, FORMATS[self.format].bytes)).view(len(rows), self.columns)

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yields the first row and the end of each part that is dequantised at once."""
        step = max(1, PART_VALUES // self.columns)
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the values, (O, I), rounded to `dtype`."""
        return self.values(self.blocks, dtype)

    def values(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the values, (n, I), of packed rows, (n, bytes per row), rounded to `dtype`.

        The decoders need several times the memory of their results, so they get few rows at a time.
        """
        if torch.compiler.is_compiling():  # a graph with many parts takes long to compile
            return self.unpack(rows).to(dtype)
        out = torch.empty(len(rows), self.columns, dtype=dtype, device=rows.device)
        step = max(1, _DECODED_VALUES // self.columns)
        for start in range(0, len(rows), step):
            out[start : start + step] = self.unpack(rows[start : start + step])
        return out


_IN_PLACE = re.compile(r"__i(add|sub|mul|truediv|floordiv|pow|mod)__|__set(item)?__|[a-z]\w*[a-z0-9]_")
"""Methods of a tensor that change it: operators with assignment, setters of attributes, names that end in "_"."""


class DequantizedCopy(Tensor):
    """A dequantised matrix that refuses `data` and changes in place.

    Otherwise a program that merges an adapter into `layer.weight.data` would lose it without a message.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        changes = _IN_PLACE.fullmatch(function.__name__) or function == Tensor.data.__get__  # type: ignore[attr-defined]
        if changes and isinstance(arguments[0], cls):
            raise RequestError(
                "the matrix is packed; a change of its copy would be lost. Call model.dequantize() first"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return function(*arguments, **(options or {}))


class _Product(torch.autograd.Function):
    """x W' for a packed W. The backward pass dequantises W again, so that no dequantised matrix is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, matrix: PackedMatrix) -> Tensor:
        ctx.save_for_backward(blocks)
        ctx.matrix, ctx.dtype = matrix, x.dtype
        parts = [F.linear(x, matrix.values(blocks[start:end], x.dtype)) for start, end in matrix.parts()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # (..., O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (blocks,) = gradients, ctx.saved_tensors  # (..., O)
        parts = [
            gradient[..., start:end] @ ctx.matrix.values(blocks[start:end], gradient.dtype)
            for start, end in ctx.matrix.parts()
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.to(ctx.dtype), None, None  # (..., I)


def packed_linear(x: Tensor, blocks: Tensor, matrix: PackedMatrix) -> Tensor:
    """Returns x W', (..., O), in the type of x, (..., I); a function of PyTorch for modes that replace functions."""
    if has_torch_function((x,)):
        result: Tensor = handle_torch_function(packed_linear, (x,), x, blocks, matrix)
        return result
    out: Tensor = _Product.apply(x, blocks, matrix)  # type: ignore[no-untyped-call]
    return out


class QuantLinear(nn.Linear):
    """A linear layer with a packed matrix, computed in the type of its input.

    Args:
        packed: the matrix; a head can share that of the embedding.
        bias: a float parameter, or None.
    """

    def __init__(self, packed: PackedMatrix, bias: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which would allocate a float matrix
        self.in_features, self.out_features = packed.columns, packed.rows
        self.packed = packed
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised matrix, (O, I) float32: a copy that refuses changes."""
        return self.packed.dequantize().as_subclass(DequantizedCopy)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x, (..., I), times the transposed matrix, plus the bias: (..., O)."""
        out = packed_linear(x, self.packed.blocks, self.packed)
        return out if self.bias is None else out + self.bias


class QuantEmbedding(nn.Embedding):
    """An embedding with a packed matrix. Only the rows that are looked up are dequantised.

    Args:
        packed: the matrix.
        padding_idx: as in `nn.Embedding`; the row keeps its stored values.
        dtype: the type of the results.
    """

    def __init__(self, packed: PackedMatrix, padding_idx: int | None, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # not that of nn.Embedding, which would allocate a float matrix
        self.num_embeddings, self.embedding_dim, self.padding_idx = packed.rows, packed.columns, padding_idx
        self.packed = packed
        # Follows `model.to(dtype)`. Without values, it need not be in the state dict.
        self.register_buffer("result", torch.empty(0, dtype=dtype), persistent=False)

    extra_repr = nn.Module.extra_repr

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised matrix, (O, I) float32: a copy that refuses changes."""
        return self.packed.dequantize().as_subclass(DequantizedCopy)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the rows of ids, (...): (..., I)."""
        rows = self.packed.unpack(self.packed.blocks[ids.flatten()])  # (n, I)
        return rows.view(*ids.shape, self.embedding_dim).to(self.get_buffer("result").dtype)


def dequantize_modules(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces packed layers by float ones; matrices that are shared stay shared."""
    weights: dict[PackedMatrix, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, QuantLinear | QuantEmbedding):
            continue
        if module.packed not in weights:
            weights[module.packed] = nn.Parameter(module.packed.dequantize(dtype))
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, float_module(module, weights[module.packed]))


def float_module(module: QuantLinear | QuantEmbedding, weight: nn.Parameter) -> nn.Module:
    """Returns the float layer with the matrix `weight` (O, I) and the bias of a packed layer."""
    if isinstance(module, QuantEmbedding):
        embedding: nn.Embedding = nn.Embedding.from_pretrained(weight, False, module.padding_idx)  # type: ignore[no-untyped-call]
        embedding.weight = weight
        return embedding.train(module.training)
    with torch.device("meta"):
        linear = nn.Linear(module.in_features, module.out_features, bias=False)
    linear.weight, linear.bias = weight, module.bias
    return linear.train(module.training)
