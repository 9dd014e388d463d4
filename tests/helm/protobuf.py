"""Kubernetes' protobuf envelope as a document, for the kinds that helm and kubectl send in it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

_METADATA = ((1, "name"), (2, "generateName"), (3, "namespace"), (5, "uid"), (6, "resourceVersion"))


def decode(body: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError: a kind other than Namespace, Secret and ConfigMap.
    """
    envelope = _fields(body[4:])
    kind = _fields(envelope[1][0])
    fields = _fields(envelope[2][0])
    document: dict[str, Any] = {"apiVersion": kind[1][0].decode(), "kind": kind[2][0].decode()}
    metadata = _fields(fields[1][0]) if 1 in fields else {}
    found = {name: metadata[number][0].decode() for number, name in _METADATA if metadata.get(number, [b""])[0]}
    found |= {
        name: _map(metadata[n], bytes.decode) for n, name in ((11, "labels"), (12, "annotations")) if n in metadata
    }
    document["metadata"] = found
    match document["kind"]:
        case "Secret":
            document["data"] = _map(fields.get(2, []), lambda value: base64.b64encode(value).decode())
            document["type"] = fields[3][0].decode() if 3 in fields else "Opaque"
        case "ConfigMap":
            document["data"] = _map(fields.get(2, []), bytes.decode)
        case "Namespace" | "DeleteOptions":
            pass
        case other:
            raise ValueError(f"no protobuf of {other} is read here")
    return document


def _map(entries: list[bytes], read: Callable[[bytes], str]) -> dict[str, str]:
    pairs = [_fields(entry) for entry in entries]
    return {pair[1][0].decode(): read(pair.get(2, [b""])[0]) for pair in pairs}


def _fields(message: bytes) -> dict[int, list[Any]]:
    fields: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        match tag & 7:
            case 0:
                value: Any = varint()
            case 1 | 2 | 5 as wire:
                size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
                value = message[at : at + size]
                at += size
            case wire:
                raise ValueError(f"wire type {wire}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields
