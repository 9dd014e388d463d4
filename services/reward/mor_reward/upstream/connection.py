"""HTTP connection to an upstream: bounded in bytes, time and calls at a time; its messages quote nothing private."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx
from mor_core.certificates import client_context
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe_failure
from mor_core.fair_turns import FairTurns
from mor_core.proxies import proxy_of

from mor_reward import __version__
from mor_reward.group_scorer import BrokenAnswer, ModelAway
from mor_reward.upstream.upstream_settings import UpstreamSettings

_ANSWER_BYTES = 8 << 20
"""Bytes of an answer that are read."""
_IDENTITY_BYTES = 256 << 10
"""Bytes of the description of a model that are read."""
_PROBE_S = 3.0
"""Seconds in which an upstream that is up answers a probe."""
_TRIES = 2
"""Tries of a call: a connection that the upstream closed meanwhile is the usual reason for the second."""
_PAUSE_S = (0.05, 0.25)
"""Shortest and longest pause before the second try, seconds."""
_MISTAKES = {400, 413, 414, 415, 422}
"""Statuses by which an upstream refuses what it was sent; others, such as 401 or 404, concern every call."""


class Connection:
    """Calls to one upstream, at most ``settings.concurrency`` at a time, in turns over the callers."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._turns = FairTurns(settings.concurrency)
        self._http = httpx.AsyncClient(
            base_url=str(settings.url).rstrip("/"),
            timeout=httpx.Timeout(settings.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=settings.concurrency + 1),
            proxy=proxy_of(settings.proxy),
            verify=client_context("SSL_CERT_FILE", None),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept or sent
            headers={"User-Agent": f"mor-reward/{__version__}", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._http.aclose()

    def calls(self, caller: str, deadline: float) -> DeadlineCalls:
        """Return the calls for one group of ``caller`` until ``deadline``, in monotonic seconds."""
        return DeadlineCalls(self, caller, min(deadline, time.monotonic() + self._settings.timeout_s))

    async def post(self, path: str, body: dict[str, Any], caller: str, deadline: float) -> bytes:
        """Send ``body`` and return the answer, by ``deadline``.

        Raises:
            ModelAway: there is no answer.
            Invalid: the upstream refuses the body.
            BrokenAnswer: the answer is too large.
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._turns.take(caller)
                try:  # those that wait for their turn share the pictures, and have no copy of them yet
                    return await self._with_a_second_try(path, json.dumps(body).encode())
                finally:
                    self._turns.pass_on()
        except TimeoutError:
            raise ModelAway("the upstream did not answer before the deadline") from None

    async def _with_a_second_try(self, path: str, content: bytes) -> bytes:
        for again in range(_TRIES):
            try:
                return await self._send("POST", path, _ANSWER_BYTES, content)
            except ModelAway:
                if again == _TRIES - 1:
                    raise
                await asyncio.sleep(random.uniform(*_PAUSE_S))
        raise AssertionError("a try returns or raises")

    async def describe(self, path: str) -> bytes:
        """Return what the upstream says of itself at ``path``.

        Raises:
            ModelAway, Invalid, BrokenAnswer: it says nothing that is read.
        """
        return await self._send("GET", path, _IDENTITY_BYTES, within_s=_PROBE_S)

    async def problem(self, path: str) -> str | None:
        """Probe the upstream; return why it cannot be called, or ``None``."""
        try:
            await self._send("GET", path, _IDENTITY_BYTES, within_s=_PROBE_S, any_status=True)
        except MorError as error:
            return str(error)
        return None

    async def _send(
        self,
        method: str,
        path: str,
        most_bytes: int,
        content: bytes | None = None,
        *,
        within_s: float | None = None,
        any_status: bool = False,
    ) -> bytes:
        headers = {"Content-Type": "application/json", **self._key()}
        try:
            async with (
                asyncio.timeout(within_s),  # the client's limits are for each byte
                self._http.stream(method, path, content=content, headers=headers) as reply,
            ):
                status = reply.status_code
                if any_status and status < 500 and status not in (401, 403):
                    return b""
                _check_status(status)
                return await _bounded(reply, most_bytes)
        except httpx.HTTPError as error:
            raise ModelAway(f"the upstream cannot be called: {describe_failure(error)}") from None
        except TimeoutError:
            raise ModelAway(f"the upstream did not answer within {within_s:g} s") from None

    def _key(self) -> dict[str, str]:
        """Return the header with the key; its file is read for each call, so that a new key takes effect."""
        file = self._settings.key_file
        return {} if file is None else {"Authorization": f"Bearer {read_key(file)}"}


class DeadlineCalls:
    """Calls for one group of one caller until a deadline."""

    def __init__(self, connection: Connection, caller: str, deadline: float) -> None:
        self._connection = connection
        self._caller = caller
        self._deadline = deadline

    async def post(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        """See ``Calls.post``; the first failure ends the other calls."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._connection.post(path, body, self._caller, self._deadline))
                    for body in bodies
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]


def read_key(file: Path) -> str:
    """Read the key of the upstream.

    Raises:
        ModelAway: the file cannot be read, or holds no key.
    """
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ModelAway(f"the upstream's key file cannot be read: {describe_failure(error)}") from None
    if not key or not key.isprintable() or " " in key:
        raise ModelAway("the upstream's key file holds no key, one line without spaces")
    return key


def _check_status(status: int) -> None:
    if status == 200:
        return
    if status in _MISTAKES:
        raise Invalid(f"the upstream refuses this item with status {status}")
    cure = (
        "; redirects are not followed: give the address and path that it redirects to"
        if 300 <= status < 400
        else {
            401: "; correct the key in --upstream-key-file",
            403: "; correct the key in --upstream-key-file",
            404: "; correct the address, the path or the model's name",
        }.get(status, "")
    )
    raise ModelAway(f"the upstream answered {status}{cure}")


async def _bounded(reply: httpx.Response, most_bytes: int) -> bytes:
    found = bytearray()
    async for part in reply.aiter_raw():  # a compressed answer, which nobody asked for, could expand a thousandfold
        found += part
        if len(found) > most_bytes:
            raise BrokenAnswer(f"the upstream's answer has over {most_bytes} bytes")
    return bytes(found)
