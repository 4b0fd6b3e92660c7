"""`PagePool`: assigns the pages of the cache to sequences, and finds pages again by their tokens.

A page that is full never changes, and its keys and values depend only on its tokens and the tokens before them. It is
therefore registered under its tokens and the page before it, and every sequence that begins with the same tokens can
read it. Pages are counted, not copied; the backend only sees their numbers.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Sequence

from puna.backend import PAGE, page_count

Parent = int | str
"""What precedes a page: the identity of the page before it or, for the first page, the salt of the sequence."""

Key = tuple[Parent, tuple[int, ...]]
"""(parent, tokens) of a full page. Equal keys mean equal tokens from position 0 on: dictionaries compare all ids."""

KEPT_TOKENS, KEPT_SHARE = 8192, 4
"""Registered pages that no sequence uses are kept for this many tokens, or for the pool's size / KEPT_SHARE if that is
more. A pool has space for many full contexts, so without a limit cached prefixes would slowly fill the memory."""


class PagePool:
    """Numbers, references and contents of all pages.

    Args:
        pages: number of pages of the backend's cache.
        sharing: whether full pages are registered and shared.

    Attributes:
        hits: number of times that a sequence has used a registered page instead of computing it.
        evictions: number of registered pages whose contents were given up.
    """

    def __init__(self, pages: int, sharing: bool = True) -> None:
        self.pages = pages
        self.sharing = sharing
        self.hits = 0
        self.evictions = 0
        self._kept = max(KEPT_TOKENS // PAGE, pages // KEPT_SHARE)
        # Low numbers are used first, because backends allocate memory up to the highest number used.
        self._free: list[int] = []  # a heap of the numbers that were used before
        self._unused = 0  # numbers from here on have never been used
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # registered, not referenced; least recently used first
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._identities: dict[int, int] = {}
        self._next_identity = itertools.count(1)

    @property
    def available(self) -> int:
        """Number of pages that `take` can return: those that no sequence uses."""
        return self.pages - len(self._references)

    @property
    def cached(self) -> int:
        """Number of registered pages that no sequence uses."""
        return len(self._idle)

    def take(self) -> int:
        """Returns a page for new tokens. The caller has checked `available`."""
        if self._free:
            page = heapq.heappop(self._free)
        elif self._unused < self.pages:
            page, self._unused = self._unused, self._unused + 1
        else:
            page = self._evict()
        self._references[page] = 1
        return page

    def find(self, key: Key) -> int | None:
        """Returns the page that is registered under `key`."""
        return self._page_of.get(key)

    def identity(self, page: int) -> int:
        """Returns the identity of a registered page: the parent of the pages after it. It is never used again."""
        return self._identities[page]

    def match(self, salt: str, tokens: Sequence[int], limit: int) -> tuple[int, int]:
        """Returns (number of registered pages that hold the first tokens, number of those that are not referenced).

        Args:
            limit: number of tokens that the pages may hold.
        """
        parent: Parent = salt
        count = idle = 0
        while (count + 1) * PAGE <= limit:
            page = self.find((parent, tuple(tokens[count * PAGE : (count + 1) * PAGE])))
            if page is None:
                break
            parent = self.identity(page)
            count += 1
            idle += page in self._idle
        return count, idle

    def share(self, page: int) -> None:
        """Adds a reference to a registered page."""
        self._references[page] = self._references.get(page, 0) + 1
        self._idle.pop(page, None)

    def register(self, page: int, key: Key) -> int:
        """Registers a full page of a sequence; returns the page that the sequence must use from now on.

        Two sequences may have computed equal pages at the same time. Then the second one uses the first one's page, so
        that all pages after it have the same parent.
        """
        registered = self.find(key)
        if registered is not None:
            self.share(registered)
            self.release([page])
            return registered
        self._page_of[key], self._key_of[page] = page, key
        self._identities[page] = next(self._next_identity)
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Removes a reference from each page of a sequence. Registered pages are kept until they are evicted.

        The last pages are the first to be evicted: a page cannot be found without the pages before it.
        """
        for page in reversed(pages):
            self._references[page] -= 1
            if not self._references[page]:
                del self._references[page]
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    heapq.heappush(self._free, page)
        while len(self._idle) > self._kept:
            heapq.heappush(self._free, self._evict())

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)], self._identities[page]
        self.evictions += 1
        return page


class PageTable:
    """The pages of one sequence.

    Attributes:
        pages: page i holds the positions from i * PAGE on.
    """

    def __init__(self, pool: PagePool, salt: str) -> None:
        self.pages: list[int] = []
        self._pool = pool
        self._salt = salt
        self._registered = 0  # number of registered pages; they are the first ones

    def next_key(self, tokens: Sequence[int]) -> Key | None:
        """Returns the key of the page after the registered ones; None if `tokens` do not fill this page."""
        start = self._registered * PAGE
        if start + PAGE > len(tokens):
            return None
        parent = self._pool.identity(self.pages[self._registered - 1]) if self._registered else self._salt
        return parent, tuple(tokens[start : start + PAGE])

    def share(self, tokens: Sequence[int], limit: int) -> int:
        """Continues the registered pages with those of other sequences; returns the number of tokens in all of them.

        Args:
            limit: maximum number of tokens in registered pages.
        """
        while (self._registered + 1) * PAGE <= limit:
            key = self.next_key(tokens)
            page = None if key is None else self._pool.find(key)
            if page is None:
                break
            self._pool.share(page)
            self._pool.hits += 1
            self._replace(page)
        return self._registered * PAGE

    def missing(self, length: int) -> int:
        """Returns how many pages the first `length` positions still need."""
        return max(0, page_count(length) - len(self.pages))

    def reserve(self, length: int) -> None:
        """Takes pages for the first `length` positions. The caller has compared `missing` with the available pages."""
        for _ in range(self.missing(length)):
            self.pages.append(self._pool.take())

    def register(self, tokens: Sequence[int], length: int) -> None:
        """Registers the pages that are full now that the cache holds `length` positions."""
        while self._pool.sharing and (self._registered + 1) * PAGE <= length:
            key = self.next_key(tokens)
            assert key is not None
            self.pages[self._registered] = self._pool.register(self.pages[self._registered], key)
            self._registered += 1

    def clear(self) -> None:
        """Releases all pages."""
        pages, self.pages, self._registered = self.pages, [], 0
        self._pool.release(pages)

    def _replace(self, page: int) -> None:
        """Uses `page` as the next registered page, in place of a reserved one if there is one."""
        reserved = self.pages[self._registered : self._registered + 1]
        self.pages[self._registered : self._registered + 1] = [page]
        self._registered += 1
        self._pool.release(reserved)
