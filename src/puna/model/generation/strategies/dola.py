"""DoLa (arXiv:2309.03883): chooses tokens by how much the last layer raises their logits over those of an early layer.

Legend: B rows, D hidden, V vocabulary, L layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.loop import Decoding, decode
from puna.model.generation.outputs import GenerateDecoderOnlyOutput
from puna.model.generation.settings import is_random
from puna.model.generation.strategies.greedy import most_likely
from puna.model.generation.strategies.sampling import draw
from puna.model.outputs import CausalLMOutputWithPast

RELATIVE_TOP = 0.1
"""Tokens with a probability below this fraction of the highest one are excluded (the paper's alpha)."""


def dola_decoding(decoding: Decoding) -> GenerateDecoderOnlyOutput:
    """Continues each row of the prompt, greedily or by sampling, from contrasted logits."""
    config = decoding.model.config
    layers = early_layers(decoding.settings.dola_layers, config.num_hidden_layers, config.tie_word_embeddings)

    def contrasted_step(decoding: Decoding, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any, Any]:
        attentions = decoding.requests("attentions")
        out = decoding.runner.forward(ids, mask, cache, attentions=attentions, hidden_states=True)
        return _contrast(decoding, out, layers), out.past_key_values, out

    choose = draw(decoding) if is_random(decoding.settings) else most_likely
    return decode(decoding, choose, contrasted_step)


def early_layers(choice: Any, count: int, tied: bool) -> list[int]:
    """Returns the layers among which the early layer is chosen; layer 0 is the embedding.

    Args:
        choice: "low", "high" or a list of layers; those from `count` on are left out.
        count: number of layers of the model, L.
        tied: whether the head is the embedding. The logits of layer 0 are then those of the token itself.

    Raises:
        RequestError: if `choice` has another value or names no early layer.
    """
    layers: list[int] = []
    if choice == "low":
        first = min(2, count - 1) if tied and count > 1 else 0
        layers = list(range(first, count // 2 if count <= 40 else 20, 2)) or [first]
    elif choice == "high":
        layers = list(range(count // 2 if count <= 40 else count - 20, count, 2))
    elif isinstance(choice, list | tuple) and all(isinstance(layer, int) and layer >= 0 for layer in choice):
        layers = [layer for layer in choice if layer < count]
    if not layers:
        raise RequestError(
            f"dola_layers is {choice!r}; it must be 'low', 'high' or a list of layers below {count}, the number of "
            "layers of the model"
        )
    return layers


def _contrast(decoding: Decoding, out: CausalLMOutputWithPast, layers: list[int]) -> Tensor:
    """Returns the log-probabilities of the last layer minus those of the early layer, (B, V)."""
    assert out.logits is not None and out.hidden_states is not None
    head = decoding.model.get_output_embeddings()
    last = out.logits[:, -1].float()
    early = torch.stack([head(out.hidden_states[layer][:, -1]).float() for layer in layers])  # (layers, B, V)
    chosen = early[0] if len(layers) == 1 else early[int(_divergence(last, early).argmax())]
    last, chosen = last.log_softmax(dim=-1), chosen.log_softmax(dim=-1)
    excluded = last < last.amax(dim=-1, keepdim=True) + math.log(RELATIVE_TOP)
    return (last - chosen).masked_fill(excluded, float("-inf"))


def _divergence(last: Tensor, early: Tensor) -> Tensor:
    """Returns how much each early layer, (layers, B, V), differs from the last one, (B, V): (layers,).

    The Jensen-Shannon divergence with the arguments of both Kullback-Leibler divergences exchanged, and the mean over
    rows and vocabulary, as in transformers: all rows use the same early layer.
    """
    middle = (last.softmax(dim=-1) + early.softmax(dim=-1)) / 2
    divergences = [
        torch.nn.functional.kl_div(logits.log_softmax(dim=-1).expand_as(middle), middle, reduction="none").mean(dim=-1)
        for logits in (last, early)
    ]
    return ((divergences[0] + divergences[1]) / 2).mean(dim=-1)
