"""Announcements of active runs, by which the stages know whose streams to read.

Whoever can write to the queue server can announce a run. A worker signs its announcements with the service token, which
run control gives to those that may claim runs. A stage that has the token too prefers signed announcements: however
many others there are, they take no place from these.

Times are those of the queue server, so that a run is visible whatever the clocks of the machines show.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from contextlib import aclosing
from typing import Annotated

from pydantic import Field, SecretStr
from redis.asyncio import Redis

from mor_core.errors import Invalid
from mor_core.fence import REFUSED, Fence, superseded
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import LEFTOVER_S, StoredEntries
from mor_core.wire import Count, RunId, Wire

RUNS_KEY = "mor:runs"
"""Hash of the announced runs."""
NO_TOKEN = SecretStr("")
"""Service token of a process that has none: it signs nothing, and takes no signature for genuine."""
_RUN_TTL_S = 60.0
"""Age at which an announcement no longer counts, seconds: twelve renewals of the trainer."""
_LEAST_ACTIVE_S = 15.0
"""Seconds, by this process's own clock, for which a run stays active once it was: three renewals of the trainer. They
bridge a jump of the queue server's clock, such as at a fail-over."""
_MOST_AHEAD_S = 60.0
"""Seconds by which an announcement may be ahead: one from the far future would count for ever."""

_MOST_UNSIGNED = 1000
"""Unsigned announcements that are remembered: more than a stage works on, and little memory."""

_LARGEST = 16 << 10
_RUNS = StoredEntries("runs", largest=_LARGEST)

# KEYS: announcements. ARGV: run, its announcement or nothing, attempt. The announcements lie in another slot than the
# run's keys, so that the attempt in the announcement that is there counts.
_WRITE = f"""
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found and #found <= {_LARGEST} then
  local is_json, there = pcall(cjson.decode, found)
  local newest = is_json and type(there) == 'table' and tonumber(there.attempt) or 0
  if newest > tonumber(ARGV[3]) then return {REFUSED} end
end
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return 1
"""


class RunAnnouncement(Wire):
    """Announcement of an active run to the stages."""

    run: RunId
    model: Annotated[str, Field(min_length=1, max_length=4096)]
    """Base checkpoint: local path or hub name."""
    renewed_at: float
    """Unix time of the queue server, seconds. An announcement that is not renewed for a minute no longer counts."""
    attempt: Count = 0
    """Attempt at the run that announces it; 0 in an announcement of an earlier release."""
    signature: Annotated[str, Field(max_length=64)] = ""
    """HMAC-SHA256 of the other fields with the service token, in hexadecimal; empty without a token."""

    def signed(self, token: SecretStr) -> RunAnnouncement:
        """Return the announcement with its signature."""
        return self.model_copy(update={"signature": self._sign(token)})

    def is_signed(self, token: SecretStr) -> bool:
        """Return whether the signature was made with ``token``."""
        return bool(self.signature) and hmac.compare_digest(self.signature.encode(), self._sign(token).encode())

    def _sign(self, token: SecretStr) -> str:
        secret = token.get_secret_value()
        if not secret:
            return ""
        kind = f"mor.run/2\n{self.attempt}" if self.attempt else "mor.run"  # an earlier release signs no attempt
        content = f"{kind}\n{self.run}\n{self.renewed_at!r}\n{self.model}"
        return hmac.new(secret.encode(), content.encode(), hashlib.sha256).hexdigest()


async def announce(redis: Redis, run: str, model: str, token: SecretStr = NO_TOKEN, fence: Fence | None = None) -> None:
    """Announce an active run to the stages; the trainer repeats this every few seconds.

    Raises:
        Superseded: a later attempt at the run has announced it.
    """
    now, attempt = await SERVER_CLOCK.read(redis), 0 if fence is None else fence.attempt
    announcement = RunAnnouncement(run=run, model=model, renewed_at=now, attempt=attempt).signed(token)
    await _write(redis, run, announcement.model_dump_json(), attempt, fence)


async def withdraw(redis: Redis, run: str, fence: Fence | None = None) -> None:
    """Remove the announcement of a run; stages then stop reading its streams.

    Raises:
        Superseded: a later attempt at the run has announced it.
    """
    if fence is None:
        await redis.hdel(RUNS_KEY, run)
    else:
        await _write(redis, run, "", fence.attempt, fence)


async def _write(redis: Redis, run: str, content: str, attempt: int, fence: Fence | None) -> None:
    """Write the announcement of a run, or delete it where ``content`` is empty.

    Raises:
        Superseded: a later attempt at the run has announced it.
    """
    if fence is not None:
        fence.check()
    script = redis.register_script(_WRITE)
    # Without the key all runs announce themselves again within seconds.
    reply = await _RUNS.write(redis, {RUNS_KEY: "hash"}, lambda: script(keys=[RUNS_KEY], args=[run, content, attempt]))
    if reply == REFUSED:
        raise superseded(run, attempt)


async def sweep(redis: Redis) -> None:
    """Remove the announcements of runs that vanished, and those that cannot be read."""
    now = await SERVER_CLOCK.read(redis)
    async with aclosing(_RUNS.fetch_pages(redis, RUNS_KEY)) as pages:
        async for page in pages:
            found = _RUNS.parse_all(page, _announcement)
            gone = {name for name in page if name not in found or not _is_within(found[name], LEFTOVER_S, now)}
            if gone:
                await _RUNS.delete(redis, RUNS_KEY, {name: page[name] for name in gone})


async def announced_runs(redis: Redis) -> dict[str, bool]:
    """Return the announced runs, each with whether a worker may be at work on it.

    That is so where the announcement counts still, or cannot be read, as one of a later release.

    Raises:
        RedisError: the server failed, or the key of the announcements has another type.
    """
    now = await SERVER_CLOCK.read(redis)
    found: dict[str, bool] = {}
    async with aclosing(_RUNS.fetch_pages(redis, RUNS_KEY)) as pages:
        async for page in pages:
            read = _RUNS.parse_all(page, _announcement)
            for name in page:
                found[name.decode(errors="replace")] = name not in read or _is_within(read[name], _RUN_TTL_S, now)
    return found


class AnnouncedRuns:
    """Reader of the announcements, which remembers what it saw."""

    def __init__(self, redis: Redis, token: SecretStr = NO_TOKEN) -> None:
        self._redis = redis
        self._token = token
        self._signed: dict[str, RunAnnouncement] = {}
        """Latest signed announcement of each run."""
        self._first_seen: dict[str, float] = {}
        """Monotonic time at which each active run was first seen."""
        self._last_active: dict[str, float] = {}
        """Monotonic time at which the announcement of each active run was last within its time."""

    async def read(self) -> list[RunAnnouncement]:
        """Return the announcements renewed within the last minute: signed ones first, then those first seen earlier.

        An announcement that replaces a signed one without a signature of its own does not count.

        Raises:
            RedisError: the server failed, or the key of the announcements has another type.
        """
        signed, unsigned = await self._read_all()
        self._signed = signed
        server_now, now = await SERVER_CLOCK.read(self._redis), time.monotonic()
        lines = unsigned | signed
        self._last_active |= {name: now for name, line in lines.items() if _is_within(line, _RUN_TTL_S, server_now)}
        self._last_active = {
            name: at for name, at in self._last_active.items() if name in lines and now - at < _LEAST_ACTIVE_S
        }
        for name, line in lines.items():
            if name not in self._last_active and line.renewed_at > server_now:
                _RUNS.refuse(name, "renewed_at is in the future")
        active = {name: lines[name] for name in self._last_active}
        self._first_seen = {name: self._first_seen.get(name, now) for name in active}
        return sorted(active.values(), key=lambda line: (line.run not in signed, self._first_seen[line.run], line.run))

    async def _read_all(self) -> tuple[dict[str, RunAnnouncement], dict[str, RunAnnouncement]]:
        """Return the signed announcements, and unsigned ones of other runs: those seen before, and some new ones."""
        signed: dict[str, RunAnnouncement] = {}
        unsigned: dict[str, RunAnnouncement] = {}
        async with aclosing(_RUNS.fetch_pages(self._redis, RUNS_KEY)) as pages:
            async for page in pages:
                signed |= {name: line for name, line in self._signed.items() if name.encode() in page}
                for line in _RUNS.parse_all(page, _announcement).values():
                    if line.is_signed(self._token):
                        signed[line.run] = line
                    elif line.run in self._first_seen or len(unsigned) < _MOST_UNSIGNED:
                        unsigned[line.run] = line
        return signed, unsigned


def _announcement(run: bytes, value: bytes) -> RunAnnouncement:
    """Parse an announcement.

    Raises:
        ValueError: it does not fit.
        Invalid: it is of another run.
    """
    announcement = RunAnnouncement.model_validate_json(value, extra="ignore")  # of a later release, too
    if announcement.run.encode() != run:
        raise Invalid("an announcement is stored under another run's name")
    return announcement


def _is_within(announcement: RunAnnouncement, age_s: float, now: float) -> bool:
    """Return whether an announcement is at most ``age_s`` old, and not from the future."""
    return now - age_s < announcement.renewed_at <= now + _MOST_AHEAD_S
