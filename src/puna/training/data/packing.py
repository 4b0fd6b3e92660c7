"""Chooses the documents of a forward pass. Documents never see each other, so the choice changes no result."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Lengths: TypeAlias = "Sequence[int] | NDArray[np.int32]"


def pack(lengths: Lengths, max_tokens: int) -> list[list[int]]:
    """Returns groups of documents of at most `max_tokens` tokens, by best-fit decreasing.

    The longest document is placed first, into the fullest group that has space for it; ties are broken by the lower
    index. A document of more than `max_tokens` is a group. The indices of a group ascend, and groups are ordered by
    their first index. The number of groups is at most 11/9 of the minimum, plus 6/9 (Johnson 1973).
    """
    groups: list[list[int]] = []
    free: list[tuple[int, int]] = []  # free tokens and index of each group, ascending
    for index in np.argsort(-np.asarray(lengths, np.int64), kind="stable"):
        length = int(lengths[index])
        position = bisect_left(free, (length, -1))
        if position < len(free):
            space, group = free.pop(position)
        else:
            space, group = max_tokens, len(groups)
            groups.append([])
        groups[group].append(int(index))
        if space > length:
            insort(free, (space - length, group))
    return sorted(sorted(group) for group in groups)
