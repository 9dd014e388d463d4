"""The tokens that go through the model at once, and what happens when memory does not suffice for them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import structlog
import torch
from accelerate.utils.memory import should_reduce_batch_size
from mor_core.errors import MorError

from mor_trainer.model.batching import Unit

log = structlog.get_logger(__name__)

Plan = Callable[[int], Sequence[Sequence[Unit]]]
"""Micro-batches under a number of tokens, from the beginning: what was done of an earlier plan is undone."""

Work = Callable[[Sequence[Unit]], None]


class OutOfMemory(MorError):
    """A micro-batch that cannot be divided does not fit the memory."""


class Halved(Exception):
    """Memory ran out where an update cannot begin again by itself: in the middle of what all ranks compute together.

    ``tokens``: what the next attempt may take at once.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__(f"memory ran out: micro-batches are halved to {tokens} tokens")
        self.tokens = tokens


class TokenBudget:
    """``micro_batch_tokens``, halved each time memory runs out."""

    def __init__(self, tokens: int, *, alone: bool = True, fixed: bool = False) -> None:
        """``alone``: no other process takes part in the work. ``fixed``: other micro-batches are no way out."""
        self.tokens = tokens
        self._alone = alone
        self._fixed = fixed

    def spend(self, plan: Plan, work: Work) -> None:
        """``work`` on every micro-batch of ``plan``. When memory runs out, all of it again with half the tokens.

        Raises:
            OutOfMemory: with a single response, or where the micro-batches are fixed.
            Halved: other ranks wait for the work that failed.
        """
        while True:
            batches = plan(self.tokens)
            failed = _first_that_fails(batches, work)
            if failed is None:
                return
            self._halve(failed, longest=max(_longest(units) for units in batches))

    def _halve(self, units: Sequence[Unit], longest: int) -> None:
        """Half of what failed, yet room for each response alone. The exception, and with it the tensors of the failed
        micro-batch, is gone by now."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tokens = sum(len(unit.row) for unit in units)
        half = max(tokens // 2, longest)
        if half >= self.tokens or sum(len(unit.responses) for unit in units) == 1:
            raise OutOfMemory(
                f"memory ran out with {tokens} tokens at once, the least that the longest response takes with its "
                "prompt; set gradient_checkpointing, train adapters (tuning.kind=lora) or use shorter prompts"
            )
        if self._fixed:
            raise OutOfMemory(
                f"memory ran out with {tokens} tokens at once, and other micro-batches would change the bits of a "
                f"deterministic run; create it anew with a smaller micro_batch_tokens, such as {half}"
            )
        if not self._alone:
            raise Halved(half)
        self.tokens = half
        log.warning("memory ran out: micro-batches are halved", micro_batch_tokens=half)


def _first_that_fails(batches: Sequence[Sequence[Unit]], work: Work) -> Sequence[Unit] | None:
    for units in batches:
        try:
            work(units)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return units
    return None


def _longest(units: Sequence[Unit]) -> int:
    """Tokens of the longest response with its prompt."""
    return max(response.length for unit in units for response in unit.responses)
