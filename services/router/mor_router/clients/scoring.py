"""Fan-out: every client is asked at once, and none can make the others wait beyond the deadline."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mor_core import tracing
from mor_core.errors import NotFound
from mor_core.tasks import stop
from mor_core.wire import ScoreItem

from mor_router.clients.pool import Pool
from mor_router.clients.responses import Answer, ClientFailure

_MOST_SHADOW_TASKS = 64

Answers = dict[str, dict[str, Answer]]
"""Item -> client -> answer."""


@dataclass(frozen=True)
class Batch:
    """Groups that are scored together, and the images that they name."""

    items: Sequence[ScoreItem]
    images: Mapping[str, bytes] = field(repr=False)
    traces: Mapping[str, str | None] = field(default_factory=dict)
    """Item -> ``traceparent`` of the span in which it is scored."""


class Scoring:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._shadows: set[asyncio.Task[dict[str, Answer]]] = set()

    async def ask(self, client: str, batch: Batch, deadline_s: float) -> dict[str, Answer]:
        """One client's answer for every item of ``batch``.

        It is asked under random item ids, new ones each time, so that they tell it nothing.
        """
        named = {secrets.token_hex(16): item for item in batch.items}
        items = [item.model_copy(update={"item_id": name}) for name, item in named.items()]
        with _called(client, batch) as told:
            try:
                answers = await self._pool.client(client).score(items, batch.images, deadline_s)
                found = {named[name].item_id: answer for name, answer in answers.items()}
            except (ClientFailure, NotFound) as error:
                found = {item.item_id: Answer("error", detail=str(error)) for item in batch.items}
            told.update(found)
            return found

    async def fan_out(
        self,
        batch: Batch,
        voters: Mapping[str, Collection[str]],
        shadows: Collection[str],
        deadline_s: float,
        known: Mapping[str, Mapping[str, Answer]] | None = None,
    ) -> Answers:
        """Ask ``voters`` (item -> its clients) and ``shadows`` (about all items) at once.

        Returns when every voter has answered or the deadline has passed. A shadow that is slower than all voters is
        left to finish unheard: it costs the group no time. ``known`` answers of an earlier attempt are not asked for
        again.
        """
        known = known or {}
        answers: Answers = {item.item_id: dict(known.get(item.item_id, {})) for item in batch.items}
        voting = {
            name: asyncio.create_task(self._remaining(name, replace(batch, items=items), answers, deadline_s))
            for name, items in _by_client(batch.items, voters).items()
        }
        shadowing: dict[str, asyncio.Task[dict[str, Answer]]] = {}
        for name in shadows:
            if len(self._shadows) < _MOST_SHADOW_TASKS:
                task = asyncio.create_task(self._remaining(name, batch, answers, deadline_s))
                self._shadows.add(task)
                task.add_done_callback(self._shadows.discard)
                shadowing[name] = task
        try:
            await asyncio.gather(*voting.values())
        finally:
            await stop(voting.values())
        for name, task in {**voting, **shadowing}.items():
            if task.done() and not task.cancelled():
                for item_id, answer in task.result().items():
                    answers[item_id][name] = answer
        return answers

    async def _remaining(self, name: str, batch: Batch, answers: Answers, deadline_s: float) -> dict[str, Answer]:
        items = [item for item in batch.items if name not in answers[item.item_id]]
        return await self.ask(name, replace(batch, items=items), deadline_s) if items else {}

    async def close(self) -> None:
        await stop(self._shadows)


@contextmanager
def _called(client: str, batch: Batch) -> Iterator[dict[str, Answer]]:
    """A span ``call`` in the trace of each item, with what the body is told that the client answered.

    The first item's is the one that the client's own spans belong to. What belongs to no trace, anchors say, gets one
    of its own: a request without would give them away.
    """
    first, *others = (item.item_id for item in batch.items)
    began_at, told = time.time(), dict[str, Answer]()
    links = [batch.traces.get(name) for name in others]
    with tracing.span("call", parent=batch.traces.get(first) or "", kind="client", links=links, client=client) as span:
        yield told
        _describe(span, told.get(first))
    for name in others:
        if (trace := batch.traces.get(name)) is not None:
            beside = tracing.begin(
                "call", parent=trace, kind="client", links=[span.traceparent], at=began_at, client=client
            )
            _describe(beside, told.get(name))
            beside.end()


def _describe(span: tracing.Span, answer: Answer | None) -> None:
    if answer is not None:
        span.set(status=answer.status)
        if answer.status != "ok":
            span.fail(answer.detail or answer.status)


def _by_client(items: Sequence[ScoreItem], asked: Mapping[str, Collection[str]]) -> dict[str, list[ScoreItem]]:
    found: dict[str, list[ScoreItem]] = {}
    for item in items:
        for name in asked[item.item_id]:
            found.setdefault(name, []).append(item)
    return found
