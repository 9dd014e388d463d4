"""Option ``--fast`` of pytest: tests of core, router and mathematics that start no server and no other process."""

from __future__ import annotations

from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_CHOSEN = [
    *(_TESTS / name for name in ("core", "router", "reward/test_mathematics.py")),
    *(_TESTS / "trainer" / name for name in ("test_ledger.py", "test_losses.py", "test_maths.py")),
    *(path for path in _TESTS.glob("test_*.py") if path.name != "test_model_families.py"),
]
_SERVERS = {"valkey", "redis", "redis_url", "postgresql", "service"}
"""Fixtures that start processes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="a minute of tests that start no servers or other processes")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("fast"):
        return None
    return None if any(path in _line(collection_path) or collection_path in _line(path) for path in _CHOSEN) else True


def _line(path: Path) -> tuple[Path, ...]:
    return path, *path.parents


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("fast"):
        left_out = {item for item in items if _starts_processes(item)}
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]


def _starts_processes(item: pytest.Item) -> bool:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return not _SERVERS.isdisjoint(fixtures) or hasattr(getattr(item, "module", None), "subprocess")
