"""`LoadedAdapter`: an adapter as the engine uses it. The backend holds its changes of matrices.

Legend: N virtual tokens, D hidden, L layers, K kv heads, E head width, t tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Backend, page_count

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter that a backend has loaded.

    A sequence with a soft prompt or a prefix begins with N virtual tokens, which take the positions 0 to N - 1. They
    have the id 0, and `digest` distinguishes their pages from those of other sequences.

    Attributes:
        digest: identifies the adapter's contents. Only requests with the same digest share pages.
        number: the number that `Backend.load_adapter` returned; 0 if the adapter changes no matrix.
        embed: returns the embeddings of token ids, (t, D), if the adapter changes the embedding.
        prompt: (N, D), the embeddings of the virtual tokens of a soft prompt.
        prefix: (L, 2, K, N, E), the keys (after RoPE) and values of the virtual tokens of a prefix.
        name: the name in statistics.
    """

    digest: str
    number: int = 0
    embed: Callable[[Sequence[int]], Floats] | None = None
    prompt: Floats | None = None
    prefix: Floats | None = None
    name: str = ""

    @property
    def prefix_length(self) -> int:
        """Number of virtual tokens whose keys and values are given."""
        return 0 if self.prefix is None else int(self.prefix.shape[3])

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens."""
        return self.prefix_length if self.prompt is None else len(self.prompt)

    def embeddings(self, tokens: Sequence[int], start: int) -> Floats | None:
        """Returns the inputs of the first layer for a chunk, (t, D); None if they are the model's embeddings."""
        if self.prompt is not None and start < len(self.prompt):
            return self.prompt[start : start + len(tokens)]
        return None if self.embed is None else self.embed(tokens)

    def fill(self, backend: Backend, pages: Sequence[int], start: int) -> None:
        """Writes the prefix from position `start`, the first one of a page, into the pages of a sequence."""
        if self.prefix is not None and start < self.prefix_length:
            keys, values = self.prefix[:, 0, :, start:], self.prefix[:, 1, :, start:]  # (L, K, N - start, E)
            backend.fill_pages(pages[start // PAGE : page_count(self.prefix_length)], keys, values)
