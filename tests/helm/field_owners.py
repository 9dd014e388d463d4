"""Server-side apply: who owns which field of an object, and what an applied configuration changes.

A manager that applies a value other than the object's, in a field that another one owns, is in conflict with it. A
field that a manager applied before and leaves out now is removed, unless another owns it too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from tests.helm.list_keys import identity, keys_of

Path = tuple[str, ...]
Manager = tuple[str, str]
"""Name and operation, ``Apply`` or ``Update``: the two are different managers."""
_UNOWNED = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"), ("metadata", "managedFields")}
_SERVERS = ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")


class FieldOwners:
    """Owners of the fields of one object."""

    def __init__(self) -> None:
        self._owned: dict[Manager, set[Path]] = {}

    def conflicts(self, name: str, live: dict[str, Any], applied: dict[str, Any]) -> list[tuple[str, str]]:
        """Return name and field of each other manager whose value an application would change."""
        mine, present, wanted = (name, "Apply"), leaves(live), leaves(applied)
        return sorted(
            (manager[0], shown(path))
            for path, value in wanted.items()
            if path in present and present[path] != value
            for manager, paths in self._owned.items()
            if manager != mine and path in paths
        )

    def apply(self, name: str, live: dict[str, Any], applied: dict[str, Any]) -> dict[str, Any]:
        """Return the object after an application, whose values win."""
        mine, present, wanted = (name, "Apply"), leaves(live), leaves(applied)
        changed = {path for path, value in wanted.items() if present.get(path) != value}
        left_out = self._owned.get(mine, set()) - set(wanted)
        for manager, paths in self._owned.items():
            if manager != mine:
                paths.difference_update(changed)
                left_out.difference_update(paths)
        self._owned[mine] = set(wanted)
        kind = applied["kind"]
        left: dict[str, Any] = _without(_merged(live, applied, kind, ""), left_out, kind)
        return left

    def update(self, name: str, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
        """Note what a create, replacement or patch changed."""
        old, new = leaves(before) if before else {}, leaves(after)
        changed = {path for path, value in new.items() if old.get(path) != value}
        for paths in self._owned.values():
            paths.difference_update(changed, set(old) - set(new))
        if changed:
            self._owned.setdefault((name, "Update"), set()).update(changed)


def leaves(document: dict[str, Any]) -> dict[Path, Any]:
    """Return the owned values of an object by their paths; an entry of a keyed list has a path of its own."""
    found = dict(_leaves(document, document["kind"], ()))
    return {
        path: value
        for path, value in found.items()
        if path not in _UNOWNED and path[0] != "status" and not (path[0] == "metadata" and path[1] in _SERVERS)
    }


def _leaves(part: Any, kind: str, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(part, dict) and part:
        for name, value in part.items():
            yield from _leaves(value, kind, (*path, name))
    elif isinstance(part, list) and part and (keys := keys_of(path[-1], part, kind)):
        for entry in part:
            place = (*path, _entry(entry, keys))
            yield place, ""
            yield from _leaves(entry, kind, place)
    else:
        yield path, part


def shown(path: Path) -> str:
    return "".join(part if part.startswith("[") else f".{part}" for part in path)


def _entry(entry: dict[str, Any], keys: tuple[str, ...]) -> str:
    named = zip(keys, identity(entry, keys), strict=True)
    return f"[{','.join(f'{name}={json.dumps(value)}' for name, value in named)}]"


def _merged(known: Any, applied: Any, kind: str, field: str) -> Any:
    if isinstance(applied, dict) and isinstance(known, dict):
        return known | {name: _merged(known.get(name), value, kind, name) for name, value in applied.items()}
    if isinstance(applied, list) and isinstance(known, list) and (keys := keys_of(field, [*known, *applied], kind)):
        entries = {identity(entry, keys): entry for entry in known}
        for entry in applied:
            entries[identity(entry, keys)] = _merged(entries.get(identity(entry, keys)), entry, kind, "")
        return list(entries.values())
    return copy.deepcopy(applied)


def _without(part: Any, paths: set[Path], kind: str, path: Path = ()) -> Any:
    if isinstance(part, dict):
        return {
            name: _without(value, paths, kind, (*path, name))
            for name, value in part.items()
            if (*path, name) not in paths
        }
    if isinstance(part, list) and (keys := keys_of(path[-1], part, kind)):
        return [
            _without(entry, paths, kind, (*path, _entry(entry, keys)))
            for entry in part
            if (*path, _entry(entry, keys)) not in paths
        ]
    return part
