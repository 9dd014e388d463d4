"""Connections to the queue server that report a closed transport as a lost connection.

Where the server dies between two commands, uvloop raises a bare ``RuntimeError`` at the next write, which neither the
client's retries nor anyone's ``except RedisError`` takes for what it is: a lost connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def reporting_closed(kind: Any) -> Any:
    """Return a kind of connection that raises redis-py's ``ConnectionError`` for a closed transport."""

    class Connection(kind):  # type: ignore[misc]
        async def _send_packed_command(self, command: Iterable[bytes]) -> None:
            try:
                await super()._send_packed_command(command)
            except RuntimeError as error:
                raise ConnectionResetError("the queue server closed the connection") from error

    return Connection
