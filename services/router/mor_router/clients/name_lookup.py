"""Lookups of host names, in threads of their own: whoever enrols a name has a name server that may be slow.

The threads that asyncio shares among all its work are a few, and each lookup that waits for a silent name server would
hold one: a handful of such names would stop the connections to all other clients.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future

_LONGEST_S = 5.0
"""Seconds until a lookup fails, those of a connection; its thread ends when the system's resolver gives up."""
_MOST_LOOKUPS = 512
"""Names that are looked up at a time: several times the clients of a large installation."""

_in_progress: dict[tuple[str, int], Future[list[str]]] = {}


async def resolve(host: str, port: int) -> list[str]:
    """Look up the addresses of ``host`` with the system's resolver. Callers at the same time share one lookup.

    Raises:
        OSError: the name has no address, or its name server does not answer in time.
    """
    found = _in_progress.get((host, port))
    if found is None:
        if len(_in_progress) >= _MOST_LOOKUPS:
            raise OSError(f"{_MOST_LOOKUPS} names are being looked up; their name servers do not answer")
        found = Future()
        found.set_running_or_notify_cancel()  # so that a caller who goes cancels it for nobody else
        _in_progress[host, port] = found
        try:
            threading.Thread(target=_look_up, args=(host, port, found), name="name lookup", daemon=True).start()
        except RuntimeError as error:
            del _in_progress[host, port]
            raise OSError("the router's machine begins no more threads to look it up; raise its limit") from error
    try:
        async with asyncio.timeout(_LONGEST_S):
            return await asyncio.wrap_future(found)
    except TimeoutError as error:
        raise OSError(f"its name server did not answer within {_LONGEST_S:g} s") from error


def _look_up(host: str, port: int, found: Future[list[str]]) -> None:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answer: list[str] | OSError = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    except OSError as error:
        answer = error
    except ValueError:  # a part over 63 characters, or one that has no form in ASCII
        answer = OSError("it is no name of a host")
    del _in_progress[host, port]
    if isinstance(answer, OSError):
        found.set_exception(answer)
    else:
        found.set_result(answer)
