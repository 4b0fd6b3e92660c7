"""`METHODS`: every training method by name."""

from __future__ import annotations

from puna.training.methods.base import Method

_ALL: tuple[Method, ...] = ()

METHODS = {method.name: method for method in _ALL}
