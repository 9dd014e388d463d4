"""Trace of each group: begins when it is issued, ends when it is trained on, skipped or given up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from mor_core import tracing
from mor_core.wire import PromptRecord

from mor_trainer.groups.scored_group import ScoredGroup

Outcome = Literal["trained", "skipped", "evaluated", "dropped", "unfinished"]


class GroupTraces:
    """The open ``group`` spans, one for all attempts of a group.

    Every method may be called from any thread: each changes the table by one atomic dictionary operation.
    """

    def __init__(self) -> None:
        self._open: dict[str, tracing.Span] = {}

    def issued(self, record: PromptRecord) -> PromptRecord:
        """Return the record with the traceparent of its group, whose span begins with its first issue."""
        span = self._open.get(record.group_id)
        if span is None:
            span = tracing.begin(
                "group",
                parent="",
                kind="producer",
                run=record.run,
                group=record.group_id,
                prompt=record.prompt_id,
                purpose=record.purpose,
            )
            if span is tracing.OFF:
                return record
            self._open[record.group_id] = span
        return record.model_copy(update={"trace": span.traceparent})

    def ended(self, group_id: str, outcome: Outcome, failure: str | None = None) -> None:
        """End the span of a group. ``failure``: why the group was not used."""
        span = self._open.pop(group_id, tracing.OFF)
        span.set(outcome=outcome)
        if failure is not None:
            span.fail(failure)
        span.end()

    @contextmanager
    def updating(
        self, run: str, step: int, taken: Sequence[ScoredGroup], skipped: Sequence[ScoredGroup]
    ) -> Iterator[None]:
        """Record the body as a span ``step`` in its own trace, and end the spans of its groups.

        Each group that is trained on gets a span ``update`` in its own trace; both spans are linked.
        """
        began_at = time.time()
        records = [group.record for group in taken]
        with tracing.span("step", parent="", links=[record.trace for record in records], run=run, step=step) as span:
            yield
        for group, record in zip(taken, records, strict=True):
            update = tracing.begin(
                "update",
                parent=record.trace or "",
                links=[span.traceparent],
                at=began_at,
                step=step,
                staleness=group.staleness,
            )
            update.end()
            self.ended(record.group_id, "trained")
        for group in skipped:
            self.ended(group.record.group_id, "skipped")

    def close(self) -> None:
        for group_id in list(self._open):
            self.ended(group_id, "unfinished")
