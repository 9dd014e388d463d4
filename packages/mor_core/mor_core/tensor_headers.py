"""Headers of safetensors files: names, types and shapes of the tensors in them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid

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
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _LONGEST_HEADER + 1
        content = stream.read(length) if length <= _LONGEST_HEADER else b""
    try:
        entries = json.loads(content)
        entries.pop("__metadata__", None)
        if not all(_is_entry(entry) for entry in entries.values()):
            raise ValueError("an entry has no type, shape and offsets")
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, AttributeError, RecursionError) as error:
        if prefix == _POINTER:
            raise Invalid(f"{file.name}: a pointer of Git LFS, not the file; fetch it with 'git lfs pull'") from error
        raise Invalid(f"{file.name}: not a safetensors file; save the checkpoint with save_pretrained") from error
    if file.stat().st_size != 8 + length + end:
        raise Invalid(
            f"{file.name}: {file.stat().st_size} bytes, its header gives {8 + length + end};"
            " the file is truncated, copy it again"
        )
    return entries, 8 + length


def _is_entry(entry: Any) -> bool:
    """Return whether a header's entry has a type, a shape, and offsets in order."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    whole = all(type(count) is int and count >= 0 for count in (*shape, *offsets))
    return bool(whole and offsets[0] <= offsets[1])
