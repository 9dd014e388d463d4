"""Queue of groups that wait to be issued: each once, first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set

from mor_core.blobs import Blobs
from mor_core.datafiles import Prompt
from mor_core.streams import Streams
from mor_core.wire import PromptRecord

_TIMEOUT_S = 10.0
"""Seconds to wait for room in the stream; after that the exchange logs the failure and sends again."""


class DispatchQueue:
    """Groups that wait to be issued. A group stays until it is sent, also when sending fails."""

    def __init__(self, streams: Streams, blobs: Blobs) -> None:
        self._streams = streams
        self._blobs = blobs
        self._waiting: dict[str, object] = {}
        """Group -> mark of its latest ``add``."""
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> Set[str]:
        """Groups that are not sent yet."""
        return self._waiting.keys()

    def add(self, *group_ids: str) -> None:
        self._waiting |= {group_id: object() for group_id in group_ids}
        self._changed.set()

    async def send(self, find: Callable[[str], Awaitable[tuple[PromptRecord, Prompt] | None]]) -> None:
        """Send the waiting groups until cancelled.

        ``find`` returns record and prompt of a group, or ``None`` when it is not to be sent now.
        """
        while True:
            while self._waiting:
                group_id, mark = next(iter(self._waiting.items()))
                if (found := await find(group_id)) is not None:
                    record, prompt = found
                    for content in prompt.images.values():
                        await self._blobs.put(content, group_id)
                    await self._streams.publish("prompts", record, timeout_s=_TIMEOUT_S)
                if self._waiting[group_id] is mark:  # added again meanwhile: what was sent is lost
                    del self._waiting[group_id]
            self._changed.clear()
            await self._changed.wait()
