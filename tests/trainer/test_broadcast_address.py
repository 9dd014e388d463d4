"""Engines reach the trainer at the address from which it reaches them, unless a setting names another."""

from __future__ import annotations

import socket

import pytest
from mor_trainer.config import WorkerSettings
from mor_trainer.weights.broadcast import _address_towards


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_address_is_the_one_towards_the_engine(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as engine:
        port = engine.getsockname()[1]
        assert _address_towards(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}") == host
    with pytest.raises(OSError, match="refused"):
        _address_towards(f"http://127.0.0.1:{port}")
    assert WorkerSettings().transfer_address is None
