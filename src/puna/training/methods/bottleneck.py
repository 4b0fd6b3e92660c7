"""Bottleneck adapters: small networks after the sublayers (arXiv:1902.00751, arXiv:2005.00247). R width, O outputs."""

from __future__ import annotations

import math

import torch

from puna.adapters import Adapter
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import derived_seed
from puna.training.methods.attach import attach_bottleneck, trainable_parameter
from puna.training.methods.base import BottleneckParameters, Method, Trainable
from puna.training.methods.targets import select_matrices, train_saved
from puna.training.settings import TrainingSettings

_TARGETS = {"feedforward": ("down_proj",), "both": ("o_proj", "down_proj")}
_PARTS = ("down", "down_bias", "up", "up_bias")


class BottleneckAdapters(Method):
    """Trains a network with a residual connection after the feed-forward network, or after both sublayers."""

    name = "bottleneck"
    kind = "bottleneck"
    options = frozenset(
        {"adapter", "layers", "modules_to_save", "bottleneck_size", "bottleneck_after", "activation", "quantized"}
    )

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds the networks, which change nothing at the beginning."""
        if start is not None:
            initial = {
                name: ([torch.from_numpy(getattr(item, part)) for part in _PARTS], item.activation)
                for name, item in start.bottlenecks.items()
            }
        else:
            shapes = select_matrices(trainable, settings, _TARGETS[settings.bottleneck_after])
            initial = {
                name: (_new_network(shape[0], settings, index), settings.activation)
                for index, (name, shape) in enumerate(shapes.items())
            }
        for name, (values, activation) in initial.items():
            module = name.removesuffix(".weight")
            down, down_bias, up, up_bias = [
                trainable_parameter(trainable, f"{module}.bottleneck_{part}", value)
                for part, value in zip(_PARTS, values, strict=True)
            ]
            attach_bottleneck(trainable, name, BottleneckParameters(down, down_bias, up, up_bias, activation))
        train_saved(trainable, settings, start)


def _new_network(outputs: int, settings: TrainingSettings, index: int) -> list[torch.Tensor]:
    """Returns initial values: `down` uniform, as of a linear layer, and all others zero."""
    width = settings.bottleneck_size
    generator = torch.Generator().manual_seed(derived_seed(settings.seed, index))
    down = torch.empty(width, outputs).uniform_(-1, 1, generator=generator) / math.sqrt(outputs)
    return [down, torch.zeros(width), torch.zeros(outputs, width), torch.zeros(outputs)]
