"""Bound that callers share: one caller may use all of it while no other needs it, and never keeps another out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FairShare:
    """Units of a resource in use, by caller.

    A caller is admitted while the whole has room, or while its own use stays within an equal share of the bound among
    the callers. The total may thus exceed the bound, by less than the shares of the callers that came later: for
    ``n`` callers it is at most ``bound * (1 + 1/2 + ... + 1/n)``.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._used: dict[str, int] = {}
        self.total = 0
        """Units in use by all callers."""

    def used(self, caller: str) -> int:
        """Return the units that ``caller`` uses."""
        return self._used.get(caller, 0)

    def share(self, caller: str) -> int:
        """Return an equal share of the bound among the callers that use it, ``caller`` included; at least 1."""
        callers = len(self._used) + (caller not in self._used)
        return max(1, self._bound // callers)

    def take(self, caller: str, units: int = 1) -> bool:
        """Take ``units`` for ``caller``, or return false where there is no room for them."""
        used = self.used(caller)
        if self.total + units > self._bound and used + units > self.share(caller):
            return False
        self._used[caller] = used + units
        self.total += units
        return True

    def give_back(self, caller: str, units: int = 1) -> None:
        """Return ``units`` that ``caller`` took."""
        if not units:
            return
        left = self._used[caller] - units
        self.total -= units
        if left:
            self._used[caller] = left
        else:
            del self._used[caller]

    @contextmanager
    def hold(self, caller: str, refusal: Exception) -> Iterator[None]:
        """Hold one unit for ``caller`` during the body, or raise ``refusal``."""
        if not self.take(caller):
            raise refusal
        try:
            yield
        finally:
            self.give_back(caller)
