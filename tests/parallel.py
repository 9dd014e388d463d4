"""Tests in several processes (pytest-xdist): those of a file stay together, and so do those that share an engine.

Files that take long begin first, so that no process ends long before the others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = {"started": "engine", "chromium": "browser"}
"""Fixture that takes long to start -> group of all files with a test that uses it."""
_LONG = ("rollout", "trainer", "chaos", "e2e", "examples", "security")
"""Folders of tests that take long, longest first."""
_TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("xdist"):
        return
    groups: dict[Path, str] = {}
    for item in items:
        for fixture, group in _SHARED.items():
            if fixture in getattr(item, "fixturenames", ()):
                groups[item.path] = group
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups.get(item.path, item.path.relative_to(_TESTS).as_posix())))
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.path, groups))


def _rank(path: Path, groups: dict[Path, str]) -> int:
    folder = path.relative_to(_TESTS).parts[0]
    if groups.get(path) == "engine":
        return -1
    return _LONG.index(folder) if folder in _LONG else len(_LONG)
