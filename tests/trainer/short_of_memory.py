"""``mor-trainer work`` whose second rank has no memory for micro-batches of more than so many tokens: a script."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from mor_trainer.cli import app
from mor_trainer.model.batching import Unit
from mor_trainer.update.update import Updater

_LIMIT = int(sys.argv[1])
_compute = Updater._accumulate


def _limited(self: Updater, units: Sequence[Unit], part: Any) -> None:
    if os.environ["RANK"] == "1" and sum(len(unit.row) for unit in units) > _LIMIT:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TB")
    _compute(self, units, part)


if __name__ == "__main__":
    Updater._accumulate = _limited  # type: ignore[method-assign]
    app(["work"])
