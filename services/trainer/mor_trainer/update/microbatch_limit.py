"""What a run learnt about the memory of its ranks, kept beside its checkpoints.

A single process that runs out of memory begins the update again. One of several ranks cannot: the others wait for it in
the middle of a layer. All of them end then and are started again, and take the halved number of tokens from here.
"""

from __future__ import annotations

from pathlib import Path

from mor_core import atomic
from pydantic import BaseModel

_FILE = "memory.json"


class Memory(BaseModel):
    micro_batch_tokens: int


def remember(run_folder: Path, tokens: int) -> None:
    """Tokens that a micro-batch of the run may have from now on."""
    atomic.write(run_folder / _FILE, Memory(micro_batch_tokens=tokens).model_dump_json().encode())


def remembered(run_folder: Path, tokens: int) -> int:
    """The least of ``tokens`` and what was remembered."""
    try:
        known = Memory.model_validate_json((run_folder / _FILE).read_bytes())
    except FileNotFoundError:
        return tokens
    return min(tokens, known.micro_batch_tokens)
