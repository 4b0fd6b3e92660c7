"""`FusedLayer`: a decoder layer as one autograd function that keeps few tensors.

Legend: T tokens, D hidden, I intermediate, H heads, K kv heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.model.llama import LlamaDecoderLayer
from puna.training.forward.fused.attention import Attention
from puna.training.forward.fused.block import Block, block_bytes
from puna.training.forward.fused.operations import Operations, normed_rows
from puna.training.forward.fused.products import writes_products
from puna.training.forward.fused.projection import Kept, Projection, Tensors, master_of
from puna.training.methods.base import Trainable


@dataclass(frozen=True)
class Pass:
    """What all layers of a forward pass share.

    Attributes:
        attention: the attention within the documents.
        operations: the other operations.
        cos, sin: (T, E/2) float32.
        seeds: of the dropout of each document; None without dropout.
        lengths: tokens of each document.
        checkpointing: keep only the input of each layer, and compute its other activations again.
    """

    attention: Attention
    operations: Operations
    cos: Tensor
    sin: Tensor
    seeds: tuple[int, ...] | None
    lengths: tuple[int, ...]
    checkpointing: bool


class FusedLayer:
    """Computes a decoder layer.

    Args:
        trainable: the model and its trainable parameters.
        prefix: the name of the layer, such as "model.layers.0".
        layer: the module.
        dtype: the type of the computation.
    """

    def __init__(self, trainable: Trainable, prefix: str, layer: LlamaDecoderLayer, dtype: torch.dtype) -> None:
        def projection(parent: str, *names: str) -> Projection:
            module = getattr(layer, parent)
            layers = {f"{prefix}.{parent}.{name}.weight": getattr(module, name) for name in names}
            return Projection(trainable, layers, dtype)

        self.trainable, self.dtype = trainable, dtype
        self._qkv = projection("self_attn", "q_proj", "k_proj", "v_proj")
        self._o = projection("self_attn", "o_proj")
        self._gate_up = projection("mlp", "gate_proj", "up_proj")
        self._down = projection("mlp", "down_proj")
        self._names = (f"{prefix}.input_layernorm.weight", f"{prefix}.post_attention_layernorm.weight")
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self._heads = (trainable.model.config.num_attention_heads, trainable.model.config.head_dim)

    def __call__(self, x: Tensor, current: Pass, block: Block, output: Tensor | None = None) -> Tensor:
        """Returns the output of the layer for x, (T, D), with its gradient function.

        Args:
            block: memory for what the layer keeps.
            output: the output, if another implementation has computed it; the gradients are then those of this one.
        """
        tensors = dict(
            item for projection in (self._qkv, self._o, self._gate_up, self._down) for item in projection.inputs()
        )
        for name, norm in zip(self._names, self._norms, strict=True):
            if norm.weight.requires_grad:
                tensors[name] = master_of(self.trainable, name, norm.weight)
        out: Tensor = _Function.apply(x, self, current, block, output, tuple(tensors), *tensors.values())  # type: ignore[no-untyped-call]
        return out

    def kept_bytes(self, tokens: int) -> int:
        """Returns the bytes of a block for the output of the layer, and for the activations that `backward` needs."""
        if self.dtype == torch.float32 and not writes_products(self.dtype):
            return 0  # the products allocate the outputs; of another type, outputs are converted into the block
        projections = (self._qkv, self._o, self._gate_up, self._down)
        attention = block_bytes((tokens, self._heads[0] * self._heads[1]), self.dtype)
        sums = block_bytes((tokens, self._heads[0]), torch.float32)
        return sum(projection.kept_bytes(tokens, self.dtype) for projection in projections) + attention + sums

    def forward(
        self, x: Tensor, current: Pass, tensors: Tensors, block: Block
    ) -> tuple[Tensor, list[Tensor], list[Kept]]:
        """Returns the output, the activations that `backward` needs besides x, and those of the projections."""
        qkv, kept_qkv = self._qkv.forward(self._normed(x, 0, current), tensors, block)
        self._rotate(qkv, current, 1)
        attention, lse = (block.keep(part, part.dtype) for part in current.attention.forward(qkv))
        out, kept_o = self._o.forward(attention, tensors, block)
        middle = out.add_(x)
        gate_up, kept_gate_up = self._gate_up.forward(self._normed(middle, 1, current), tensors, block)
        out, kept_down = self._down.forward(current.operations.gated(gate_up), tensors, block)
        return out.add_(middle), [qkv, attention, lse, middle, gate_up], [kept_qkv, kept_o, kept_gate_up, kept_down]

    def backward(
        self, g: Tensor, x: Tensor, saved: list[Tensor], kept: list[Kept], current: Pass, tensors: Tensors, first: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Returns the gradient of x, or None if it is not needed (`first`), and those of `tensors`."""
        qkv, attention, lse, middle, gate_up = saved
        gradients: dict[str, Tensor] = {}
        gg = self._down.backward(g, current.operations.gated(gate_up), kept[3], tensors, gradients, True)
        gg = current.operations.gated_backward(gg, gate_up)
        gg = self._gate_up.backward(gg, self._normed(middle, 1, current), kept[2], tensors, gradients, True)
        g = self._norm_backward(gg, middle, 1, g, current, tensors, gradients)
        ga = self._o.backward(g, attention, kept[1], tensors, gradients, True)
        ga = current.attention.backward(ga, qkv, attention, lse)
        self._rotate(ga, current, -1)
        propagate = not first or self._names[0] in tensors
        gn = self._qkv.backward(ga, self._normed(x, 0, current), kept[0], tensors, gradients, propagate)
        if not propagate:
            return None, gradients
        return self._norm_backward(gn, x, 0, g, current, tensors, gradients), gradients

    def _normed(self, x: Tensor, index: int, current: Pass) -> Tensor:
        norm = self._norms[index]
        return current.operations.norm(x, norm.weight.detach(), norm.eps)

    def _norm_backward(
        self,
        g: Tensor,
        x: Tensor,
        index: int,
        add: Tensor,
        current: Pass,
        tensors: Tensors,
        gradients: dict[str, Tensor],
    ) -> Tensor:
        norm, name = self._norms[index], self._names[index]
        if name in tensors:
            gradients[name] = (normed_rows(x, norm.eps)[0] * g).sum(0)
        return current.operations.norm_backward(g, x, norm.weight.detach(), norm.eps, add)

    @staticmethod
    def _rotate(qkv: Tensor, current: Pass, sign: int) -> None:
        """Rotates queries and keys, or their gradients back (-1), in place."""
        heads = current.attention.heads + current.attention.kv_heads
        current.operations.rotate_(qkv, heads, current.cos, current.sin, sign)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: FusedLayer,
        current: Pass,
        block: Block,
        output: Tensor | None,
        names: tuple[str, ...],
        *values: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.current, ctx.names = layer, current, names
        ctx.recomputed = current.checkpointing or output is not None
        if output is not None:
            ctx.save_for_backward(x, *values)
            return output.detach()
        tensors = dict(zip(names, values, strict=True))
        with layer.trainable.dropping(current.seeds, current.lengths):
            out, saved, kept = layer.forward(x, current, tensors, block)
        if current.checkpointing:
            ctx.save_for_backward(x, *values)
            return out
        ctx.ranks = [(len(item.inner), item.unscaled is not None) for item in kept]
        flat = [tensor for item in kept for tensor in (*item.inner, item.unscaled) if tensor is not None]
        ctx.save_for_backward(x, *values, *saved, *flat)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layer, current, names = ctx.layer, ctx.current, ctx.names
        x, *rest = ctx.saved_tensors
        values, rest = rest[: len(names)], rest[len(names) :]
        tensors = dict(zip(names, values, strict=True))
        with torch.no_grad(), layer.trainable.dropping(current.seeds, current.lengths):
            if ctx.recomputed:
                _, saved, kept = layer.forward(x, current, tensors, Block())
            else:
                saved, kept = rest[:5], _restored(rest[5:], ctx.ranks)
            g = gradients[0].contiguous()
            gx, result = layer.backward(g, x, saved, kept, current, tensors, not ctx.needs_input_grad[0])
        typed = (result[name].to(value.dtype) for name, value in tensors.items())
        return (gx, None, None, None, None, None, *typed)


def _restored(flat: list[Tensor], ranks: list[tuple[int, bool]]) -> list[Kept]:
    tensors, result = iter(flat), []
    for count, scaled in ranks:
        inner = [next(tensors) for _ in range(count)]
        result.append(Kept(inner, next(tensors) if scaled else None))
    return result
