"""Pruned attention heads: `config.pruned_heads` maps a layer to the query heads that were removed from it.

The remaining heads keep their order. A kv head is removed with the last query head that reads it. Numbers of heads
always refer to the model before pruning, and so do `num_attention_heads` and `num_key_value_heads`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from puna.config.llama import LlamaConfig
from puna.errors import ConfigError, show


def pruned_heads(config: LlamaConfig) -> dict[int, list[int]]:
    """Returns the removed query heads of each pruned layer, sorted.

    Raises:
        ConfigError: if a layer or head does not exist, or a layer has no remaining head.
    """
    return check_pruned_heads(config, config.pruned_heads or {})


def check_pruned_heads(config: LlamaConfig, heads: Mapping[Any, Iterable[int]]) -> dict[int, list[int]]:
    """Checks a mapping from layers to removed heads; returns it with integers and sorted heads (JSON keys are text)."""
    result = {}
    if not isinstance(heads, Mapping):
        raise ConfigError(f"pruned_heads is {show(heads)}; it must map layers to lists of heads, such as {{0: [1, 2]}}")
    for key, value in heads.items():
        layer = _whole(key, config.num_hidden_layers, "layer")
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise ConfigError(f"pruned_heads of layer {layer} is {show(value)}; it must be a list of heads")
        removed = sorted({_whole(head, config.num_attention_heads, f"head of layer {layer}") for head in value})
        if len(removed) == config.num_attention_heads:
            raise ConfigError(f"pruned_heads of layer {layer} removes all {len(removed)} heads; keep at least one")
        if removed:
            result[layer] = removed
    return result


def _whole(value: Any, limit: int, name: str) -> int:
    try:
        number = int(value) if isinstance(value, str) else value.__index__()
    except (AttributeError, ValueError):
        number = -1
    if isinstance(value, bool) or not 0 <= number < limit:
        raise ConfigError(f"pruned_heads has the {name} {show(value)}; it must be a whole number from 0 to {limit - 1}")
    return int(number)


def remaining_heads(config: LlamaConfig, layer: int) -> tuple[list[int], list[int]]:
    """Returns the remaining query heads of a layer, and its remaining kv heads."""
    removed = pruned_heads(config).get(layer, [])
    queries = [head for head in range(config.num_attention_heads) if head not in removed]
    group = config.num_attention_heads // config.num_key_value_heads
    return queries, sorted({head // group for head in queries})


def kv_indices(config: LlamaConfig, queries: Iterable[int]) -> list[int]:
    """Returns, for each remaining query head, the position of its kv head among the remaining kv heads."""
    group = config.num_attention_heads // config.num_key_value_heads
    kv_heads = [head // group for head in queries]
    order = sorted(set(kv_heads))
    return [order.index(head) for head in kv_heads]


def cached_heads(config: LlamaConfig) -> list[int]:
    """Returns the number of heads in each layer's cache.

    These are the kv heads, or the query heads if pruning left groups of different sizes, whose keys and values are
    repeated for each query head before they are cached.
    """
    heads = [config.num_key_value_heads] * config.num_hidden_layers
    for layer in pruned_heads(config):
        queries, keys = remaining_heads(config, layer)
        heads[layer] = len(keys) if has_equal_groups(kv_indices(config, queries)) else len(queries)
    return heads


def has_equal_groups(indices: list[int]) -> bool:
    """Whether every kv head is read by the same number of consecutive query heads."""
    return len({indices.count(head) for head in indices}) == 1
