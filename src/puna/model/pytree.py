"""Registers classes that hold tensors as nodes of PyTorch's pytrees, for FSDP2's hooks, `tree_map` and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch.utils import _pytree  # private, but PyTorch 2.5, the oldest release supported, has no public name for it

Node = TypeVar("Node")


def move(value: Any, device: torch.device, non_blocking: bool = False) -> Any:
    """Returns a value with the tensors of its tuples and dataclasses on another device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, tuple):
        return tuple(move(item, device, non_blocking) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: move(getattr(value, item.name), device, non_blocking) for item in fields(value)}
        return replace(value, **parts)
    return value


def register_node(
    kind: type[Node], children: Callable[[Node], dict[str, Any]], build: Callable[[dict[str, Any]], Node]
) -> None:
    """Registers `kind` as a pytree node.

    Args:
        kind: a class; each may be registered only once.
        children: returns the parts of an instance, by name.
        build: returns an instance with these parts.
    """

    def flatten(node: Node) -> tuple[list[Any], list[str]]:
        parts = children(node)
        return list(parts.values()), list(parts)

    def flatten_with_keys(node: Node) -> tuple[list[tuple[_pytree.KeyEntry, Any]], list[str]]:
        parts = children(node)
        return [(_pytree.GetAttrKey(name), part) for name, part in parts.items()], list(parts)

    def unflatten(parts: Iterable[Any], names: list[str]) -> Node:
        return build(dict(zip(names, parts, strict=True)))

    _pytree.register_pytree_node(
        kind,
        flatten,
        unflatten,
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )
