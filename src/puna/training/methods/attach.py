"""Adds trainable parameters to a `Trainable`, with the hooks that apply them.

Legend: R rank, I inputs and O outputs of a matrix, T tokens, D hidden, N virtual tokens, n trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.adapters.torch_hooks import add_change, add_factors, add_network, add_virtual_tokens, find_module
from puna.checkpoint.names import EMBEDDING, SCORE
from puna.model.quantized import QuantEmbedding, QuantLinear, float_module
from puna.training.methods.base import BottleneckParameters, LowRankParameters, ScalingParameters, Trainable


def trainable_parameter(trainable: Trainable, name: str, values: Tensor) -> nn.Parameter:
    """Adds a parameter with initial values, in float32 on the device of the model."""
    parameter = nn.Parameter(values.detach().to(trainable.model.device, torch.float32, copy=True))
    trainable.parameters[name] = parameter
    return parameter


def attach_low_rank(trainable: Trainable, name: str, change: LowRankParameters) -> None:
    """Applies the low-rank change of a linear layer, whose parameters exist."""
    module, index = find_module(trainable.model, name), len(trainable.low_rank)
    trainable.low_rank[name] = change

    def delta(x: Tensor) -> Tensor:
        mask = trainable.dropout_mask(index, x, change.dropout)
        x = x if mask is None else x * mask
        out: Tensor = F.linear(F.linear(x, change.a), change.b) * change.scale  # (..., O)
        return out

    factors = None if change.magnitude is None else partial(row_factors, module, change)
    trainable.on_release(add_change(module, delta, factors).remove)


def row_factors(module: nn.Module, change: LowRankParameters) -> Tensor:
    """Returns DoRA's factors of the outputs, (O,): the magnitudes over the norms, which have no gradients."""
    assert change.magnitude is not None
    factors: Tensor = change.magnitude / row_norms(module, change.a, change.b, change.scale)
    return factors


@torch.no_grad()
def row_norms(module: nn.Module, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Returns the norms of the rows of W + scale b a, (O,), for a part of a packed W at a time."""
    if not isinstance(module, QuantLinear):
        weight = module.weight
        assert isinstance(weight, Tensor)
        norm: Tensor = torch.linalg.vector_norm(weight.float() + scale * (b @ a), dim=1)
        return norm
    packed = module.packed
    norms = [
        torch.linalg.vector_norm(packed.unpack(packed.blocks[start:end]) + scale * (b[start:end] @ a), dim=1)
        for start, end in packed.parts()
    ]
    return torch.cat(norms)


def attach_scaling(trainable: Trainable, name: str, scaling: ScalingParameters) -> None:
    """Multiplies the inputs or the outputs of a linear layer."""
    trainable.scalings[name] = scaling
    trainable.on_release(add_factors(find_module(trainable.model, name), scaling.factors, scaling.side).remove)


def attach_bottleneck(trainable: Trainable, name: str, network: BottleneckParameters) -> None:
    """Adds a small network after a linear layer."""
    trainable.bottlenecks[name] = network
    parts = (network.down, network.down_bias, network.up, network.up_bias)
    module = find_module(trainable.model, name)
    trainable.on_release(add_network(module, parts, network.activation).remove)


def attach_virtual(trainable: Trainable, count: int, values: Callable[[], Tensor]) -> None:
    """Adds a soft prompt (N, D) or a prefix (L, 2, K, N, E), as the kind of the trainable says."""
    assert trainable.kind in ("prompt", "prefix")
    trainable.virtual = values
    hook = add_virtual_tokens(trainable.model, trainable.kind, count, values)
    trainable.on_release(hook.remove)


def attach_token_rows(trainable: Trainable, name: str, ids: Tensor, rows: nn.Parameter) -> None:
    """Replaces the rows (n, D) of tokens (n,) of the embedding or of the head."""
    trainable.token_rows[name] = (ids, rows)
    module = find_module(trainable.model, name)
    index = torch.full((trainable.model.config.vocab_size,), -1, device=ids.device)
    index[ids] = torch.arange(len(ids), device=ids.device)

    def embed(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        row = index[inputs[0]]  # (..., T), -1 for other tokens
        return torch.where((row >= 0)[..., None], rows[row.clamp(min=0)].to(output.dtype), output)

    def score(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        result: Tensor = output.index_copy(-1, ids, F.linear(inputs[0], rows.to(inputs[0].dtype)).to(output.dtype))
        return result

    trainable.on_release(module.register_forward_hook(embed if name == EMBEDDING else score).remove)


def train_weights(trainable: Trainable, names: Iterable[str]) -> None:
    """Trains parameters of the model itself, given by name. A parameter in another type gets float32 master values."""
    weights = dict(trainable.model.named_parameters())
    for name in names:
        parameter = weights[name]
        parameter.requires_grad_(True)
        trainable.on_release(partial(parameter.requires_grad_, False))
        if parameter.dtype == torch.float32:
            trainable.parameters[name] = parameter
            continue
        master = trainable_parameter(trainable, name, parameter)
        trainable.masters[name] = (master, parameter)
        hook = parameter.register_post_accumulate_grad_hook(partial(_move_gradient, master))  # type: ignore[no-untyped-call]
        trainable.on_release(hook.remove)


def _move_gradient(master: nn.Parameter, parameter: Tensor) -> None:
    """Adds the gradient of a parameter to that of its master values."""
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.float()
    else:
        master.grad.add_(parameter.grad)
    parameter.grad = None


def train_copy(trainable: Trainable, name: str, values: Tensor | None = None) -> None:
    """Trains a copy of a tensor of the model, which replaces the tensor until the release.

    The copy of a classification head is float32, and the head computes in float32. Other copies have the type of the
    model, because the modules that follow them need it.

    Args:
        values: initial values; by default those of the model.
    """
    model, attribute = trainable.model, name.rpartition(".")[2]
    module = find_module(model, name)
    if isinstance(module, QuantLinear | QuantEmbedding):
        weight = nn.Parameter(module.packed.dequantize(model.dtype))
        owner = find_module(model, name.rpartition(".")[0])
        child = name.split(".")[-2]
        trainable.on_release(partial(setattr, owner, child, module))
        module = float_module(module, weight)
        setattr(owner, child, module)
    old = module.get_parameter(attribute)
    dtype = torch.float32 if name == SCORE else old.dtype
    copy = nn.Parameter((old if values is None else values).detach().to(old.device, dtype, copy=True))
    assert copy.shape == old.shape, "the initial values have the shape of the tensor"
    setattr(module, attribute, copy)
    trainable.on_release(partial(setattr, module, attribute, old))
    if name == SCORE:
        hook = module.register_forward_pre_hook(lambda layer, inputs: (inputs[0].float(), *inputs[1:]))
        trainable.on_release(hook.remove)
    train_weights(trainable, [name])
    trainable.saved.append(name)


def matrix_rows(module: nn.Module, ids: Tensor) -> Tensor:
    """Returns rows of an embedding or a linear layer, (n, D) float32, also if the matrix is packed."""
    if isinstance(module, QuantLinear | QuantEmbedding):
        return module.packed.unpack(module.packed.blocks[ids])
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()[ids].float()


def is_tied(trainable: Trainable) -> bool:
    """Whether the language-model head shares the matrix of the embedding."""
    return trainable.model.head == "lm" and bool(trainable.model.config.tie_word_embeddings)
