"""Our classes that hold tensors, as nodes of the trees PyTorch walks over (hooks of FSDP2, `tree_map`, export)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch.utils import _pytree  # the only door: releases from 2.5 on have no public name for it

Held = TypeVar("Held")


def register_tree(
    kind: type[Held], branches: Callable[[Held], dict[str, Any]], build: Callable[[dict[str, Any]], Held]
) -> None:
    """Makes `kind` a node.

    Args:
        kind: a class; each may be registered once.
        branches: what an instance holds, by name.
        build: an instance of such parts.
    """

    def flatten(held: Held) -> tuple[list[Any], tuple[str, ...]]:
        parts = branches(held)
        return list(parts.values()), tuple(parts)

    def flatten_with_keys(held: Held) -> tuple[list[tuple[_pytree.KeyEntry, Any]], tuple[str, ...]]:
        parts = branches(held)
        return [(_pytree.GetAttrKey(name), part) for name, part in parts.items()], tuple(parts)

    def unflatten(parts: Iterable[Any], names: tuple[str, ...]) -> Held:
        return build(dict(zip(names, parts, strict=True)))

    _pytree.register_pytree_node(
        kind,
        flatten,
        unflatten,
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )
