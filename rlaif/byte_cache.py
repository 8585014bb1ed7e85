"""A cache that is bounded by bytes. Nothing here knows what it stores: frames, features or references to either."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Values by key within a budget of bytes; the least recently used one is evicted first.

    The newest value stays even if it alone exceeds the budget: its caller is about to use it.
    Not safe for threads: a caller that shares it between threads holds its own lock around each call.
    """

    def __init__(self, budget: int):
        """Start empty.

        budget: bytes that all values together may take.
        """
        self.budget = budget
        self.nbytes = 0
        """Bytes of all values stored now."""
        self.evictions = 0
        """How many values were dropped to stay within the budget."""
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        """Return whether a value is stored; its age does not change."""
        return key in self._entries

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """Yield the keys, least recently used first."""
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value and mark it as the most recently used; None if there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        value, _ = self._entries[key]
        return value

    def peek(self, key: K) -> V | None:
        """Return the value without changing its age; None if there is none."""
        value, _ = self._entries.get(key, (None, 0))
        return value

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Store a value as the most recently used, in place of an earlier one; evict others until all fit the budget.

        nbytes: its size, as the budget counts it.
        """
        self.remove(key)
        self._entries[key] = (value, nbytes)
        self.nbytes += nbytes
        # one entry always stays, also one that is larger than the whole budget
        while self.nbytes > self.budget and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self.nbytes -= freed
            self.evictions += 1

    def remove(self, key: K) -> V | None:
        """Forget a value and return it; None if there is none. It does not count as an eviction."""
        value, nbytes = self._entries.pop(key, (None, 0))
        self.nbytes -= nbytes
        return value
