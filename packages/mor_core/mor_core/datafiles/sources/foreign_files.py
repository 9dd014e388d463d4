"""Files that cannot hold rows or pictures as they are, known by their first bytes or their suffix."""

from __future__ import annotations

from pathlib import Path

_BY_FIRST_BYTES = {
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ\x00": "compressed by xz; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
    b"version https://git-lfs": "the pointer of a file in Git LFS; get the file, as by 'git lfs pull'",
}
_BY_SUFFIX = dict.fromkeys((".csv", ".tsv", ".xlsx"), "a table of another kind; save it as JSON lines or Parquet")
LONGEST_START = max(map(len, _BY_FIRST_BYTES))
"""Bytes of a file that ``foreign_kind`` needs."""


def foreign_kind(start: bytes, name: Path | None = None) -> str | None:
    """Return what a file is that begins with ``start``, and its cure; ``None`` if it may be read."""
    known = next((kind for first, kind in _BY_FIRST_BYTES.items() if start.startswith(first)), None)
    return known or (_BY_SUFFIX.get(name.suffix.lower()) if name is not None else None)
