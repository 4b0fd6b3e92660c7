"""`PagePool`: assigns the pages of the cache to sequences, and finds pages again by their tokens.

The keys and values of a page depend only on its tokens and the tokens before them. A page is therefore registered under
its tokens and the page before it. A full page never changes, so every sequence that begins with the same tokens reads
it; such pages are counted, not copied. The last page of a sequence is registered too, although it is not full. If a
sequence shares only the first tokens of a page, it continues in a copy of this page. With a `DiskCache`, full pages are
also written to files, in which later processes find them.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, page_count
from puna.engine.disk import DiskCache
from puna.errors import PunaError

Identity = bytes
"""Digest of a full page's tokens and all tokens before them, or of a salt. It is the same in every process."""

Key = tuple[Identity, tuple[int, ...]]
"""(parent, tokens) of a page; the parent is the page before it or, for the first page, the salt of the sequence.

Equal keys mean equal tokens from position 0 on: dictionaries compare all ids of a page.
"""

MIN_COPY = 8
"""Minimum number of tokens for which a page is copied. Fewer tokens are computed: that takes about as long."""

KEPT_TOKENS, KEPT_SHARE = 8192, 4
"""Registered pages that no sequence uses are kept for this many tokens, or for the pool's size / KEPT_SHARE if that is
more. A pool has space for many full contexts, so without a limit cached prefixes would slowly fill the memory."""


class PagePool:
    """Numbers, references and contents of all pages.

    Args:
        pages: number of pages of the backend's cache.
        sharing: whether pages are registered and shared.
        copy: copies the contents of a page to another page.
        disk: files of registered pages.

    Attributes:
        hits: number of times that a sequence has used a registered page instead of computing it.
        copies: number of times that a sequence has continued in a copy of a registered page.
        evictions: number of registered pages whose contents were given up.
        changes: number of changes of references and registered pages.
    """

    def __init__(
        self,
        pages: int,
        sharing: bool = True,
        copy: Callable[[int, int], None] | None = None,
        disk: DiskCache | None = None,
    ) -> None:
        self.pages = pages
        self.sharing = sharing
        self.copy = copy
        self.disk = disk
        self.hits = 0
        self.copies = 0
        self.evictions = 0
        self.changes = 0
        self._kept = max(KEPT_TOKENS // PAGE, pages // KEPT_SHARE)
        # Low numbers are used first, because backends allocate memory up to the highest number used.
        self._free: list[int] = []  # a heap of the numbers that were used before
        self._unused = 0  # numbers from here on have never been used
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # registered, not referenced; least recently used first
        self._pages_after: dict[Identity, dict[tuple[int, ...], int]] = {}  # parent -> tokens -> page
        self._key_of: dict[int, Key] = {}
        self._identities: dict[int, Identity] = {}  # of full pages that are registered, or were and are still in use
        self._unsaved: set[int] = set()  # registered pages that the disk cache had no time to write

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
        self.changes += 1
        return page

    def find(self, key: Key) -> int | None:
        """Returns the page that is registered under `key`."""
        parent, tokens = key
        return self._pages_after.get(parent, {}).get(tokens)

    def find_similar(self, key: Key) -> tuple[int, int]:
        """Returns (the number of a key's first tokens that a registered page holds, that page), at its maximum."""
        parent, tokens = key
        best, source = 0, -1
        for ids, page in self._pages_after.get(parent, {}).items():
            if ids[: best + 1] == tokens[: best + 1]:
                best, source = common_length(ids, tokens), page
        return best, source

    def root(self, salt: str) -> Identity:
        """Returns the parent of the first pages of all sequences with this salt."""
        return _digest(self.disk.fingerprint if self.disk is not None else b"", salt.encode())

    def identity(self, page: int) -> Identity:
        """Returns the identity of a full page that was registered: the parent of the pages after it."""
        return self._identities[page]

    def match(self, salt: str, tokens: Sequence[int], limit: int) -> tuple[int, int]:
        """Returns (number of registered pages that hold the first tokens, number of those that are not referenced).

        Args:
            limit: number of tokens that the pages may hold.
        """
        parent = self.root(salt)
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
        self.changes += 1
        if page in self._unsaved:
            self._save(page)

    def register(self, page: int, key: Key) -> int:
        """Registers a full page of a sequence; returns the page that the sequence must use from now on.

        Two sequences may have computed equal pages at the same time. Then the second one uses the first one's page, so
        that all pages after it have the same parent.
        """
        self.unregister(page)
        registered = self.find(key)
        if registered is not None:
            self.share(registered)
            self.release([page])
            return registered
        self._add(page, key)
        self._identities[page] = _digest_of(key)
        self._save(page)
        return page

    def load(self, key: Key, seconds: float) -> NDArray[np.uint8] | None:
        """Returns the contents of a full page from the disk, if reading takes less than `seconds`; else None."""
        return self.disk.load(_digest_of(key), *key, seconds) if self.disk is not None else None

    def restore(self, page: int, key: Key, data: NDArray[np.uint8]) -> bool:
        """Replaces the contents of a page of a sequence by those that `load` has returned, and registers it.

        Returns False if the backend cannot write the page. No other page may be registered under the key.
        """
        assert self.disk is not None and self.find(key) is None
        self.unregister(page)
        try:
            self.disk.restore(page, data)
        except PunaError:  # memory, for example: the tokens are computed instead, and the forward pass reports it
            return False
        self._add(page, key)
        self._identities[page] = _digest_of(key)
        return True

    def register_part(self, page: int, key: Key) -> None:
        """Registers a page that holds the tokens of `key`, unless another registered page holds them.

        The page may change after these tokens.
        """
        self.unregister(page)
        if self.find_similar(key)[0] < len(key[1]):
            self._add(page, key)

    def unregister(self, page: int) -> None:
        """Removes a referenced page from the registered pages; does nothing if it is not one of them."""
        if page in self._key_of:
            parent, tokens = self._key_of.pop(page)
            del self._pages_after[parent][tokens]
            if not self._pages_after[parent]:
                del self._pages_after[parent]
            self._unsaved.discard(page)
            self.changes += 1

    def discard(self, pages: Sequence[int]) -> None:
        """Removes pages from the registered ones, and from the disk, because their contents may be wrong."""
        if self.disk is not None:
            self.disk.remove([self._identities[page] for page in pages if page in self._identities])
        for page in pages:
            self.unregister(page)

    def copy_part(self, source: int, target: int) -> bool:
        """Copies a registered page to a referenced page; returns False if the backend cannot copy it."""
        assert self.copy is not None
        try:
            self.copy(source, target)
        except PunaError:  # memory, for example: the tokens are computed instead, and the forward pass reports it
            return False
        self.copies += 1
        return True

    def release(self, pages: Sequence[int]) -> None:
        """Removes a reference from each page of a sequence. Registered pages are kept until they are evicted.

        The last pages are the first to be evicted: a page cannot be found without the pages before it.
        """
        if self.disk is not None and (used := [self._identities[page] for page in pages if page in self._identities]):
            self.disk.touch(used[::-1])
        for page in reversed(pages):
            self._references[page] -= 1
            if not self._references[page]:
                del self._references[page]
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._identities.pop(page, None)
                    heapq.heappush(self._free, page)
        while len(self._idle) > self._kept:
            heapq.heappush(self._free, self._evict())
        self.changes += 1

    def _add(self, page: int, key: Key) -> None:
        parent, tokens = key
        self._pages_after.setdefault(parent, {})[tokens] = page
        self._key_of[page] = key
        self.changes += 1

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        self.unregister(page)
        self._identities.pop(page, None)
        self.evictions += 1
        return page

    def _save(self, page: int) -> None:
        if self.disk is not None:
            saved = self.disk.save(page, self._identities[page], *self._key_of[page])
            (self._unsaved.discard if saved else self._unsaved.add)(page)


class PageTable:
    """The pages of one sequence.

    Attributes:
        pages: page i holds the positions from i * PAGE on.
    """

    def __init__(self, pool: PagePool, salt: str) -> None:
        self.pages: list[int] = []
        self._pool = pool
        self._root = pool.root(salt)
        self._registered = 0  # number of registered pages; they are the first ones

    def next_key(self, tokens: Sequence[int], limit: int) -> Key:
        """Returns the key of the page after the full registered ones, which holds the tokens before `limit`."""
        start = self._registered * PAGE
        parent = self._pool.identity(self.pages[self._registered - 1]) if self._registered else self._root
        return parent, tuple(tokens[start : min(start + PAGE, limit)])

    def share(self, tokens: Sequence[int], limit: int, known: int = 0) -> int:
        """Continues the registered pages with those of other sequences; returns the number of tokens in all of them.

        Args:
            limit: maximum number of tokens to share.
            known: number of tokens whose keys and values the pages already hold. Those in the page after the registered
                ones are overwritten only by a page with the same tokens and more.
        """
        while (self._registered + 1) * PAGE <= limit:
            page = self._pool.find(self.next_key(tokens, limit))
            if page is None:
                break
            self._pool.share(page)
            self._pool.hits += 1
            self._replace(page)
        least = max(MIN_COPY, known - self._registered * PAGE + 1)
        return self._registered * PAGE + self._share_part(self.next_key(tokens, limit), least)

    @property
    def full(self) -> int:
        """Number of tokens in the registered full pages."""
        return self._registered * PAGE

    def restore(self, key: Key, data: NDArray[np.uint8]) -> bool:
        """Uses contents from the disk for the page after the registered ones, which is reserved.

        Returns False if the backend cannot write them.

        Args:
            key: the page's key, of `next_key`.
            data: the contents that `PagePool.load` has returned.
        """
        restored = self._pool.restore(self.pages[self._registered], key, data)
        self._registered += restored
        return restored

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
            key = self.next_key(tokens, length)
            self.pages[self._registered] = self._pool.register(self.pages[self._registered], key)
            self._registered += 1

    def register_part(self, tokens: Sequence[int], length: int) -> None:
        """Registers the page that is not full, if it holds enough tokens to be copied."""
        if self._pool.sharing and length - self._registered * PAGE >= MIN_COPY:
            self._pool.register_part(self.pages[self._registered], self.next_key(tokens, length))

    def unregister(self) -> None:
        """Removes all pages from the registered ones, because their contents may be wrong."""
        self._pool.discard(self.pages)

    def clear(self) -> None:
        """Releases all pages."""
        pages, self.pages, self._registered = self.pages, [], 0
        self._pool.release(pages)

    def _share_part(self, key: Key, least: int) -> int:
        """Copies the page that holds most of a key's tokens to the next page; returns the number of these tokens.

        Copies nothing, and returns 0, if the page holds fewer than `least` of them.
        """
        pool = self._pool
        count, source = pool.find_similar(key) if pool.copy is not None and len(key[1]) >= least else (0, -1)
        if count < least:
            return 0
        pool.share(source)  # so that taking a page does not evict the source
        try:
            if len(self.pages) == self._registered:
                if not pool.available:
                    return 0
                self.pages.append(pool.take())
            return count if pool.copy_part(source, self.pages[self._registered]) else 0
        finally:
            pool.release([source])

    def _replace(self, page: int) -> None:
        """Uses `page` as the next registered page, in place of a reserved one if there is one."""
        reserved = self.pages[self._registered : self._registered + 1]
        self.pages[self._registered : self._registered + 1] = [page]
        self._registered += 1
        self._pool.release(reserved)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the number of tokens with which both sequences begin."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _digest_of(key: Key) -> Identity:
    parent, tokens = key
    return _digest(parent, array("q", tokens).tobytes())


def _digest(parent: Identity, data: bytes) -> Identity:
    return hashlib.blake2b(data, key=parent, digest_size=32).digest()
