"""Kubernetes' merge patches: the plain one of RFC 7386, and the strategic one, which merges lists entry by entry."""

from __future__ import annotations

import copy
from typing import Any

from tests.helm.list_keys import identity, keys_of


def merge(known: Any, change: Any) -> Any:
    """Apply a patch of RFC 7386."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    merged = dict(known) if isinstance(known, dict) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def strategic(known: Any, change: Any, kind: str, field: str = "") -> Any:
    """Apply a strategic merge patch to a part of an object of ``kind``."""
    if isinstance(change, list):
        return _entries(known, change, kind, field)
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    if change.get("$patch") == "replace":
        return {name: copy.deepcopy(value) for name, value in change.items() if name != "$patch"}
    merged = dict(known) if isinstance(known, dict) else {}
    if retained := change.get("$retainKeys"):
        merged = {name: value for name, value in merged.items() if name in retained}
    for name, value in change.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            listed = name.partition("/")[2]
            merged[listed] = [each for each in merged.get(listed, []) if each not in value]
        elif name.startswith("$"):
            continue
        elif value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
            merged.pop(name, None)
        else:
            merged[name] = strategic(merged.get(name), value, kind, name)
    for name, order in change.items():
        listed = name.partition("/")[2]
        if name.startswith("$setElementOrder/") and listed in merged:
            merged[listed] = _ordered(merged[listed], order, kind, listed)
    return merged


def _entries(known: Any, change: list[Any], kind: str, field: str) -> list[Any]:
    current: list[Any] = known if isinstance(known, list) else []
    if field == "finalizers":
        return [*current, *(each for each in change if each not in current)]
    keys = keys_of(field, [*current, *change], kind)
    # A strategic patch knows entries by their first key alone; server-side apply came with the others.
    if keys is None:
        return copy.deepcopy([each for each in change if not (isinstance(each, dict) and "$patch" in each)])
    if any(each.get("$patch") == "replace" for each in change):
        return copy.deepcopy([each for each in change if "$patch" not in each])
    merged = {identity(entry, keys[:1]): entry for entry in current}
    for each in change:
        key = identity(each, keys[:1])
        if each.get("$patch") == "delete":
            merged.pop(key, None)
        else:
            merged[key] = strategic(merged.get(key), each, kind)
    return list(merged.values())


def _ordered(entries: list[Any], order: list[Any], kind: str, field: str) -> list[Any]:
    keys = keys_of(field, entries, kind)
    if keys is None:
        return sorted(entries, key=lambda entry: order.index(entry) if entry in order else len(order))
    wanted = [identity(entry, keys[:1]) for entry in order]
    places = {key: at for at, key in enumerate(wanted)}
    return sorted(entries, key=lambda entry: places.get(identity(entry, keys[:1]), len(places)))
