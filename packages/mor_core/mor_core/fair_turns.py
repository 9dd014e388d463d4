"""Turns at something that works for one or a few at a time, in rounds over those who wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable


class FairTurns:
    """Lock that passes from sender to sender, so that one with many requests delays another by one turn only."""

    def __init__(self, at_once: int = 1) -> None:
        """``at_once``: turns at a time."""
        self._free = at_once
        self._last: Hashable = None
        """Sender of the latest turn, which goes to another if one waits."""
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self, sender: Hashable) -> None:
        """Wait for a turn of ``sender``, which ``pass_on`` ends. Cancelled meanwhile, it gives up its place."""
        if not self._free:
            place = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(sender, deque()).append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # the turn came together with the cancellation
                    self.pass_on()
                raise
        else:
            self._free -= 1
        self._last = sender

    def pass_on(self) -> None:
        """End a turn."""
        while self._waiting:
            sender = next((name for name in self._waiting if name != self._last), self._last)
            places = self._waiting.pop(sender)
            place = places.popleft()
            if places:
                self._waiting[sender] = places  # behind all other senders
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
