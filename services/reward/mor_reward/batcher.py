"""Dynamic batching: items of all requests wait in one bounded queue; one thread scores them in passes."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mor_core.errors import Overloaded, Unavailable
from mor_core.fair_share import FairShare

from mor_reward.backbones import Example
from mor_reward.metrics import ERRORS, QUEUED_RESPONSES
from mor_reward.scoring_engine import ItemOutcome, ScoringEngine


@dataclass(eq=False)
class _QueuedItem:
    caller: str
    examples: Sequence[Example]
    deadline: float
    """Monotonic time until which the caller waits, in seconds; infinity without a deadline."""
    answer: asyncio.Future[ItemOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    queued: bool = True


def _refuse(items: Sequence[_QueuedItem]) -> None:
    """Answer the items of a pass that failed, whose callers would wait for ever."""
    for item in items:
        if not item.answer.done():
            item.answer.set_exception(Unavailable("the pass of the model failed; send the item again"))


class Batcher:
    """Queue in front of the engine that refuses items at once when they would miss their deadline.

    Callers share passes and queue evenly. Items of a caller that hung up leave the queue at once.
    """

    def __init__(self, engine: ScoringEngine, *, batch_responses: int, queue_responses: int, wait_s: float) -> None:
        self._engine = engine
        self._batch = batch_responses
        self._bound = queue_responses
        self._waiting = FairShare(queue_responses)
        self._wait_s = wait_s
        self._queues: OrderedDict[str, deque[_QueuedItem]] = OrderedDict()
        """Items by caller, the caller first whose turn it is."""
        self._running = 0
        self._seconds_a_response = 0.0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._closing = False
        self.version = None
        """The model is the same as long as the service runs."""

    @property
    def uses_pictures(self) -> bool:
        """True where the model reads pictures."""
        return self._engine.uses_pictures

    def context(self, group: Sequence[Example]) -> str:
        """See ``GroupScorer.context``: a trained model reads no objective, and each response by itself."""
        return ""

    async def problem(self) -> str | None:
        """Return the reason why no item is encoded any more; ``None`` while items are."""
        return self._engine.calls.problem

    async def score(self, items: Sequence[Sequence[Example]], deadline: float, caller: str) -> list[ItemOutcome]:
        """Queue all items of ``caller``, or none of them, and return their outcomes.

        Raises:
            Overloaded: the queue is full, or its work would not be done by ``deadline``.
            Unavailable: ``deadline`` passed while the items waited, or the service is stopping.
        """
        wanted = sum(len(examples) for examples in items)
        self._admit(wanted, deadline, caller)
        tickets = [_QueuedItem(caller, examples, deadline) for examples in items]
        self._queues.setdefault(caller, deque()).extend(tickets)
        QUEUED_RESPONSES.set(self._waiting.total)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(ticket.answer for ticket in tickets)))
        finally:
            for ticket in tickets:
                ticket.answer.cancel()
                self._leave(ticket)

    async def run(self) -> None:
        """Score queued items until ``close`` was called and the queue is empty."""
        loop = asyncio.get_running_loop()
        while not (self._closing and not self._queues):
            await self._arrived.wait()
            if self._waiting.total < self._batch and not self._closing:
                await asyncio.sleep(self._wait_s)
            tickets = self._take()
            if tickets:
                self._running = sum(len(ticket.examples) for ticket in tickets)
                started = time.monotonic()
                try:
                    outcomes = await loop.run_in_executor(
                        self._thread, self._engine.run, [ticket.examples for ticket in tickets]
                    )
                except BaseException:
                    _refuse(tickets)
                    raise
                finally:
                    responses, self._running = self._running, 0
                self._update_pace((time.monotonic() - started) / responses)
                for ticket, outcome in zip(tickets, outcomes, strict=True):
                    if not ticket.answer.done():
                        ticket.answer.set_result(outcome)
            if not self._queues and not self._closing:
                self._arrived.clear()
        self._thread.shutdown()

    def close(self) -> None:
        """Refuse new items; ``run`` returns when the queue is empty."""
        self._closing = True
        self._arrived.set()

    def _admit(self, wanted: int, deadline: float, caller: str) -> None:
        if self._closing:
            raise Unavailable("the service is stopping; use another replica or try again later", retry_after_s=5)
        waiting = self._waiting.total
        ahead_s = (waiting + self._running) * self._seconds_a_response
        # In rounds over the callers, no more of the others' responses come first than this caller has itself.
        callers = len(self._queues) + (caller not in self._queues)
        done_first = min(waiting + wanted, callers * (self._waiting.used(caller) + wanted))
        needed_s = (done_first + self._running) * self._seconds_a_response
        left_s = deadline - time.monotonic()
        if needed_s > left_s or left_s <= 0:
            ERRORS.labels(reason="deadline").inc()
            # One slow pass must not turn callers away forever: every refusal lowers the estimate by a tenth.
            self._seconds_a_response *= 0.9
            raise Overloaded(
                f"scoring takes about {needed_s:.2f} s and the deadline is in {max(0.0, left_s):.2f} s; "
                "send fewer responses, later, or with a longer deadline",
                retry_after_s=ahead_s,
            )
        if not self._waiting.take(caller, wanted):
            ERRORS.labels(reason="queue_full").inc()
            raise Overloaded(
                f"{waiting} responses wait, of at most {self._bound}; send fewer at a time or later",
                retry_after_s=ahead_s,
            )

    def _take(self) -> list[_QueuedItem]:
        """Take the items of one pass, in rounds over the callers: at least one, and as many as fit."""
        taken: list[_QueuedItem] = []
        responses = 0
        while self._queues:
            caller, queue = next(iter(self._queues.items()))
            ticket = queue[0]
            if taken and ticket.queued and responses + len(ticket.examples) > self._batch:
                break
            queue.popleft()
            del self._queues[caller]
            if queue:
                self._queues[caller] = queue  # behind the other callers
            if not ticket.queued:
                continue
            self._leave(ticket)
            if time.monotonic() > ticket.deadline:
                ERRORS.labels(reason="deadline").inc()
                ticket.answer.set_exception(Unavailable("the deadline passed while the item waited; send it again"))
                continue
            taken.append(ticket)
            responses += len(ticket.examples)
        return taken

    def _leave(self, ticket: _QueuedItem) -> None:
        if ticket.queued:
            ticket.queued = False
            self._waiting.give_back(ticket.caller, len(ticket.examples))
            QUEUED_RESPONSES.set(self._waiting.total)

    def _update_pace(self, seconds_a_response: float) -> None:
        # Exponential average over about five passes.
        known = self._seconds_a_response
        self._seconds_a_response = seconds_a_response if known == 0 else 0.8 * known + 0.2 * seconds_a_response
