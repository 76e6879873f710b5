"""Pages of the key-value cache: who holds them, and which hold a known prefix."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


def prefix_root(base_digest: str, mask_digest: str | None, salt: str) -> bytes:
    """What the hash chain of a sequence's pages starts from: entries are shared only below it.

    Args:
        mask_digest: None for the model without a mask.
    """
    mask = "dense" if mask_digest is None else mask_digest
    return hashlib.sha256(f"{base_digest}\n{mask}\n{salt}".encode()).digest()


def extend_chain(previous: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of a page that holds `token_ids` after the pages that `previous` stands for."""
    return hashlib.sha256(previous + np.asarray(token_ids, dtype="<i4").tobytes()).digest()


class PagePool:
    """Hands out page numbers, counts their holders, and remembers what released pages hold.

    A released page that was registered under a key stays findable until its room is needed; the
    least recently released goes first.

    Args:
        pages: how many there are.
    """

    def __init__(self, pages: int) -> None:
        self.total = pages
        self._free = list(range(pages - 1, -1, -1))
        self._holders = [0] * pages
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # registered, held by nobody

    @property
    def available(self) -> int:
        """Pages that `allocate` could hand out."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.total - self.available

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` pages of unknown content; None, and nothing taken, if there are fewer."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                del self._page_of[self._key_of.pop(page)]
            self._holders[page] = 1
            taken.append(page)
        return taken

    def find(self, key: bytes) -> int | None:
        """Take another hold of the page registered under `key`, if there is one."""
        page = self._page_of.get(key)
        if page is not None:
            self._holders[page] += 1
            self._idle.pop(page, None)
        return page

    def register(self, page: int, key: bytes) -> None:
        """Say what a held page holds. The first page of a key stays the one that is found."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Give up one hold of each page; later pages, which extend the others, are reused first."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def forget(self) -> None:
        """Drop every page that nobody holds from the prefix cache."""
        for page in self._idle:
            del self._page_of[self._key_of.pop(page)]
            self._free.append(page)
        self._idle.clear()
