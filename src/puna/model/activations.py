"""Activations of the feed-forward layer, by their names in configuration files. LLaMA models use "silu"."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.errors import ConfigError

Activation = Callable[[Tensor], Tensor]


def activation_of(config: LlamaConfig) -> Activation:
    """Returns a module of the activation that `config.hidden_act` names, or `hidden_act` itself if it is a callable."""
    if not isinstance(config.hidden_act, str):
        return config.hidden_act
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(
            f"hidden_act is {config.hidden_act!r}; it must be one of {', '.join(sorted(ACTIVATIONS))}, or a callable "
            "for any other activation"
        )
    return ACTIVATIONS[config.hidden_act]()


class FunctionActivation(nn.Module):
    """An activation that PyTorch does not have as a module."""

    def __init__(self, function: Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation of x."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Returns the name of the function, for printed models."""
        return self.function.__name__.strip("_")


def _gelu_10(x: Tensor) -> Tensor:
    """GELU clipped to +-10, intended for quantisation (arXiv:2004.09602)."""
    return F.gelu(x).clip(-10, 10)


def _quick_gelu(x: Tensor) -> Tensor:
    """Returns the sigmoid approximation of GELU (arXiv:1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


def _laplace(x: Tensor) -> Tensor:
    """The Laplace activation of Mega (arXiv:2209.10655, section 3.4), which approximates squared ReLU."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _relu2(x: Tensor) -> Tensor:
    """Squared ReLU (Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


_gelu_tanh = partial(nn.GELU, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "gelu_10": partial(FunctionActivation, _gelu_10), "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh, "gelu_new": _gelu_tanh, "gelu_python": nn.GELU, "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": nn.Hardswish, "laplace": partial(FunctionActivation, _laplace), "leaky_relu": nn.LeakyReLU,
    "linear": nn.Identity, "mish": nn.Mish, "quick_gelu": partial(FunctionActivation, _quick_gelu), "relu": nn.ReLU,
    "relu2": partial(FunctionActivation, _relu2), "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "silu": nn.SiLU,
    "swish": nn.SiLU, "tanh": nn.Tanh,
}  # fmt: skip
"""The modules of activations. As in transformers, `mlp.act_fn` is a module of the model, which hooks can observe."""
