"""Bound on a reply of Redis where the server cannot measure it, as that of a read that waits.

``bounded_reads`` has the server measure what it sends. A script cannot wait, so the parser of the connection measures
such a reply while it comes, and closes the connection before a string that would not fit is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from redis._parsers import _AsyncRESP2Parser
from redis.exceptions import RedisError

_MOST_BYTES = 5 << 28
"""Usual bound, bytes: the gigabyte of a measured reply, and the overhead of four million strings."""
_OVERHEAD = 64
"""Bytes of memory that a string takes apart from its characters."""

_most_bytes: ContextVar[int] = ContextVar("largest_reply", default=_MOST_BYTES)


class OversizedReply(RedisError):
    """Reply of the server over the bound; its connection is closed."""


@contextmanager
def replies_up_to(most_bytes: int) -> Iterator[None]:
    """Refuse replies of over ``most_bytes`` in the body with ``OversizedReply``."""
    before = _most_bytes.set(most_bytes)
    try:
        yield
    finally:
        _most_bytes.reset(before)


class BoundedParser(_AsyncRESP2Parser):
    """Parser of replies up to a bound, as ``parser_class`` of a Redis client with ``protocol=2``."""

    __slots__ = ("_left",)

    async def read_response(self, disable_decoding: bool = False) -> Any:
        self._left = _most_bytes.get()
        return await super().read_response(disable_decoding)

    async def _read(self, length: int) -> bytes:
        self._left -= length + _OVERHEAD
        if self._left < 0:
            raise OversizedReply(f"a reply of the queue server is over {_most_bytes.get()} bytes; it is not read")
        return await super()._read(length)
