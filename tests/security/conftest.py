"""Fixtures of the security tests, and their two profiles: short by default, long with ``MOR_TEST_SECURITY=long``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Valkey
from tests.security.served_apps import ServedApp, all_served


@pytest.fixture(scope="session")
def long_profile() -> bool:
    return os.environ.get("MOR_TEST_SECURITY") == "long"


@pytest.fixture(scope="session")
def served_apps(tmp_path_factory: pytest.TempPathFactory, tiny_vlm: Path) -> Iterator[dict[str, ServedApp]]:
    """All four services with a queue server of their own, as other tests empty theirs."""
    server = Valkey(tmp_path_factory.mktemp("queue"))
    try:
        with all_served(tmp_path_factory.mktemp("served"), server.url, tiny_vlm) as found:
            yield found
    finally:
        server.stop()
