"""Tests in several processes (pytest-xdist): long files first, so that all end together, and ids that agree."""

from __future__ import annotations

from pathlib import Path

import pytest

_LONG = ("rollout", "trainer", "chaos", "e2e", "examples", "security")
"""Folders of tests that take long, longest first."""
_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # in a process of pytest-xdist
        items.sort(key=_rank)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: a compressed file may hold the time, by which the processes' ids would differ."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(_TESTS).parts[0]
    return _LONG.index(folder) if folder in _LONG else len(_LONG)
