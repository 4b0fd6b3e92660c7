"""Layers that multiply q, k and v as one matrix, and gate and up as one.

A product with few rows takes the time to read its matrix and some microseconds, so that a GPU decodes faster with fewer
products. The joined matrices need no memory: the model's matrices become views of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.model.llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP


class JoinedProduct(nn.Module):
    """The products of several linear layers with the same inputs. The layers' parameters become views of its own."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [len(layer.weight) for layer in layers]
        self.weight = _joined([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """Returns the product of each layer with x, (..., inputs)."""
        return torch.split(F.linear(x, self.weight, self.bias), self.sizes, -1)


def _joined(parameters: Sequence[Tensor]) -> nn.Parameter:
    joined = torch.cat([parameter.detach() for parameter in parameters])
    parts = torch.split(joined, [len(parameter) for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return nn.Parameter(joined, requires_grad=False)


class JoinedAttention(LlamaAttention):
    """Attention that shares the modules of another, but for the joined product."""

    def __init__(self, attention: LlamaAttention) -> None:
        nn.Module.__init__(self)
        self.head_dim, self.dropout = attention.head_dim, attention.dropout
        self.register_buffer("kv_heads", attention.kv_heads, persistent=False)
        self.qkv = JoinedProduct((attention.q_proj, attention.k_proj, attention.v_proj))
        self.o_proj = attention.o_proj

    def project(self, x: Tensor) -> Sequence[Tensor]:  # noqa: D102
        parts: Sequence[Tensor] = self.qkv(x)
        return parts


class JoinedMLP(LlamaMLP):
    """A feed-forward network that shares the modules of another, but for the joined product."""

    def __init__(self, network: LlamaMLP) -> None:
        nn.Module.__init__(self)
        self.gate_and_up = JoinedProduct((network.gate_proj, network.up_proj))
        self.down_proj, self.act_fn = network.down_proj, network.act_fn

    def project(self, x: Tensor) -> Sequence[Tensor]:  # noqa: D102
        parts: Sequence[Tensor] = self.gate_and_up(x)
        return parts


class JoinedLayer(LlamaDecoderLayer):
    """A decoder layer that shares the modules of another, but for the joined products."""

    def __init__(self, layer: LlamaDecoderLayer) -> None:
        nn.Module.__init__(self)
        self.self_attn, self.mlp = JoinedAttention(layer.self_attn), JoinedMLP(layer.mlp)
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm


def join_layers(layers: nn.ModuleList) -> nn.ModuleList:
    """Returns layers with joined products; the same list if the matrices of a layer are not plain floats."""
    if not all(isinstance(layer, LlamaDecoderLayer) and _is_plain(layer) for layer in layers):
        return layers
    joined = []
    for layer in layers:
        joined.append(JoinedLayer(layer))  # type: ignore[arg-type]
        if joined[-1].mlp.down_proj.weight.is_cuda:
            torch.cuda.empty_cache()  # frees the separate matrices, whose blocks are too small for the next joined one
    return nn.ModuleList(joined)


def _is_plain(layer: LlamaDecoderLayer) -> bool:
    attention, network = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, network.gate_proj, network.up_proj)
    same = len({(part.weight.dtype, part.weight.device) for part in projections if type(part) is nn.Linear}) == 1
    parts = (layer, attention, network, *projections)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    return same and not hooked and all(type(part) is nn.Linear for part in projections)
