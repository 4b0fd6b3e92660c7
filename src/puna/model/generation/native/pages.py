"""The pages of the native runtime's cache: which are free, which are shared, and the cache of one batch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from threading import Lock

from torch import Tensor

from puna.backend import page_count
from puna.errors import RequestError


class PagePool:
    """The free pages of a backend, for calls of several threads.

    Args:
        count: number of pages of the backend.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.used = 0
        """Number of pages that have ever been used. Only these have memory."""
        self._free: list[int] = []  # a heap, so that pages with low numbers are used first
        self._returned: deque[int] = deque()
        self._lock = Lock()

    def take(self) -> int:
        """Returns a free page.

        Raises:
            RequestError: if there is none.
        """
        with self._lock:
            while self._returned:
                heappush(self._free, self._returned.popleft())
            if self._free:
                return heappop(self._free)
            if self.used == self.count:
                raise RequestError(
                    f"generate() needs more than the {self.count} pages that fit in memory; generate fewer or shorter "
                    "texts at once, or set model.native_generation = False"
                )
            self.used += 1
            return self.used - 1

    def give(self, page: int) -> None:
        """Frees a page. This takes no lock, because the garbage collector may call it at any time."""
        self._returned.append(page)


class SharedPages:
    """The pages of one call of `generate()`, and how many sequences use each of them."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._users: Counter[int] = Counter()

    def new(self) -> int:
        """Returns a free page, which then has one user."""
        page = self._pool.take()
        self.use((page,))
        return page

    def is_shared(self, page: int) -> bool:
        """Returns whether several sequences use the page."""
        return self._users[page] > 1

    def use(self, pages: Iterable[int]) -> None:
        """Adds a sequence to the users of these pages."""
        self._users.update(pages)

    def drop(self, pages: Iterable[int]) -> None:
        """Reverts `use`; a page without users is free."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                del self._users[page]
                self._pool.give(page)


@dataclass(frozen=True)
class CachedRow:
    """The cached tokens of a row: its pages in order, and the number of tokens. Padding is not cached."""

    pages: tuple[int, ...] = ()
    length: int = 0


class NativeCache:
    """The cached tokens of a batch; immutable, as `KVCache` is. Sequences that continue one cache share its full pages.

    Args:
        shared: counts the users of the pages.
        sequences: the tokens of each row.
        mask: (rows, columns), 0 for padding.
    """

    def __init__(self, shared: SharedPages, sequences: tuple[CachedRow, ...], mask: Tensor) -> None:
        self.sequences, self.mask = sequences, mask
        self._shared = shared
        for sequence in sequences:
            shared.use(sequence.pages)

    def __del__(self) -> None:
        for sequence in self.sequences:
            self._shared.drop(sequence.pages)

    def get_seq_length(self) -> int:
        """Returns the number of cached columns, with padding; named as in `KVCache`."""
        return self.mask.shape[1]

    def reorder(self, rows: Tensor) -> NativeCache:
        """Returns a cache whose row i is row `rows[i]` of this one; rows may repeat."""
        return NativeCache(self._shared, tuple(self.sequences[row] for row in rows.tolist()), self.mask[rows])

    def crop(self, length: int) -> NativeCache:
        """Returns a cache of the first `length` columns."""
        mask = self.mask[:, :length]
        counts: list[int] = mask.sum(1).tolist()
        sequences = tuple(
            CachedRow(sequence.pages[: page_count(count)], count)
            for sequence, count in zip(self.sequences, counts, strict=True)
        )
        return NativeCache(self._shared, sequences, mask)
