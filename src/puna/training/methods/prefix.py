"""Prefix tuning: keys and values that precede the text in every layer (arXiv:2101.00190).

Legend: L layers, K kv heads, N virtual tokens, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puna.adapters import Adapter
from puna.adapters.runtime import check_rope
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.methods.attach import attach_virtual, trainable_parameter
from puna.training.methods.base import Method, Trainable
from puna.training.methods.initial_text import initial_ids, initialization
from puna.training.methods.targets import train_saved
from puna.training.settings import TrainingSettings


class Prefix(Method):
    """Trains the keys and values of virtual tokens, which begin as those of real tokens."""

    name = "prefix"
    kind = "prefix"
    options = frozenset({"adapter", "virtual_tokens", "initialization", "init_text", "quantized"})

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds keys and values, and the classification head of a model that has one."""
        check_rope(trainable.model.config)
        if start is not None:
            assert start.prefix is not None
            values = torch.from_numpy(start.prefix)
        else:
            values = _new_prefix(trainable, tokenizer, settings)
        prefix = trainable_parameter(trainable, "prompt_embeddings", values)
        attach_virtual(trainable, prefix.shape[3], lambda: prefix)
        train_saved(trainable, settings, start)

    def learning_rate(self, hidden: int) -> float:
        """Returns the lower end of the rates that are usual for prefixes, 5e-3 to 1e-2."""
        return 5e-3


def _new_prefix(trainable: Trainable, tokenizer: PreTrainedTokenizerBase | None, settings: TrainingSettings) -> Tensor:
    chosen = initialization(settings)
    values = _computed(trainable, initial_ids(trainable.model, tokenizer, settings))  # (L, 2, K, N, E)
    if chosen == "zero":
        return torch.zeros_like(values)
    if chosen == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        scale = values.std(dim=(2, 3, 4), keepdim=True).cpu()  # of the keys and of the values of each layer
        return torch.randn(values.shape, generator=generator) * scale
    return values


@torch.no_grad()
def _computed(trainable: Trainable, ids: Tensor) -> Tensor:
    """Returns the keys and values of tokens (N,) in the model, (L, 2, K, N, E) float32."""
    decoder: Any = trainable.model.get_decoder()
    training = decoder.training
    decoder.eval()
    cache = decoder(ids[None].to(trainable.model.device), use_cache=True, return_dict=True).past_key_values
    decoder.train(training)
    return torch.stack([torch.stack([keys[0], values[0]]) for keys, values in cache]).float()
