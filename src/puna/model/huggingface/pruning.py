"""`prune_heads`: removes attention heads from the projections q, k, v and o. transformers documents the
method for LLaMA, too, but calling it there raises an error.

A removed query head contributes nothing: the result equals that of a model whose columns of o for this head are zero.
A kv head is removed with the last query head that reads it (grouped queries).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.config.pruning import check_pruned_heads, has_equal_groups, kv_indices, pruned_heads, remaining_heads
from puna.errors import RequestError
from puna.model.base import LlamaBase


class Pruning(LlamaBase):
    """Methods that remove attention heads."""

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Removes query heads, and the kv heads that no remaining head reads, from attention layers.

        The removed heads are recorded in `config.pruned_heads`, which `save_pretrained` writes and `from_pretrained`
        reads. Only the classes of this package run a pruned model; other programs refuse its files.

        Args:
            heads_to_prune: for each layer the query heads to remove, numbered as before any pruning, such as
                {1: [0, 2]}. Heads that were removed before are ignored.

        Raises:
            ConfigError: if a layer or head does not exist, or a layer would have no heads; nothing is removed.
            RequestError: if a projection is not a plain linear layer (packed, or part of an adapter).
        """
        earlier = pruned_heads(self.config)
        requested = check_pruned_heads(self.config, heads_to_prune)
        union = {
            layer: sorted({*earlier.get(layer, []), *requested.get(layer, [])}) for layer in (*earlier, *requested)
        }
        union = check_pruned_heads(self.config, union)
        self._prune_heads(union)

    def _prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Does the work of `prune_heads`, whose name and argument are those of transformers."""
        heads = check_pruned_heads(self.config, heads_to_prune)
        layers = self.get_decoder().layers
        attentions: dict[int, Any] = {layer: layers[layer].self_attn for layer in heads}
        for attention in attentions.values():
            _check_projections(attention)
        config = copy(self.config)
        for layer, attention in attentions.items():
            config.pruned_heads = {layer: sorted({*heads[layer], *getattr(attention, "pruned_heads", ())})}
            _prune(attention, config, layer)
        self.config.pruned_heads = {**pruned_heads(self.config), **heads}


def _check_projections(attention: Any) -> None:
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        kind = type(getattr(attention, name))
        if kind is not nn.Linear:
            raise RequestError(
                f"{name} is a {kind.__name__}, from which no heads can be removed; call dequantize() on a packed "
                "model, and merge or remove adapters first"
            )


def _prune(attention: Any, config: LlamaConfig, layer: int) -> None:
    """Removes from a layer the heads that `config.pruned_heads` lists and that it still has."""
    removed = set(pruned_heads(config).get(layer, []))
    earlier = set(getattr(attention, "pruned_heads", ()))
    if removed <= earlier:
        return
    all_heads = range(config.num_attention_heads)
    group = config.num_attention_heads // config.num_key_value_heads
    present = [head for head in all_heads if head not in earlier]
    present_keys = sorted({head // group for head in present})
    queries, keys = remaining_heads(config, layer)
    q_rows = _rows([present.index(head) for head in queries], config.head_dim)
    kv_rows = _rows([present_keys.index(head) for head in keys], config.head_dim)
    _select(attention.q_proj, q_rows, 0)
    _select(attention.k_proj, kv_rows, 0)
    _select(attention.v_proj, kv_rows, 0)
    _select(attention.o_proj, q_rows, 1)
    indices = kv_indices(config, queries)
    device = "cpu" if attention.q_proj.weight.is_meta else attention.q_proj.weight.device
    repeated = None if has_equal_groups(indices) else torch.tensor(indices, device=device)
    attention.register_buffer("kv_heads", repeated, persistent=False)
    attention.pruned_heads = removed


def _rows(heads: list[int], width: int) -> Tensor:
    return (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()


def _select(linear: nn.Linear, kept: Tensor, axis: int) -> None:
    """Keeps the rows (axis 0) or columns (axis 1) `kept` of a linear layer."""
    kept = kept.to(linear.weight.device)
    for name, parameter in list(linear.named_parameters(recurse=False)):
        if axis < parameter.dim():
            new = parameter.detach().index_select(axis, kept)
            setattr(linear, name, nn.Parameter(new, parameter.requires_grad))
    linear.out_features, linear.in_features = linear.weight.shape
