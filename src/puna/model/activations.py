"""Activations of the feed-forward layer, by their names in configuration files. LLaMA models use "silu"."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import ConfigError

Activation = Callable[[Tensor], Tensor]


def activation_of(config: LlamaConfig) -> Activation:
    """Returns the activation that `config.hidden_act` names, or `hidden_act` itself if it is a callable."""
    if not isinstance(config.hidden_act, str):
        return config.hidden_act
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(
            f"hidden_act is {config.hidden_act!r}; it must be one of {', '.join(sorted(ACTIVATIONS))}, or a callable "
            "for any other activation"
        )
    return ACTIVATIONS[config.hidden_act]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


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


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu, "gelu_10": _gelu_10, "gelu_accurate": _gelu_tanh, "gelu_fast": _gelu_tanh, "gelu_new": _gelu_tanh,
    "gelu_python": F.gelu, "gelu_pytorch_tanh": _gelu_tanh, "hardswish": F.hardswish, "laplace": _laplace,
    "leaky_relu": F.leaky_relu, "linear": _identity, "mish": F.mish, "quick_gelu": _quick_gelu, "relu": F.relu,
    "relu2": _relu2, "relu6": F.relu6, "sigmoid": torch.sigmoid, "silu": F.silu, "swish": F.silu, "tanh": torch.tanh,
}  # fmt: skip
