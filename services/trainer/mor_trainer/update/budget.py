"""Token budget of a micro-batch, and the retry with half of it when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import structlog
import torch
from accelerate.utils.memory import should_reduce_batch_size
from mor_core.errors import MorError

from mor_trainer.model.micro_batches import MicroBatchItem

log = structlog.get_logger(__name__)

Plan = Callable[[int], Sequence[Sequence[MicroBatchItem]]]
"""Function that undoes an earlier plan's work and divides all work into micro-batches of at most a number of tokens."""

Work = Callable[[Sequence[MicroBatchItem]], None]


class OutOfMemory(MorError):
    """Memory too small for a micro-batch that cannot be divided."""


class RetryWithSmallerBatch(Exception):
    """Signal that memory ran out in an update that all ranks compute together, which one process cannot begin again.

    ``tokens``: token budget of the next attempt.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__(f"memory ran out: micro-batches are halved to {tokens} tokens")
        self.tokens = tokens


class TokenBudget:
    """``micro_batch_tokens``, halved each time memory runs out."""

    def __init__(self, tokens: int, *, alone: bool = True, fixed: bool = False) -> None:
        """``alone``: no other process takes part in the work. ``fixed``: other micro-batches are not allowed."""
        self.tokens = tokens
        self._alone = alone
        self._fixed = fixed

    def run(self, plan: Plan, work: Work) -> None:
        """Run ``work`` on every micro-batch of ``plan``; when memory runs out, begin again with half the tokens.

        Raises:
            OutOfMemory: a single response does not fit, or the micro-batches are fixed.
            RetryWithSmallerBatch: other ranks wait for the work that failed.
        """
        while True:
            batches = plan(self.tokens)
            failed = _first_that_fails(batches, work)
            if failed is None:
                return
            self._halve(failed, longest=max(item.longest for batch in batches for item in batch))

    def _halve(self, batch: Sequence[MicroBatchItem], longest: int) -> None:
        """Halve the tokens of the batch that failed, but leave room for each response alone.

        The exception, and with it the tensors of the failed micro-batch, has been freed when this is called.
        """
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tokens = sum(map(len, batch))
        half = max(tokens // 2, longest)
        if half >= self.tokens or sum(len(item.responses) for item in batch) == 1:
            raise OutOfMemory(
                f"memory ran out with {tokens} tokens at once, the least that the longest response takes with its "
                "prompt; set gradient_checkpointing, train adapters (tuning.kind=lora) or use shorter prompts"
            )
        if self._fixed:
            raise OutOfMemory(
                f"memory ran out with {tokens} tokens at once, and other micro-batches would change the bits of a "
                f"deterministic run; create a new one with a smaller micro_batch_tokens, such as {half}"
            )
        if not self._alone:
            raise RetryWithSmallerBatch(half)
        self.tokens = half
        log.warning("memory ran out: micro-batches are halved", micro_batch_tokens=half)


def _first_that_fails(batches: Sequence[Sequence[MicroBatchItem]], work: Work) -> Sequence[MicroBatchItem] | None:
    for batch in batches:
        try:
            work(batch)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return batch
    return None
