"""Files that cannot hold rows or pictures as they are, known by their first bytes or their suffix."""

from __future__ import annotations

from pathlib import Path

_BY_FIRST_BYTES = {
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ\x00": "compressed by xz; unpack it",
    b"\x04\x22\x4d\x18": "compressed by lz4; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
    b"version https://git-lfs": "the pointer of a file in Git LFS; get the file, as by 'git lfs pull'",
}
_FORMATS = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}
"""Suffixes by which files are read as what their first bytes say."""
COMPRESSED = {".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip"}
"""Suffixes of compressed files."""
_BY_SUFFIX = {
    ".csv": 'a table in text (CSV); save it as JSON lines or Parquet, as by: python -c "import pandas; '
    "pandas.read_csv('OLD.csv').to_json('NEW.jsonl', orient='records', lines=True)\"",
    ".tsv": 'a table in text (TSV); save it as JSON lines or Parquet, as by: python -c "import pandas; '
    "pandas.read_csv('OLD.tsv', sep='\\t').to_json('NEW.jsonl', orient='records', lines=True)\"",
    ".xlsx": "a table of a spreadsheet; save it as JSON lines or Parquet",
    ".xls": "a table of a spreadsheet; save it as JSON lines or Parquet",
}
LONGEST_START = max(map(len, _BY_FIRST_BYTES | _FORMATS))
"""Bytes of a file that ``foreign_kind`` needs."""


def foreign_kind(start: bytes, name: Path | None = None) -> str | None:
    """Return what a file is that begins with ``start``, and its cure; ``None`` if it may be read."""
    suffix = "" if name is None else name.suffix.lower()
    for first, wanted in _FORMATS.items():
        if start.startswith(first) and suffix != wanted:
            return f"a file that is read by the name *{wanted}; rename it"
    known = next((kind for first, kind in _BY_FIRST_BYTES.items() if start.startswith(first)), None)
    return known or _BY_SUFFIX.get(suffix)
