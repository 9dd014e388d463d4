"""Scoring of items by calls that wait for something else, many at a time; a failing item does not affect the others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from mor_core.errors import Invalid, Overloaded, Unavailable
from mor_core.fair_share import FairShare

from mor_reward.backbones import Example
from mor_reward.group_scorer import GroupScorer, ModelAway
from mor_reward.metrics import ERRORS, QUEUED_RESPONSES
from mor_reward.scoring_engine import UNSUITABLE, ItemOutcome, failed_outcome, to_outcome

_PROBE_EVERY_S = 15.0
"""Seconds between probes: readiness is asked as often."""


class ConcurrentScoring:
    """Calls of one model for the items of all requests, within a bound that callers share evenly."""

    def __init__(self, scorer: GroupScorer, *, most_responses: int) -> None:
        """``most_responses``: responses in work at a time."""
        self._scorer = scorer
        self._bound = most_responses
        self._in_work = FairShare(most_responses)
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.uses_pictures = scorer.uses_pictures

    def context(self, group: Sequence[Example]) -> str:
        """See ``GroupScorer.context``. A response that is repeated in the group is scored once."""
        return self._scorer.context(list(dict.fromkeys(group)))

    @property
    def version(self) -> str:
        """Version of the model now."""
        return self._scorer.version

    async def problem(self) -> str | None:
        """Return the reason why the model cannot be called; ``None`` while it can."""
        return await self._scorer.problem()

    async def score(self, items: Sequence[Sequence[Example]], deadline: float, caller: str) -> list[ItemOutcome]:
        """Score all items of ``caller`` at a time and return their outcomes.

        Raises:
            Overloaded: too many responses are in work, or ``deadline`` has passed.
            Unavailable: the model is away for all of the items, or the service is stopping.
        """
        if self._closing.is_set():
            raise Unavailable("the service is stopping; use another replica or try again later", retry_after_s=5)
        if deadline <= time.monotonic():
            ERRORS.labels(reason="deadline").inc()
            raise Overloaded("the deadline has passed; send the request earlier, or with a longer deadline")
        responses = sum(len(examples) for examples in items)
        if not self._in_work.take(caller, responses):
            ERRORS.labels(reason="queue_full").inc()
            raise Overloaded(
                f"{self._in_work.total} responses are in work, of at most {self._bound}; send fewer at a time or later"
            )
        QUEUED_RESPONSES.set(self._in_work.total)
        self._idle.clear()
        try:
            found = await asyncio.gather(*(self._score_item(examples, deadline, caller) for examples in items))
        finally:
            self._in_work.give_back(caller, responses)
            QUEUED_RESPONSES.set(self._in_work.total)
            if not self._in_work.total:
                self._idle.set()
        away = [outcome for outcome in found if isinstance(outcome, ModelAway)]
        if away and len(away) == len(found):
            ERRORS.labels(reason="away").inc()
            raise away[0]
        return [failed_outcome(one) if isinstance(one, ModelAway) else one for one in found]

    async def _score_item(self, examples: Sequence[Example], deadline: float, caller: str) -> ItemOutcome | ModelAway:
        distinct = list(dict.fromkeys(examples))
        try:
            scores = await self._scorer.score(distinct, caller=caller, deadline=deadline)
        except ModelAway as error:
            return error
        except Invalid as error:  # a template that refuses the turns, or the upstream the item
            ERRORS.labels(reason="unscorable").inc()
            return ItemOutcome("unscorable", detail=str(error), brief=UNSUITABLE)
        except Exception as error:  # whatever it is, it belongs to this item alone
            return failed_outcome(error)
        known = dict(zip(distinct, scores, strict=True))
        return to_outcome([known[example] for example in examples], 1.0)

    async def run(self) -> None:
        """Probe the model now and then, until ``close`` was called and the requests in work are answered.

        Its version follows from a probe, and outside of Kubernetes nobody asks for readiness.
        """
        while not self._closing.is_set():
            await self._scorer.problem()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _PROBE_EVERY_S)
        await self._idle.wait()
        await self._scorer.close()

    def close(self) -> None:
        """Refuse new items; ``run`` returns when none is in work."""
        self._closing.set()
