"""Groups on their way round: issued as prompts, sampled, scored, collected. All of it on one event loop.

The training loop asks for groups and waits with a limit; everything else, the queue server's outages included, happens
here in the background. Nothing the queue server loses is lost: every group can be issued again from the prompts file.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
from mor_core.blobs import Blobs
from mor_core.datafiles import Prompt
from mor_core.errors import BlobMissing, StreamError
from mor_core.run_status import AlertName
from mor_core.runs import RunSpec
from mor_core.streams import Consumer, Entry, Streams, connect
from mor_core.tasks import stop
from mor_core.wire import DeadLetter, PromptRecord, RewardRecord, TokenBlock, WeightsRef
from redis.exceptions import RedisError

from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.groups.dispatch_queue import Outbox
from mor_trainer.groups.evaluation import Evaluations
from mor_trainer.groups.ledger import Ledger, LedgerState, Verdict
from mor_trainer.groups.liveness import Presence
from mor_trainer.groups.prompt_record import prompt_record
from mor_trainer.groups.replay_log import unfit
from mor_trainer.groups.scored import ScoredGroup, Taken
from mor_trainer.groups.streams import GroupStreams
from mor_trainer.groups.traces import GroupTraces

_READ_COUNT = 32
_BLOCK_S = 1.0
_WATCH_S = 1.0
_WITHDRAW_S = 10.0
_DRAIN_S = 20.0
_ANSWER_S = 10.0
"""In which run control hears of a replay that was answered."""
_LETTER_CHARACTERS = 64_000

log = structlog.get_logger(__name__)


class Groups:
    """The exchange of one run's groups. Every method runs on the event loop's thread."""

    def __init__(
        self,
        settings: WorkerSettings,
        run: str,
        spec: RunSpec,
        *,
        prompts: Sequence[Prompt],
        events: EventLog,
        step: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._run = run
        self._spec = spec
        self._prompts = prompts
        self._events = events
        self._step = step
        self._redis = connect(settings)
        self._streams = Streams(self._redis, run, settings.stream_bound)
        self._blobs = Blobs(self._redis, run, settings.blob_dir)
        self._weights: WeightsRef | None = None
        self._held = 0
        """Groups that the step in progress took."""
        self._outbox = Outbox(self._streams, self._blobs, self._prompt_record)
        self._contents = GroupStreams(self._redis, run)
        self._published = asyncio.Event()
        self._arrived = asyncio.Event()
        self._last_arrival = time.monotonic()
        self._presence = Presence(self._redis, run, spec.model, self._contents, self._queue_lost)
        self._tasks: list[asyncio.Task[None]] = []
        self.ledger: Ledger[ScoredGroup] = Ledger(
            run=run,
            prompts=len(prompts),
            seed=spec.seed,
            max_staleness=spec.max_staleness,
            max_attempts=settings.group_attempts,
        )
        self.traces = GroupTraces()
        self._evaluations = Evaluations(run, settings.group_attempts, self.traces, self._report_evaluation)
        self._replayed: dict[int, float] = {}
        self.issuing = True
        """Whether new groups are drawn; not while a recorded step is computed again."""
        self.duplicates = 0
        self.failure: Exception | None = None
        """What ended a background task that should not end."""

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self, state: LedgerState | None) -> None:
        """Start the background work; with ``state``, whatever was under way at the checkpoint is issued again."""
        if state is not None:
            self.ledger.restore(state, self._deadline())
            self._outbox.add(*self.ledger.outstanding)
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "announce": self._presence.announce,
            "send": self._send_prompts,
            "rewards": self._read_rewards,
            "dead": self._read_dead,
            "watch": self._watch,
            "events": lambda: self._events.send(self._streams),
        }
        self._tasks = [
            asyncio.create_task(self._persist(name, loop), name=f"{name} {self._run}") for name, loop in loops.items()
        ]

    async def close(self) -> None:
        """Stop, tell the stages that the run does not go on here, and leave no blob behind."""
        await self._events.drain(_DRAIN_S)
        await stop(self._tasks)
        self.traces.close()
        with contextlib.suppress(RedisError, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_S):
                await self._presence.withdraw()
                for group_id in [*self.ledger.outstanding, *self._evaluations.outstanding]:
                    await self._blobs.release(group_id)
        await self._redis.aclose()

    async def _persist(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run ``loop`` again, after a pause with jitter, whenever the queue server failed it."""
        while True:
            try:
                await loop()
            except (RedisError, StreamError, OSError) as error:
                log.warning("the queue server failed", task=name, run=self._run, error=str(error))
                await asyncio.sleep(random.uniform(0.2, 1.0))
            except Exception as error:
                self.failure = error
                self._arrived.set()
                raise

    # --- what the training loop calls ---------------------------------------------------------------------------

    async def advance(self, version: int) -> None:
        """A step is done: the policy is ``version`` now, which is about to be published."""
        self._held = 0
        self.ledger.published(version)

    async def announce_version(self, version: int, url: str) -> None:
        """The version's files are out: prompts name it from now on, and while a step is under way more are issued."""
        self._weights = WeightsRef(version=version, url=url)
        self._published.set()
        if self._spec.max_staleness:
            self._issue()

    async def top_up(self, held: int = 0) -> list[int]:
        """Issue as many groups as staleness allows; returns the prompt indices of all that wait to be trained on.

        ``held``: groups that the step in progress keeps, which need no replacement.
        """
        self._held = held
        self._issue()
        numbers = [*(issue.number for issue in self.ledger.outstanding.values()), *self.ledger.ready]
        return [self.ledger.prompt_of(number)[1] for number in numbers]

    def _issue(self) -> None:
        """New groups are sampled by the newest version, so that none is older than it must be when it is trained on."""
        if not self.issuing or self._weights is None or self._weights.version != self.ledger.versions[-1]:
            return
        room = self.ledger.room(self._spec.groups_per_step, self._held, self._spec.steps - self._step())
        self._outbox.add(*(self.ledger.group_id(issue.number) for issue in self.ledger.issue(room, self._deadline())))

    async def evaluate(self, step: int, version: int, prompts: Sequence[Prompt]) -> None:
        """Send the evaluation prompts round; one that is still going on is reported as far as it came."""
        self._evaluations.begin(step, version, prompts, self._deadline())
        self._outbox.add(*self._evaluations.outstanding)

    def _report_evaluation(self, step: int, summary: dict[str, Any]) -> None:
        self._events.add("evaluation", step, summary)

    async def replay(self, asked: Mapping[int, str]) -> None:
        """Issue dropped groups again that an operator asks for, by dead letter. What is still asked for some time after
        the answer was asked for anew."""
        now = time.monotonic()
        self._replayed = {letter: at for letter, at in self._replayed.items() if now - at < _ANSWER_S}
        for letter, group_id in asked.items():
            if letter not in self._replayed:
                self._replayed[letter] = now
                issued = self.ledger.reopen(group_id, self._deadline())
                if issued:
                    self._outbox.add(group_id)
                self._events.add("replay", self._step(), {"letter": letter, "group_id": group_id, "issued": issued})

    async def evaluating(self) -> bool:
        """Whether an evaluation is still going on."""
        return bool(self._evaluations.outstanding)

    async def take(self, count: int, timeout_s: float) -> list[Taken]:
        """``count`` scored groups in the order of their numbers, or none within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.failure is not None:
                raise self.failure
            taken, again = self.ledger.take(count, self._deadline())
            for issue in again:
                self._outbox.add(self.ledger.group_id(issue.number))
            if taken:
                self._held += len(taken)
                return [Taken(number, group, staleness) for number, group, staleness in taken]
            self._arrived.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._arrived.wait()
            except TimeoutError:
                return []

    async def idle_s(self) -> float:
        """Seconds since a group last came back."""
        return time.monotonic() - self._last_arrival

    async def depths(self) -> dict[str, int]:
        """Entries in each of the streams that groups travel on."""
        return await self._contents.depths()

    async def put_back(self, taken: Sequence[Taken]) -> None:
        """Groups that were taken and not trained on are ready again."""
        for item in taken:
            record = item.group.record
            self.ledger.put_back(item.number, item.group, record.rollout.weights_version, record.rollout.prompt.attempt)

    async def adopt(self, state: LedgerState) -> None:
        """Take over the ledger of a recorded step, which is about to be computed again."""
        self.ledger.restore(state, self._deadline())
        self._outbox.add(*self.ledger.outstanding)

    async def skip(self, count: int) -> None:
        """Groups that were taken, and replaced because their rewards are all alike, are settled."""
        self.ledger.skip_taken(count)

    async def reject(self, taken: Taken, reason: str) -> None:
        """A group that must not be trained on: counted, and told with the whole record, like a dead letter."""
        self.ledger.reject_taken(taken.number)
        record = taken.group.record
        letter = DeadLetter(
            run=self._run,
            group_id=record.group_id,
            stage="trainer",
            stream="rewards",
            reason=reason,
            attempts=record.rollout.prompt.attempt + 1,
            record=record.model_dump_json()[:_LETTER_CHARACTERS],
        )
        self.traces.ended(record.group_id, "dropped", reason)
        self._alert("group_dropped", reason, letter)

    # --- sending ------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.group_timeout_s

    async def _send_prompts(self) -> None:
        await self._presence.cleared.wait()
        await self._published.wait()
        await self._outbox.send()

    def _prompt_record(self, group_id: str) -> tuple[PromptRecord, Prompt] | None:
        """The record of a group that is under way; nothing when it came back meanwhile."""
        assert self._weights is not None, "a version is published before the first prompt"
        if (issue := self.ledger.outstanding.get(group_id)) is not None:
            prompt = self._prompts[self.ledger.prompt_of(issue.number)[1]]
        elif (issue := self._evaluations.outstanding.get(group_id)) is not None:
            prompt = self._evaluations.prompt_of(issue)
        else:
            return None
        record = prompt_record(
            self._run,
            self._spec,
            prompt,
            group_id=group_id,
            attempt=issue.attempt,
            weights=self._weights,
            evaluation=group_id not in self.ledger.outstanding,
        )
        return self.traces.issued(record), prompt

    # --- receiving ----------------------------------------------------------------------------------------------

    async def _read_rewards(self) -> None:
        consumer: Consumer[RewardRecord] = Consumer(self._streams, "rewards", "trainer", self._settings.lease_s)
        async with consumer:
            while True:
                for entry in await consumer.read(_READ_COUNT, _BLOCK_S):
                    await self._receive(consumer, entry)

    async def _receive(self, consumer: Consumer[RewardRecord], entry: Entry[RewardRecord]) -> None:
        record, group_id = entry.record, entry.record.group_id
        if group_id in self._evaluations.outstanding:
            self._evaluations.receive(record)
        elif group_id not in self.ledger.outstanding:
            self.duplicates += 1
        elif len(record.rewards) != self._spec.group_size or len(record.rollout.responses) != self._spec.group_size:
            await consumer.give_up(
                entry,
                f"{len(record.rewards)} rewards for {len(record.rollout.responses)} responses, "
                f"a group has {self._spec.group_size}",
            )
            return
        elif self._spec.deterministic and (reason := unfit(record)) is not None:
            self._again(group_id, reason)
        else:
            try:
                tokens = TokenBlock.model_validate_json(await self._blobs.get(record.rollout.tokens))
            except (BlobMissing, ValueError) as error:
                self._again(group_id, str(error)[:500])
            else:
                scored = ScoredGroup(record, tokens)
                if self.ledger.receive(group_id, record.rollout.weights_version, scored) is Verdict.stale:
                    self.ledger.resample(group_id, self._deadline())
                    self._outbox.add(group_id)
        await consumer.settle(entry)
        if group_id not in self.ledger.outstanding:
            await self._blobs.release(group_id)
            self._last_arrival = time.monotonic()
            self._arrived.set()

    async def _read_dead(self) -> None:
        consumer: Consumer[DeadLetter] = Consumer(self._streams, "dead", "trainer", self._settings.lease_s)
        async with consumer:
            while True:
                for entry in await consumer.read(_READ_COUNT, _BLOCK_S):
                    self._again(entry.record.group_id, entry.record.reason, entry.record)
                    await consumer.settle(entry)

    def _again(self, group_id: str, reason: str, letter: DeadLetter | None = None) -> None:
        """Issue a group again that was lost or given up by a stage, as long as it has attempts left."""
        if group_id in self._evaluations.outstanding:
            if self._evaluations.again(group_id, self._deadline(), reason):
                self._outbox.add(group_id)
        elif group_id in self.ledger.outstanding:
            if self.ledger.again(group_id, self._deadline()) is None:
                self.traces.ended(group_id, "dropped", reason)
                self._alert("group_dropped", reason, letter, group_id=group_id)
                self._arrived.set()
            else:
                log.info("group issued again", run=self._run, group=group_id, reason=reason)
                self._outbox.add(group_id)
        elif letter is not None and group_id == "unreadable":
            self._alert("unreadable_record", reason, letter)

    def _alert(self, name: AlertName, reason: str, letter: DeadLetter | None = None, **data: Any) -> None:
        log.warning("alert", run=self._run, name=name, reason=reason)
        detail = {} if letter is None else {"group_id": letter.group_id, "letter": letter.model_dump(mode="json")}
        self._events.add("alert", self._step(), {"name": name, "reason": reason, **detail, **data})

    # --- watching -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Issue again what is overdue, and everything when the queue server lost its content."""
        while True:
            await self._presence.look()
            await self._reissue_overdue()
            await asyncio.sleep(_WATCH_S)

    async def _reissue_overdue(self) -> None:
        """A group past its deadline is lost when no stream holds it, or when others come back and it does not.

        While nothing comes back at all, a stage is down: its groups wait in the streams and get more time.
        """
        now = time.monotonic()
        overdue = self.ledger.overdue(now)
        overdue += [name for name, issue in self._evaluations.outstanding.items() if issue.deadline <= now]
        if not overdue:
            return
        silent = now - self._last_arrival > self._settings.group_timeout_s
        held = await self._contents.holding(overdue) if silent else set()
        for group_id in overdue:
            if group_id in held:
                self._more_time(group_id)
            else:
                self._again(group_id, f"not back within {self._settings.group_timeout_s:g} s")

    def _more_time(self, group_id: str) -> None:
        issue = self.ledger.outstanding.get(group_id) or self._evaluations.outstanding.get(group_id)
        if issue is not None:
            issue.deadline = self._deadline()

    def _queue_lost(self) -> None:
        self._events.resend()
        self._alert(
            "queue_lost",
            "the queue server was flushed or restarted; all groups under way are issued again",
            groups=len(self.ledger.outstanding),
        )
        self._outbox.add(*self.ledger.outstanding, *self._evaluations.outstanding)
