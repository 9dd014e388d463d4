"""Order of tests in several processes (pytest-xdist): files that take long begin first, so that all end together."""

from __future__ import annotations

from pathlib import Path

import pytest

_LONG = ("rollout", "trainer", "chaos", "e2e", "examples", "security")
"""Folders of tests that take long, longest first."""
_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # in a process of pytest-xdist
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(_TESTS).parts[0]
    return _LONG.index(folder) if folder in _LONG else len(_LONG)
