"""Token ids as callers hand them over: numbers, lists, arrays, tensors."""

from __future__ import annotations

import operator
from typing import Any

from puna.errors import TokenizerError


def as_ids(value: Any) -> list[int]:
    """One sequence of ids as a list of int.

    Raises:
        TokenizerError: there is something in it that is no integer.
    """
    listed = value if isinstance(value, (list, tuple, int)) else _tolist(value)
    if isinstance(listed, int):
        listed = [listed]
    try:
        return [operator.index(item) for item in listed]
    except TypeError as exc:
        raise TokenizerError(f"token ids must be integers ({exc}); use batch_decode for several sequences") from exc


def _tolist(value: Any) -> Any:
    try:
        return value.tolist()
    except AttributeError:
        raise TokenizerError(
            f"a {type(value).__name__} is no sequence of token ids; pass an integer, a list, an array or a tensor"
        ) from None
