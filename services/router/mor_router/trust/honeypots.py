"""Honeypots: groups sent to clients that look like live groups and are anchors.

A honeypot travels like one more group of the run: it is an item of a live call, at a random place. So nothing about the
call tells of it: time, connection, order and duration are those of the live groups beside it. Two rules keep the size
of the call from telling:

- It aims at a size: that of the call of a random live group. It joins the next call that has one group fewer.
- No call gets a size that live calls do not have. Where all calls have the same size, as many honeypots as a call has
  groups leave as a call of their own, by a gap like those between live calls.

Honeypots are tried again as live groups are, where calls failed without which there is no quorum: what a client is sent
once more tells nothing either.

One honeypot falls on each stretch of as many live groups as the share makes, at a random place of it: a step of a run
with far more groups than others would stand out. Live groups do not wait for honeypots to be made.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog
from mor_core.errors import MorError
from mor_core.failures import describe_failure
from mor_core.tasks import stop
from mor_core.wire import Messages, image_hashes
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.clients.honeypot_scores import HoneypotScore, HoneypotScores, scored_now
from mor_router.clients.responses import ClientResponse
from mor_router.clients.scoring import ClientResponses, ScoreBatch, ScoreRequester
from mor_router.embedding import Embedder
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.objective_store import Objective, ObjectiveStore
from mor_router.retry_pause import retry_pause_s
from mor_router.trust.drift import Drift
from mor_router.trust.honeypot_batch import HoneypotBatch, HoneypotCall
from mor_router.trust.honeypot_shapes import RecentShapes
from mor_router.trust.honeypot_source import Honeypot, HoneypotSource

_MOST_WAITING = 32
"""Honeypots of one objective that wait or are on their way; further ones are skipped."""
_MOST_CALLS = 16
"""Live calls until a honeypot aims at another size: some steps of a run."""
_LONGEST_WAIT_S = 600.0
"""Seconds after which a waiting honeypot is dropped: the run has ended, or the policy has moved on."""
_LATEST = 256
"""Live groups whose call sizes are remembered: some steps of a run."""
_BURST_S = 1.0
"""Longest gap between the starts of two live calls of one burst: a honeypot call leaves by such a gap."""
_MOST_ATTEMPTS = 8
"""Attempts of a honeypot that travels alone: after some minutes, live groups too fare without the client."""
_MOST_LANES = 64
"""Lanes whose traffic is remembered, the latest: a client may change what it wishes to be sent as often as it likes."""
_GAPS = 64
"""Latest gaps that are remembered."""

log = structlog.get_logger(__name__)
_random = random.SystemRandom()  # a client that could predict the draws would recognise honeypots


@dataclass
class _Waiting:
    """A honeypot until a call takes it along."""

    honeypot: Honeypot
    size: int
    """Number of groups of the call that it aims at, itself included."""
    since_s: float
    calls: int = 0
    """Live calls that went without it since it aims at this size."""


@dataclass
class _Traffic:
    """Statistics of the live calls of one objective, and the honeypots for them."""

    stretch: float
    """Live groups that one honeypot falls on."""
    latest: HoneypotCall
    passed: float = 0.0
    """Live groups of the present stretch that have gone."""
    place: float = field(init=False)
    """Place of its honeypot in the present stretch; above ``stretch`` once it was drawn."""
    sizes: deque[int] = field(default_factory=lambda: deque(maxlen=_LATEST))
    """Size of its call, for each of the latest live groups."""
    waiting: list[_Waiting] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    """Digests of the anchors that are on their way."""
    making: int = 0

    def __post_init__(self) -> None:
        self.place = _random.uniform(0, self.stretch)

    def due(self, groups: int) -> int:
        """Count live groups; return how many honeypots fall on them."""
        found = 0
        self.passed += groups
        while self.passed >= self.stretch or self.passed >= self.place:
            if self.passed >= self.place:
                found, self.place = found + 1, math.inf
            if self.passed >= self.stretch:
                self.passed -= self.stretch
                self.place = _random.uniform(0, self.stretch)
        return found

    def full(self) -> bool:
        return len(self.waiting) + len(self.away) + self.making >= _MOST_WAITING

    def joining(self, size: int) -> _Waiting | None:
        """Return the honeypot that may join a live call of ``size`` groups, if any."""
        if size + 1 not in self.sizes:
            return None
        return next((one for one in self.waiting if one.size == size + 1), None)

    def alone(self, size: int) -> list[_Waiting]:
        """Return the honeypots that may leave as a call of ``size`` groups like the present one; none if too few."""
        fits = [one for one in self.waiting if one.size == size]
        only_size = size == max(self.sizes)
        return fits[:size] if len(fits) >= size and (only_size or size == 1) else []

    def waited(self) -> None:
        """Count a live call that went without those that still wait; one that waits long aims at another size.

        Never at a single group: such calls come often, and all that miss another size would end there.
        """
        for one in self.waiting:
            one.calls += 1
            if one.calls >= _MOST_CALLS:
                one.size, one.calls = _random.choice([size for size in self.sizes if size > 1] or self.sizes), 0


class Honeypots:
    """Sender of honeypots, for a ``share`` of all groups."""

    def __init__(
        self,
        *,
        redis: Redis,
        objectives: ObjectiveStore,
        holdout: AnchorHoldout,
        requester: ScoreRequester,
        honeypot_scores: HoneypotScores,
        drift: Drift,
        embedder: Embedder,
        share: float,
    ) -> None:
        self._requester = requester
        self._honeypot_scores = honeypot_scores
        self._drift = drift
        self._stretch = (1 - share) / share if share else math.inf
        self._shapes = RecentShapes()
        self._source = HoneypotSource(
            redis=redis,
            objectives=objectives,
            holdout=holdout,
            embedder=embedder,
            recent=self._shapes,
            unasked=requester.unasked,
        )
        self._traffic: dict[str, _Traffic] = {}
        """Lane of calls -> its traffic."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_s = -math.inf
        self._gaps: deque[float] = deque(maxlen=_GAPS)

    def join(self, call: HoneypotCall) -> HoneypotBatch:
        """Return the honeypots that go with a live call that starts now; have those made that fall on its groups."""
        now, size = asyncio.get_running_loop().time(), len(call.groups)
        if now - self._last_s <= _BURST_S:
            self._gaps.append(now - self._last_s)
        self._last_s = now
        self._shapes.observe(call.lane, call.groups)
        traffic = self._traffic.pop(call.lane, None) or _Traffic(self._stretch, call)
        self._traffic[call.lane] = traffic
        while len(self._traffic) > _MOST_LANES:
            oldest = next(iter(self._traffic))
            del self._traffic[oldest]
            self._shapes.forget(oldest)
        traffic.latest = call
        traffic.sizes.extend([size] * size)
        self._drop_stale(traffic, now)
        joining = traffic.joining(size)
        if joining is not None:
            self._take(traffic, [joining])
        else:
            self._leave_alone(traffic, size)
        traffic.waited()
        for _ in range(traffic.due(size) if call.objective.anchors else 0):
            if not traffic.full():
                traffic.making += 1
                self._start(self._make(call.objective, traffic), call.objective.name)
        return HoneypotBatch(call, [joining.honeypot] if joining else [])

    async def fan_out(
        self,
        joined: HoneypotBatch,
        batch: ScoreBatch,
        weighted: Mapping[str, Collection[str]],
        known: Mapping[str, Mapping[str, ClientResponse]] | None = None,
    ) -> tuple[ClientResponses, HoneypotBatch | None]:
        """Request scores for ``batch`` and the honeypots that go with it; return those for ``batch``, and the honeypots
        that are to be tried again, if any. ``known``: answers for ``batch`` of earlier attempts."""
        whole, clients = joined.added_to(batch), {**weighted, **joined.weighted()}
        before = {**(known or {}), **joined.known}
        late = partial(self._keep_late, joined) if joined.honeypots else None
        try:
            answers = await self._requester.fan_out(
                whole, clients, joined.call.shadows, joined.call.deadline_s, known=before, late=late
            )
        except BaseException:
            self._forget(joined)
            raise
        own = {one.digest: answers.pop(one.digest) for one in joined.honeypots}
        if own:
            self._start(self._keep(joined, own), joined.call.objective.name)
        return answers, joined.left(own)

    def try_again(self, left: HoneypotBatch) -> None:
        """Try honeypots again whose live call is not: all its groups have a reward."""
        self._start(self._send_alone(left, retry_pause_s(left.call.retry_s, 1), earlier=1), left.call.objective.name)

    def known_picture(self, messages: Messages) -> bool:
        """Return whether all pictures of a group were sent to clients lately."""
        return self._shapes.known(image_hashes(messages))

    async def settled(self) -> None:
        """Send whole calls of the honeypots that wait, and wait until all are made and answered, by their deadline."""
        await asyncio.gather(*self._tasks)
        for traffic in self._traffic.values():
            size = len(traffic.latest.groups)
            while len(traffic.waiting) >= size:
                self._send(traffic, traffic.waiting[:size])
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*self._tasks)  # answers are stored by tasks of their own

    async def close(self) -> None:
        """Cancel all honeypots."""
        await stop(self._tasks)

    def _drop_stale(self, traffic: _Traffic, now: float) -> None:
        """Drop honeypots whose question or pictures live groups have sent since: they would come once too often."""
        traffic.waiting = [
            one
            for one in traffic.waiting
            if now - one.since_s < _LONGEST_WAIT_S
            and not self._shapes.outdated(one.honeypot.group.anchor.messages, one.honeypot.shape)
        ]

    def _take(self, traffic: _Traffic, leaving: Sequence[_Waiting]) -> None:
        """Take honeypots out of those that wait, because they are sent now."""
        traffic.waiting = [one for one in traffic.waiting if one not in leaving]
        traffic.away |= {one.honeypot.digest for one in leaving}
        for one in leaving:
            self._shapes.sent(one.honeypot.group.anchor.messages)

    def _leave_alone(self, traffic: _Traffic, size: int) -> None:
        if leaving := traffic.alone(size):
            self._send(traffic, leaving)

    def _send(self, traffic: _Traffic, leaving: Sequence[_Waiting]) -> None:
        self._take(traffic, leaving)
        joined = HoneypotBatch(traffic.latest, [one.honeypot for one in leaving])
        gap_s = _random.choice(self._gaps) if self._gaps else 0.0  # that after the live call which they resemble
        self._start(self._send_alone(joined, gap_s), joined.call.objective.name)

    def _start(self, work: Coroutine[None, None, None], objective: str) -> None:
        task = asyncio.create_task(self._guarded(work, objective))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[None, None, None], objective: str) -> None:
        try:
            await work
        except (MorError, RedisError) as error:
            log.warning("a honeypot could not be made", objective=objective, reason=describe_failure(error))
        except Exception as error:  # no caller awaits this task, so its failure is logged here
            log.error("a honeypot failed", objective=objective, exc_info=error)

    async def _make(self, objective: Objective, traffic: _Traffic) -> None:
        try:
            taken = traffic.away | {one.honeypot.digest for one in traffic.waiting}
            made = await self._source.make(objective, traffic.latest.lane, traffic.latest.unasked, taken)
        finally:
            traffic.making -= 1
        names = traffic.away | {one.honeypot.digest for one in traffic.waiting}
        if made is not None and made.digest not in names:  # made at the same time as another
            size = _random.choice(traffic.sizes)
            traffic.waiting.append(_Waiting(made, size, asyncio.get_running_loop().time()))

    async def _send_alone(self, joined: HoneypotBatch, wait_s: float, earlier: int = 0) -> None:
        """Send honeypots as a call of their own, and those again that lack a quorum, as the reward stage does."""
        for attempt in range(earlier + 1, _MOST_ATTEMPTS + 1):
            await asyncio.sleep(wait_s)
            _, left = await self.fan_out(joined, ScoreBatch((), {}), {})
            if left is None:
                return
            joined, wait_s = left, retry_pause_s(left.call.retry_s, attempt)

    async def _keep(self, joined: HoneypotBatch, answers: ClientResponses) -> None:
        """Count the honeypots as sent, and store the answers."""
        try:
            if not joined.known:
                await self._source.count_sent(joined.call.objective.name, [one.digest for one in joined.honeypots])
        finally:
            self._forget(joined)
        known = joined.known
        fresh = {
            digest: {name: answer for name, answer in given.items() if name not in known.get(digest, ())}
            for digest, given in answers.items()
        }
        await self._store(joined, fresh)

    def _keep_late(self, joined: HoneypotBatch, answers: ClientResponses) -> None:
        """Have the answers of a client stored that was slower than the others."""
        own = {one.digest: answers.get(one.digest, {}) for one in joined.honeypots}
        self._start(self._store(joined, own), joined.call.objective.name)

    def _forget(self, joined: HoneypotBatch) -> None:
        if (traffic := self._traffic.get(joined.call.lane)) is not None:
            traffic.away -= {one.digest for one in joined.honeypots}

    async def _store(self, joined: HoneypotBatch, answers: ClientResponses) -> None:
        name = joined.call.objective.name
        scores: list[HoneypotScore] = []
        for one in joined.honeypots:
            group = one.group
            for client, answer in answers[one.digest].items():
                metrics.HONEYPOTS.labels(client, answer.status).inc()
                if answer.scores is not None and answer.model is not None and group.rejected is not None:
                    pair = answer.scores[group.chosen], answer.scores[group.rejected]
                    scores.append(scored_now(client, answer.model, joined.call.gate, one.digest, pair))
        await self._honeypot_scores.add(name, scores, {one.digest: one.vector for one in joined.honeypots})
        await self._drift.review(name)
