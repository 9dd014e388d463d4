"""Keys of the lists that Kubernetes merges entry by entry; all other lists are replaced whole."""

from __future__ import annotations

from typing import Any

_KEYS = {
    "conditions": ("type",),
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "resourceClaims": ("name",),
    "secrets": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_DEFAULTS = {"protocol": "TCP"}


def keys_of(field: str, entries: list[Any], kind: str) -> tuple[str, ...] | None:
    """Return the fields that identify an entry of the list ``field`` in an object of ``kind``; None: it is replaced."""
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        return None
    if field == "ports":
        if all("containerPort" in entry or "$patch" in entry for entry in entries):
            return ("containerPort", "protocol")
        return ("port", "protocol") if kind == "Service" else None
    return _KEYS.get(field)


def identity(entry: dict[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(entry.get(key, _DEFAULTS.get(key)) for key in keys)


def duplicates(document: dict[str, Any]) -> list[str]:
    """Return a complaint for each entry that has the key of another, in the words of the API server."""
    found: list[str] = []
    _search(document, document["kind"], "", found)
    return found


def _search(part: Any, kind: str, path: str, found: list[str]) -> None:
    if isinstance(part, dict):
        for name, value in part.items():
            _search(value, kind, f"{path}.{name}", found)
    elif isinstance(part, list):
        keys = keys_of(path.rpartition(".")[2], part, kind)
        seen = set()
        for at, entry in enumerate(part):
            if keys is not None:
                key = identity(entry, keys)
                if key in seen:
                    named = ",".join(f'{name}="{value}"' for name, value in zip(keys, key, strict=True))
                    found.append(f"{path}: duplicate entries for key [{named}]")
                seen.add(key)
            _search(entry, kind, f"{path}[{at}]" if keys is None else path + _label(entry, keys), found)


def _label(entry: dict[str, Any], keys: tuple[str, ...]) -> str:
    named = ",".join(f'{name}="{value}"' for name, value in zip(keys, identity(entry, keys), strict=True))
    return f"[{named}]"
