"""Connection to PostgreSQL that waits for no answer without end."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg


class BoundedConnection(psycopg.Connection[Any]):
    """Connection that ends where a statement has no answer in time.

    PostgreSQL's own limits and those of TCP do not find a server that was stopped, or a proxy before it that holds the
    connection: its machine still acknowledges every packet.
    """

    answer_s = 4.0
    """Longest wait for the answer to a statement, seconds."""

    def wait(self, gen: Any, *options: Any, **more: Any) -> Any:
        """Drive the exchange of one statement.

        Raises:
            OperationalError: it took longer than ``answer_s``; the connection is closed.
        """
        return super().wait(self._in_time(gen), *options, **more)

    def _in_time(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        until = time.monotonic() + self.answer_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= until:
                    self.close()
                    raise psycopg.OperationalError(f"the server did not answer in {self.answer_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
