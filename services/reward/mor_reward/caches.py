"""Caches bounded in bytes that drop what was used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from mor_reward.metrics import CACHE_LOOKUPS

Value = TypeVar("Value")


class ByteBoundCache(Generic[Value]):
    """A map of at most ``max_bytes``; putting more drops the least recently used. Not for use by several threads."""

    def __init__(self, name: str, max_bytes: int, size: Callable[[Value], int]) -> None:
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._max_bytes = max_bytes
        self._size = size
        self._hits = CACHE_LOOKUPS.labels(cache=name, result="hit")
        self._misses = CACHE_LOOKUPS.labels(cache=name, result="miss")
        self.bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        value = self._entries.get(key)
        if value is None:
            self._misses.inc()
            return None
        self._hits.inc()
        self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Store ``value``. One that alone is over the bound is not kept."""
        size = self._size(value)
        if size > self._max_bytes:
            return
        if key in self._entries:
            self.bytes -= self._size(self._entries.pop(key))
        while self.bytes + size > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.bytes -= self._size(dropped)
        self._entries[key] = value
        self.bytes += size

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0
