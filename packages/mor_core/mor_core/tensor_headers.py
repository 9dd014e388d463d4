"""Headers of safetensors files: names, types and shapes of the tensors in them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid

PREFIX_BYTES = 8
"""Bytes before the header, which state its length."""
_LONGEST_HEADER = 100 << 20
"""Bytes; safetensors itself refuses longer headers."""
_POINTER = b"version "
"""Beginning of the text that Git has in place of a file in Git LFS."""


def read_header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the entries of a safetensors file by tensor name, and the offset of the first tensor's bytes.

    Raises:
        Invalid: the file is no safetensors file, or is truncated.
    """
    with file.open("rb") as stream:
        prefix = stream.read(PREFIX_BYTES)
        length = header_length(prefix)
        content = stream.read(length or 0)
    try:
        entries = parse_header(content)
    except ValueError as error:
        if prefix == _POINTER:
            raise Invalid(f"{file.name}: a pointer of Git LFS, not the file; fetch it with 'git lfs pull'") from error
        raise Invalid(f"{file.name}: not a safetensors file; save the checkpoint with save_pretrained") from error
    start = PREFIX_BYTES + (length or 0)
    end = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if file.stat().st_size != end:
        raise Invalid(
            f"{file.name}: {file.stat().st_size} bytes, its header gives {end}; the file is truncated, copy it again"
        )
    return entries, start


def header_length(prefix: bytes) -> int | None:
    """Return the length of the header that a file's first bytes state; ``None`` if no such file begins with them."""
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == PREFIX_BYTES else _LONGEST_HEADER + 1
    return int(length) if length <= _LONGEST_HEADER else None


def parse_header(content: bytes) -> dict[str, dict[str, Any]]:
    """Return the entries of a header by tensor name.

    Raises:
        ValueError: it is none.
    """
    try:
        entries: dict[str, dict[str, Any]] = json.loads(content)
        entries.pop("__metadata__", None)
        whole = all(_is_entry(entry) for entry in entries.values())
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError("no JSON object of tensors") from error
    if not whole:
        raise ValueError("an entry has no type, shape and offsets")
    return entries


def _is_entry(entry: Any) -> bool:
    """Return whether a header's entry has a type, a shape, and offsets in order."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    whole = all(type(count) is int and count >= 0 for count in (*shape, *offsets))
    return bool(whole and offsets[0] <= offsets[1])
