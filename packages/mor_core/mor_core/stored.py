"""Entries of stores that others can write to: Redis, the history database, shared folders.

Such a store is a carrier, not an authority. Each entry is parsed by itself and bounded in size. One that does not fit
is left out, counted in ``mor_unreadable_entries_total`` and logged once, and the entries beside it stay in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeVar, cast

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mor_core.bounded_reads import Oversized, read_bounded, read_hash_page
from mor_core.errors import Invalid
from mor_core.failures import describe_failure

T = TypeVar("T")

_LARGEST_BYTES = 1 << 20
"""Usual bound on one entry: a client with its card, or a score, has a few kilobytes."""
_MOST_BYTES = 1 << 30
"""Bound on all entries of one hash together, bytes: four times the pictures of a large anchor set."""
LEFTOVER_S = 7 * 86400
"""Seconds after the last write until what belongs to a run is deleted: a run that vanished leaves nothing for ever, and
one that is still at work can issue everything again."""
_REMEMBERED = 1000
"""Problems of a store that are remembered, so that each is logged once; about a hundred bytes each."""

StoredType = Literal["hash", "list", "stream", "string"]
# KEYS: keys of a store. ARGV: the type of each. Another writer may have begun the store anew: then what it wrote stays.
# The user of each writer may use the command that tries a key.
_MEND = """
local attempts = {
  hash = function(name) return redis.pcall('HDEL', name, '') end,
  list = function(name) return redis.pcall('LRANGE', name, 0, 0) end,
  stream = function(name) return redis.pcall('XLEN', name) end,
  string = function(name) return redis.pcall('GET', name) end,
}
local deleted = 0
for place, name in ipairs(KEYS) do
  local reply = attempts[ARGV[place]](name)
  if type(reply) == 'table' and reply.err and reply.err:find('WRONGTYPE') then
    deleted = deleted + redis.call('DEL', name)
  end
end
return deleted
"""

# KEYS: hash. ARGV: field, and size or SHA-1 of its value, in turn.
_DELETE = """
local deleted = 0
for place = 1, #ARGV, 2 do
  local value, mark = redis.call('HGET', KEYS[1], ARGV[place]), ARGV[place + 1]
  if value and mark == (#mark < 40 and tostring(#value) or redis.sha1hex(value)) then
    deleted = deleted + redis.call('HDEL', KEYS[1], ARGV[place])
  end
end
return deleted
"""

UNREADABLE = Counter("mor_unreadable_entries", "Reads of a stored entry that does not fit and was left out", ["store"])

log = structlog.get_logger(__name__)


class StoredEntries:
    """Parser of one store's entries. ``store`` is the label of the metric, a fixed word."""

    def __init__(self, store: str, *, largest: int = _LARGEST_BYTES) -> None:
        """``largest``: bytes of one entry."""
        self.store = store
        self._largest = largest
        self._known: dict[tuple[str, str], None] = {}
        UNREADABLE.labels(store)  # so that the series starts at 0

    def parse(self, entry: object, content: Any, parser: Callable[[Any], T]) -> T | None:
        """Return ``parser(content)``; ``None`` where ``content`` is ``None``, too long, or makes ``parser`` raise."""
        if content is None:
            return None
        try:
            if isinstance(content, Oversized):
                raise Invalid(f"{content.bytes} bytes, at most {self._largest} are read")
            if isinstance(content, bytes | str) and len(content) > self._largest:
                raise Invalid(f"{len(content)} bytes, at most {self._largest} are read")
            return parser(content)
        except Exception as error:  # whatever a parser raises, the entry is at fault
            self.refuse(entry, describe_failure(error))
            return None

    def parse_all(self, entries: Mapping[Any, Any], parser: Callable[[Any, Any], T]) -> dict[Any, T]:
        """Return ``parser(field, content)`` of each entry that fits, by its field."""
        found = {}
        for field, content in entries.items():
            value = self.parse(field, content, lambda given, field=field: parser(field, given))  # type: ignore[misc]
            if value is not None:
                found[field] = value
        return found

    def parse_list(self, entries: Iterable[Any], parser: Callable[[Any], T]) -> list[T]:
        """Return ``parser(content)`` of each entry that fits, in their order."""
        found = (self.parse(place, content, parser) for place, content in enumerate(entries))
        return [value for value in found if value is not None]

    async def fetch(self, redis: Redis, command: str, key: str, *arguments: str | int) -> Any:
        """Return the reply of a command that reads ``key``; a value that is too long stays on the server.

        ``parse`` refuses what stands in its place.

        Raises:
            RedisError: the server failed, or the key has another type.
        """
        return await read_bounded(redis, self._largest, command, key, *arguments)

    async def fetch_pages(self, redis: Redis, key: str) -> AsyncGenerator[dict[bytes, Any], None]:
        """Yield the fields of a hash in pages, each as ``fetch`` does. A field may come twice.

        Raises:
            RedisError: the server failed, or the key has another type.
        """
        cursor, following = 0, True
        while following:
            cursor, page = await read_hash_page(redis, self._largest, key, cursor)
            for field in page:
                if isinstance(field, Oversized):
                    self.refuse(key, f"the name of a field has {field.bytes} bytes")
            yield {field: value for field, value in page.items() if not isinstance(field, Oversized)}
            following = cursor != 0

    async def fetch_hash(self, redis: Redis, key: str) -> dict[bytes, Any]:
        """Return the fields of a hash, as ``fetch`` does, up to a gigabyte.

        Raises:
            RedisError: the server failed, or the key has another type.
        """
        found: dict[bytes, Any] = {}
        size = 0
        async with aclosing(self.fetch_pages(redis, key)) as pages:
            async for page in pages:
                found |= page
                size += sum(len(field) + len(value) for field, value in page.items() if isinstance(value, bytes))
                if size > _MOST_BYTES:
                    self.refuse(key, f"over {_MOST_BYTES} bytes in all; the rest is not read")
                    break
        return found

    async def read(self, key: str, command: Awaitable[Any], default: T) -> T:
        """Return the reply of a Redis ``command`` on ``key``, or ``default`` where the key has another type.

        Raises:
            RedisError: the server failed.
        """
        try:
            return cast("T", await command)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            self.refuse(key, "the key has another type; delete it, or restore it from an export")
            return default

    async def write(self, redis: Redis, keys: Mapping[str, StoredType], write: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``write``, once more without those of ``keys`` that have another type.

        For stores that are filled again by the work itself.

        Raises:
            RedisError: the server failed.
        """
        try:
            return await write()
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
        if await redis.register_script(_MEND)(keys=[*keys], args=[*keys.values()]):
            self.refuse(", ".join(keys), "a key has another type; it is begun anew")
        return await write()

    async def delete(self, redis: Redis, key: str, entries: Mapping[Any, Any]) -> int:
        """Delete fields of a hash that have still the values of ``entries``, as they were read; return how many had.

        Another writer may have replaced one that did not fit.

        Raises:
            RedisError: the server failed.
        """
        pairs = [part for field, value in entries.items() for part in (field, _mark(value))]
        script = redis.register_script(_DELETE)
        return int(await self.read(key, cast("Awaitable[int]", script(keys=[key], args=pairs)), 0))

    def refuse(self, entry: object, problem: str) -> None:
        """Count an entry that does not fit, and log its problem once."""
        UNREADABLE.labels(self.store).inc()
        name = entry.decode(errors="replace") if isinstance(entry, bytes) else str(entry)
        known = (name[:200], problem)
        if known in self._known:
            return
        self._known[known] = None
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        log.warning(
            "a stored entry cannot be read and is left out", store=self.store, entry=name[:200], problem=problem
        )


def _mark(value: bytes | Oversized) -> str | int:
    return value.bytes if isinstance(value, Oversized) else hashlib.sha1(value, usedforsecurity=False).hexdigest()


def is_wrong_type(error: ResponseError) -> bool:
    """Return whether a Redis command met a key of another type."""
    return "WRONGTYPE" in str(error)
