"""One name for one thing: no public class and no module name is used twice in services and packages."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.test_architecture import MODULES, ROOT

CLASSES_USED_TWICE: set[str] = set()
"""Public classes that several modules may define; add one only with the reason why another name would be worse."""
MODULES_USED_TWICE = {"__init__", "__main__", "app", "cli", "config", "errors", "metrics"}
"""Module stems that several packages may have: each package is made of these, and an import names it first."""
FOLDERS_NAMED_AFTER_RESOURCES = {"routes", "commands"}
"""Their modules are named after the resource that they serve, as the module that owns the resource is."""


def _used_twice(found: Iterable[tuple[str, Path]]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for name, path in found:
        places[name].append(str(path.relative_to(ROOT)))
    return {name: files for name, files in sorted(places.items()) if len(files) > 1}


def _complaint(what: str, found: dict[str, list[str]]) -> str:
    lines = [f"  {name}: {', '.join(files)}" for name, files in found.items()]
    return f"{what} with one name each; give all but one a name that says what differs:\n" + "\n".join(lines)


def test_no_public_class_name_is_used_twice() -> None:
    found = (
        (node.name, path)
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in CLASSES_USED_TWICE
    )
    twice = _used_twice(found)
    assert not twice, _complaint("several classes", twice)


def test_no_module_stem_is_used_twice() -> None:
    found = (
        (path.stem, path)
        for path in MODULES
        if path.stem not in MODULES_USED_TWICE and path.parent.name not in FOLDERS_NAMED_AFTER_RESOURCES
    )
    twice = _used_twice(found)
    assert not twice, _complaint("several modules", twice)


def test_the_allowed_names_are_needed() -> None:
    stems = [path.stem for path in MODULES if path.parent.name not in FOLDERS_NAMED_AFTER_RESOURCES]
    assert {name for name in MODULES_USED_TWICE if stems.count(name) < 2} == set()
    classes = [
        node.name for path in MODULES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    ]
    assert {name for name in CLASSES_USED_TWICE if classes.count(name) < 2} == set()
