"""Ports of servers that tests start."""

from __future__ import annotations

import itertools
import os
import random
import socket

_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(10_000 + _PROCESS, 20_000, _PROCESSES)
"""Below those that Linux gives to outgoing connections: none of them takes a port before its server has started. The
port 10,000 above each, which a node of a Redis Cluster takes as well, is below them, too. Each process of a run of the
tests has its own."""
_own = itertools.chain.from_iterable(random.Random(os.getpid()).sample(_PORTS, len(_PORTS)) for _ in itertools.count())


def free_port() -> int:
    """Return a loopback port on which nothing listens; not one that this process has had lately."""
    for port in _own:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError
