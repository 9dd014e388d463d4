"""Cache with a bound in bytes that drops the least recently used value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteBoundCache(Generic[V]):
    """Map of values that hold at most ``bound`` bytes together. Not safe for use by several threads.

    ``size`` measures a value in bytes; a value larger than the bound is not kept. ``looked_up`` is called on each
    ``get`` with whether the value was there, for metrics.
    """

    def __init__(
        self, bound: int, size: Callable[[V], int], looked_up: Callable[[bool], None] = lambda found: None
    ) -> None:
        self.bound = bound
        self._size = size
        self._looked_up = looked_up
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self.bytes = 0
        """Bytes of the values that are kept."""

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """Return the value, which counts as a use of it, or ``None``."""
        found = self._values.get(key)
        self._looked_up(found is not None)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: V) -> None:
        """Keep ``value``, and drop as many others as the bound demands."""
        if key in self._values:
            self.bytes -= self._values.pop(key)[1]
        size = self._size(value)
        if size > self.bound:
            return
        self._values[key] = value, size
        self.bytes += size
        while self.bytes > self.bound:
            self.bytes -= self._values.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Drop every value."""
        self._values.clear()
        self.bytes = 0
