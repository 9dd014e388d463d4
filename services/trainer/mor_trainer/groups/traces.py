"""The trace of each group: begun when it is issued, ended when it was trained on, skipped or given up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from mor_core import tracing
from mor_core.wire import PromptRecord

from mor_trainer.groups.scored import Taken

Outcome = Literal["trained", "skipped", "evaluated", "dropped", "unfinished"]


class GroupTraces:
    """The spans ``group`` of what is under way, one for all attempts. Called from any thread."""

    def __init__(self) -> None:
        self._open: dict[str, tracing.Span] = {}

    def issued(self, record: PromptRecord) -> PromptRecord:
        """The record with the traceparent of its group."""
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
        """``failure``: why nothing came of it."""
        span = self._open.pop(group_id, tracing.OFF)
        span.set(outcome=outcome)
        if failure is not None:
            span.fail(failure)
        span.end()

    @contextmanager
    def updating(self, run: str, step: int, taken: Sequence[Taken], skipped: Sequence[Taken]) -> Iterator[None]:
        """A span ``step`` of its own trace for the length of the body, and for each group that is trained on a span
        ``update`` in the group's trace; both know of each other."""
        began_at = time.time()
        records = [item.group.record for item in taken]
        with tracing.span("step", parent="", links=[record.trace for record in records], run=run, step=step) as span:
            yield
        for item, record in zip(taken, records, strict=True):
            update = tracing.begin(
                "update",
                parent=record.trace or "",
                links=[span.traceparent],
                at=began_at,
                step=step,
                staleness=item.staleness,
            )
            update.end()
            self.ended(record.group_id, "trained")
        for item in skipped:
            self.ended(item.group.record.group_id, "skipped")

    def close(self) -> None:
        for group_id in list(self._open):
            self.ended(group_id, "unfinished")
