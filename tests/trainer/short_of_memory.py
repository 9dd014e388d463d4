"""Script: ``mor-trainer work`` whose second rank runs out of memory in micro-batches over a number of tokens."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from mor_trainer.cli import app
from mor_trainer.model.micro_batches import MicroBatchItem
from mor_trainer.update.updater import Updater

_LIMIT = int(sys.argv[1])
_compute = Updater._accumulate


def _limited(self: Updater, batch: Sequence[MicroBatchItem], part: Any, totals: Any) -> None:
    if os.environ["RANK"] == "1" and sum(map(len, batch)) > _LIMIT:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TB")
    _compute(self, batch, part, totals)


if __name__ == "__main__":
    Updater._accumulate = _limited  # type: ignore[method-assign]
    app(["work"])
