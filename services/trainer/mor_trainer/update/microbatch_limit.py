"""Limit of a run's micro-batches after memory ran out, kept beside its checkpoints.

A single process that runs out of memory begins the update again. One of several ranks cannot: the others wait for it in
the middle of a layer. All ranks end then, are started again, and read the halved number of tokens here.
"""

from __future__ import annotations

from pathlib import Path

from mor_core import atomic
from mor_core.plain_files import read_plain_file
from mor_core.sealed_json import seal, unseal
from mor_core.stored import StoredEntries
from pydantic import BaseModel, Field

_FILE = "memory.json"
_LARGEST_BYTES = 1 << 10
_LIMITS = StoredEntries("micro_batch_limits")


class MicroBatchLimit(BaseModel):
    """Content of the file."""

    micro_batch_tokens: int = Field(ge=1)


def write_limit(run_folder: Path, tokens: int, staging: Path | None = None) -> None:
    """Limit the run's micro-batches to ``tokens`` from the next attempt on."""
    content = MicroBatchLimit(micro_batch_tokens=tokens).model_dump_json().encode()
    atomic.write(run_folder / _FILE, seal(content), staging=staging)


def read_limit(run_folder: Path, tokens: int) -> int:
    """Return ``tokens``, or the run's limit where that is less."""
    path = run_folder / _FILE
    there = path if path.is_symlink() or path.exists() else None
    limit = _LIMITS.parse(
        path,
        there,
        lambda file: MicroBatchLimit.model_validate_json(unseal(read_plain_file(file, _LARGEST_BYTES)), extra="ignore"),
    )
    return tokens if limit is None else min(tokens, limit.micro_batch_tokens)
