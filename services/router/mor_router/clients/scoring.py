"""Fan-out of score requests: all clients are called at once, and none delays the others beyond the deadline."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from mor_core import tracing
from mor_core.errors import NotFound
from mor_core.tasks import stop
from mor_core.wire import PromptOrigin, ScoreItem

from mor_router.clients.caller import RUNS, Caller
from mor_router.clients.pool import ClientPool
from mor_router.clients.responses import ClientFailure, ClientResponse

_MOST_SHADOW_TASKS = 16
"""Shadow calls of one caller in flight to one client: those to a slow one cannot pile up. Above it a group goes without
that client."""

_ON_TRIAL = ClientResponse("circuit_open", detail="on trial after failures; slower than the others", of_call=True)

ClientResponses = dict[str, dict[str, ClientResponse]]
"""Item -> client -> response."""


@dataclass(frozen=True)
class ScoreBatch:
    """Groups that are scored together, with the images that they name."""

    items: Sequence[ScoreItem]
    images: Mapping[str, bytes] = field(repr=False)
    traces: Mapping[str, str | None] = field(default_factory=dict)
    """Item -> ``traceparent`` of the span in which it is scored."""
    origins: Mapping[str, PromptOrigin] = field(default_factory=dict)
    """Item -> origin of its prompt, by which the clients' rules decide. An item without one goes to no client whose
    rule wants something."""

    def origin(self, item_id: str) -> PromptOrigin:
        return self.origins.get(item_id, PromptOrigin())


class ScoreRequester:
    """Requests for scores to the clients of the pool."""

    def __init__(self, pool: ClientPool) -> None:
        self._pool = pool
        self._shadows: set[asyncio.Task[dict[str, ClientResponse]]] = set()
        self._in_shadow: Counter[tuple[str, Caller]] = Counter()
        """Client and caller -> shadow calls in flight."""

    async def request(
        self, client: str, batch: ScoreBatch, deadline_s: float, caller: Caller = RUNS
    ) -> dict[str, ClientResponse]:
        """Return one client's response for every item of ``batch``.

        The items are sent under random ids, new ones each time, so that a client cannot link them to groups or anchors.
        Every prompt passes here, whatever it is for: one that the client may not be sent is not asked. Those
        who plan calls leave such clients out, so that this happens only where a rule has changed meanwhile, such as
        while the call waits for earlier ones, or for its next attempt.
        """
        refused = self._refused(client, batch)
        batch = replace(batch, items=[item for item in batch.items if item.item_id not in refused])
        if not batch.items:
            return refused
        by_alias = {secrets.token_hex(16): item for item in batch.items}
        items = [item.model_copy(update={"item_id": alias}) for alias, item in by_alias.items()]

        def withdrawal(alias: str) -> str | None:
            return self._pool.withdrawal(client, batch.origin(by_alias[alias].item_id))

        with _call_spans(client, batch) as outcome:
            try:
                answers = await self._pool.client(client).score(items, batch.images, deadline_s, caller, withdrawal)
                found = {by_alias[alias].item_id: answer for alias, answer in answers.items()}
            except (ClientFailure, NotFound) as error:
                found = {item.item_id: ClientResponse("error", detail=str(error), of_call=True) for item in batch.items}
            outcome.update(found)
            return refused | found

    def unasked(self, origin: PromptOrigin) -> Mapping[str, str]:
        """Map the clients that may not be sent a prompt of this origin to the reason."""
        return self._pool.unasked(origin)

    def _refused(self, client: str, batch: ScoreBatch) -> dict[str, ClientResponse]:
        """Return answers for the items that a client may not be sent."""
        refusals = {item.item_id: self._pool.withdrawal(client, batch.origin(item.item_id)) for item in batch.items}
        return {
            name: ClientResponse("not_asked", detail=reason, of_call=True)
            for name, reason in refusals.items()
            if reason is not None
        }

    async def fan_out(
        self,
        batch: ScoreBatch,
        weighted: Mapping[str, Collection[str]],
        shadows: Collection[str],
        deadline_s: float,
        *,
        known: Mapping[str, Mapping[str, ClientResponse]] | None = None,
        caller: Caller = RUNS,
        late: Callable[[ClientResponses], None] | None = None,
    ) -> ClientResponses:
        """Request scores from the ``weighted`` clients (item -> its clients) and from ``shadows`` (all items) at once.

        Returns when every weighted client has answered or the deadline has passed. A shadow that is slower than all of
        them finishes on its own and its scores go to ``late`` or are dropped, so that it costs the group no time; the
        same holds for a client whose circuit has it on trial, unless all that must still answer are. Responses in
        ``known``, of an earlier attempt, are not requested again.
        """
        known = known or {}
        answers: ClientResponses = {item.item_id: dict(known.get(item.item_id, {})) for item in batch.items}
        wanted = {name: replace(batch, items=items) for name, items in _by_client(batch.items, weighted).items()}
        on_trial = {name for name in wanted if self._pool.circuit_state(name) == "half_open"}
        if on_trial >= {
            name for name, items in wanted.items() if any(name not in answers[i.item_id] for i in items.items)
        }:
            on_trial = set()
        weighted_tasks = {
            name: asyncio.create_task(self._request_missing(name, part, answers, deadline_s, caller))
            for name, part in wanted.items()
            if name not in on_trial
        }
        shadow_tasks: dict[str, asyncio.Task[dict[str, ClientResponse]]] = {}
        for name, part in [*((name, wanted[name]) for name in on_trial), *self._for_shadows(batch, shadows)]:
            if self._in_shadow[name, caller] < _MOST_SHADOW_TASKS:
                task = asyncio.create_task(self._request_missing(name, part, answers, deadline_s, caller))
                self._shadows.add(task)
                self._in_shadow[name, caller] += 1
                task.add_done_callback(partial(self._end_shadow, (name, caller)))
                shadow_tasks[name] = task
        try:
            await asyncio.gather(*weighted_tasks.values())
        finally:
            await stop(weighted_tasks.values())
        for name, task in {**weighted_tasks, **shadow_tasks}.items():
            if task.done() and not task.cancelled():
                for item_id, answer in task.result().items():
                    answers[item_id][name] = answer
            elif late is not None:
                task.add_done_callback(partial(_deliver, name, late))
        for name in on_trial:
            for item in wanted[name].items:
                answers[item.item_id].setdefault(name, _ON_TRIAL)
        return answers

    def _for_shadows(self, batch: ScoreBatch, shadows: Collection[str]) -> Iterator[tuple[str, ScoreBatch]]:
        """Yield each shadow with the items that it may be sent: a honeypot among them may be for fewer clients."""
        for name in shadows:
            refused = self._refused(name, batch)
            yield name, replace(batch, items=[item for item in batch.items if item.item_id not in refused])

    def _end_shadow(self, sent: tuple[str, Caller], task: asyncio.Task[dict[str, ClientResponse]]) -> None:
        self._shadows.discard(task)
        self._in_shadow -= Counter((sent,))  # which also drops clients without a call

    async def _request_missing(
        self, name: str, batch: ScoreBatch, answers: ClientResponses, deadline_s: float, caller: Caller
    ) -> dict[str, ClientResponse]:
        items = [item for item in batch.items if name not in answers[item.item_id]]
        return await self.request(name, replace(batch, items=items), deadline_s, caller) if items else {}

    async def close(self) -> None:
        await stop(self._shadows)


def _deliver(
    client: str, late: Callable[[ClientResponses], None], task: asyncio.Task[dict[str, ClientResponse]]
) -> None:
    if not task.cancelled() and task.exception() is None:
        late({item_id: {client: answer} for item_id, answer in task.result().items()})


@contextmanager
def _call_spans(client: str, batch: ScoreBatch) -> Iterator[dict[str, ClientResponse]]:
    """Record a span ``call`` in the trace of each item; the body puts the responses into the yielded dictionary.

    The client's own spans belong to the span of the first item. An item without a trace, such as an anchor, gets a new
    one: a request without a trace would reveal that it is not a live group.
    """
    first, *others = (item.item_id for item in batch.items)
    began_at, outcome = time.time(), dict[str, ClientResponse]()
    links = [batch.traces.get(name) for name in others]
    with tracing.span("call", parent=batch.traces.get(first) or "", kind="client", links=links, client=client) as span:
        yield outcome
        _annotate(span, outcome.get(first))
    for name in others:
        if (trace := batch.traces.get(name)) is not None:
            linked = tracing.begin(
                "call", parent=trace, kind="client", links=[span.traceparent], at=began_at, client=client
            )
            _annotate(linked, outcome.get(name))
            linked.end()


def _annotate(span: tracing.Span, answer: ClientResponse | None) -> None:
    if answer is not None:
        span.set(status=answer.status)
        if answer.status != "ok":
            span.fail(answer.detail or answer.status)


def _by_client(items: Sequence[ScoreItem], weighted: Mapping[str, Collection[str]]) -> dict[str, list[ScoreItem]]:
    found: dict[str, list[ScoreItem]] = {}
    for item in items:
        for name in weighted[item.item_id]:
            found.setdefault(name, []).append(item)
    return found
