"""Files of an index: their tables, their manifest, and the check before they are used.

A folder of indexes may be shared and disks fail, so what is read is checked: sizes and a checksum when an index is
opened, each value when a row is read, and the hash of each picture.
"""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.failures import describe, describe_failure
from mor_core.plain_files import read_plain_file
from mor_core.prompt_index.rows_hash import RowsHash

MANIFEST = "manifest.json"
PROMPTS = "prompts.sqlite3"
PICTURES = "pictures.bin"
EXCHANGED = "exchanged"
"""Empty file in an index of which a reader has found that a picture is another one now."""
_LARGEST_MANIFEST = 64 << 10
_BLOCK = 1 << 20
TABLES = """
CREATE TABLE root (path BLOB NOT NULL);  -- folder that file names must stay below
CREATE TABLE files (number INTEGER PRIMARY KEY, path BLOB NOT NULL);
CREATE TABLE prompts (
  row INTEGER PRIMARY KEY,    -- from 0, without gaps
  id TEXT NOT NULL,
  domain TEXT,
  file INTEGER NOT NULL REFERENCES files,
  line INTEGER NOT NULL,
  messages TEXT NOT NULL      -- JSON
);
CREATE TABLE pictures (
  row INTEGER NOT NULL,
  place INTEGER NOT NULL,     -- among the distinct pictures of the row
  sha256 BLOB NOT NULL,
  name TEXT,                  -- file, as the row names it; null: in the row's own file, or copied
  copied INTEGER NOT NULL,    -- 1: in pictures.bin
  start INTEGER NOT NULL,
  size INTEGER NOT NULL,
  PRIMARY KEY (row, place)
) WITHOUT ROWID;
CREATE TABLE problems (
  row INTEGER PRIMARY KEY,    -- from 0, without gaps
  id TEXT NOT NULL,           -- empty where the row is too broken to have one
  file INTEGER NOT NULL,
  line INTEGER NOT NULL,
  problem TEXT NOT NULL
);
CREATE TABLE unusable (       -- pictures of the rows with problems, in files of their own
  row INTEGER PRIMARY KEY,    -- from 0, without gaps
  path BLOB NOT NULL,
  state TEXT NOT NULL         -- of the file when it was read, see file_state
);
"""
Bytes = Annotated[int, Field(ge=0)]


class IndexManifest(BaseModel):
    """Description of an index, by which a damaged one is found."""

    model_config = ConfigDict(extra="forbid")

    schema_name: Literal["mor.prompt-index/1"] = Field("mor.prompt-index/1", alias="schema")
    source: str
    """Data set, for whoever looks into the folder."""
    prompts: Bytes
    problems: Bytes
    rows_sha256: str
    """Hash of what the prompts say and show, in their order; see ``RowsHash``."""
    database_bytes: Bytes
    database_crc32: Bytes
    picture_bytes: Bytes


def write_manifest(folder: Path, source: Path, prompts: int, problems: int, rows: RowsHash) -> None:
    """Describe the complete files of an index."""
    database = folder / PROMPTS
    manifest = IndexManifest(
        source=str(source),
        prompts=prompts,
        problems=problems,
        rows_sha256=rows.hexdigest(),
        database_bytes=database.stat().st_size,
        database_crc32=_crc32(database),
        picture_bytes=(folder / PICTURES).stat().st_size,
    )
    atomic.write(folder / MANIFEST, manifest.model_dump_json(by_alias=True).encode())


def check_files(folder: Path) -> IndexManifest:
    """Return the manifest of an index, after comparing the files with it; a gigabyte of texts takes about a second.

    Raises:
        FileNotFoundError: there is no index.
        Invalid: it is damaged.
    """
    try:
        manifest = IndexManifest.model_validate_json(
            read_plain_file(folder / MANIFEST, _LARGEST_MANIFEST), extra="ignore"
        )
        database, pictures = folder / PROMPTS, folder / PICTURES
        sizes = database.stat().st_size, pictures.stat().st_size
        crc32 = _crc32(database)
    except ValidationError as error:
        raise Invalid(f"{folder / MANIFEST}: {describe(error)}") from error
    if sizes != (manifest.database_bytes, manifest.picture_bytes):
        raise Invalid(
            f"{folder}: files of {sizes[0]} and {sizes[1]} bytes, of {manifest.database_bytes} and "
            f"{manifest.picture_bytes}"
        )
    if crc32 != manifest.database_crc32:
        raise Invalid(f"{database}: its checksum is {crc32}, of {manifest.database_crc32}")
    return manifest


def connect_to_read(folder: Path) -> sqlite3.Connection:
    """Open the tables of an index, which no process changes, so that no lock of the file system is needed.

    Raises:
        Invalid: they cannot be read.
    """
    address = f"file:{quote(str((folder / PROMPTS).absolute()))}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema = OFF")
    except sqlite3.Error as error:
        raise Invalid(f"{folder / PROMPTS}: {describe_failure(error)}") from error
    return connection


def _crc32(file: Path) -> int:
    total = 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            total = zlib.crc32(block, total)
    return total
