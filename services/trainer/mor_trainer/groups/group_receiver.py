"""Receiver of the groups of one run that come back: scored, or given up by a stage."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mor_core.blobs import Blobs
from mor_core.errors import BlobMissing
from mor_core.failures import describe_failure
from mor_core.runs import RunSpec
from mor_core.stream_consumer import Consumer, Entry
from mor_core.streams import Streams
from mor_core.wire import UNREADABLE, DeadLetter, RewardRecord, StreamName, TokenBlock, issuer_of

from mor_trainer.groups.bad_groups import defect_of
from mor_trainer.groups.dispatch_queue import DispatchQueue
from mor_trainer.groups.evaluation import Evaluations
from mor_trainer.groups.ledger import Ledger, Receipt
from mor_trainer.groups.pinned_scoring import PinnedScoring
from mor_trainer.groups.recovery import GroupRecovery
from mor_trainer.groups.replay_log import absent_clients, unfit_reason
from mor_trainer.groups.scored_group import ScoredGroup

_READ_COUNT = 32
"""Entries that one read takes at most; it bounds how many are given back when this process dies."""
_BLOCK_S = 1.0
"""Seconds that a read waits for new entries before it looks again for those of a dead consumer."""


class GroupReceiver:
    """Receiver of one run's groups. Its readers run until they are cancelled, or the queue server fails."""

    def __init__(
        self,
        spec: RunSpec,
        lease_s: float,
        *,
        streams: Streams,
        blobs: Blobs,
        ledger: Ledger[ScoredGroup],
        evaluations: Evaluations,
        recovery: GroupRecovery,
        dispatch_queue: DispatchQueue,
        arrived: asyncio.Event,
        pinned: PinnedScoring | None,
    ) -> None:
        """``lease_s``: time after which the entries of a dead reader are read again. ``arrived`` is set when a group is
        not outstanding any more. ``pinned``: scoring conditions of a deterministic run."""
        self._spec = spec
        self._lease_s = lease_s
        self._streams = streams
        self._blobs = blobs
        self._ledger = ledger
        self._evaluations = evaluations
        self._recovery = recovery
        self._dispatch_queue = dispatch_queue
        self._arrived = arrived
        self._pinned = pinned
        self._unsettled: set[tuple[StreamName, str]] = set()
        """Entries that were received and could not be settled; they are read again, and count once."""
        self.duplicates = 0
        """Results for groups that were not outstanding."""
        self.last_arrival = time.monotonic()
        """Monotonic time at which a group last came back."""

    async def read_rewards(self) -> None:
        """Receive scored groups."""
        consumer: Consumer[RewardRecord] = Consumer(self._streams, "rewards", "trainer", self._lease_s)
        async with consumer:
            while True:
                for entry in await consumer.read(_READ_COUNT, _BLOCK_S):
                    if ("rewards", entry.id) in self._unsettled or await self._receive(consumer, entry):
                        await self._settle(consumer, entry, "rewards")

    async def read_dead(self) -> None:
        """Receive groups that a stage gave up; they are issued again while they have attempts left."""
        consumer: Consumer[DeadLetter] = Consumer(self._streams, "dead", "trainer", self._lease_s)
        async with consumer:
            while True:
                for entry in await consumer.read(_READ_COUNT, _BLOCK_S):
                    known = ("dead", entry.id) in self._unsettled
                    if not known and (entry.record.group_id == UNREADABLE or self._is_own(entry.record)):
                        self._recovery.reissue(entry.record.group_id, entry.record.reason, entry.record)
                    await self._settle(consumer, entry, "dead")

    async def _settle(self, consumer: Consumer[Any], entry: Entry[Any], stream: StreamName) -> None:
        """Settle an entry, and release the blobs of its group if that is over."""
        self._unsettled.add((stream, entry.id))
        await consumer.settle(entry)
        self._unsettled.discard((stream, entry.id))
        await self._release_if_over(entry.record.group_id)

    async def release_given_up(self) -> None:
        """Release the blobs of groups that were dropped because they are lost."""
        while self._recovery.given_up:
            await self._release_if_over(self._recovery.given_up[0])
            del self._recovery.given_up[0]

    async def _release_if_over(self, group_id: str) -> None:
        """Release the blobs of a group that is not under way any more."""
        if group_id not in self._ledger.outstanding and group_id not in self._evaluations.outstanding:
            await self._blobs.release(group_id)

    def _is_own(self, record: RewardRecord | DeadLetter) -> bool:
        """Return whether this attempt issued the group: one of an earlier attempt is of other weights."""
        fence = self._streams.fence
        return fence is None or issuer_of(record) == fence.attempt

    async def _receive(self, consumer: Consumer[RewardRecord], entry: Entry[RewardRecord]) -> bool:
        """Receive a scored group. Return whether its entry is to be settled; else it was given up."""
        record, group_id = entry.record, entry.record.group_id
        own = self._is_own(record)
        issue = self._ledger.outstanding.get(group_id) if own else None
        evaluation = own and group_id in self._evaluations.outstanding
        if issue is None and not evaluation:
            self.duplicates += 1
        elif (defect := defect_of(record, 1 if evaluation else self._spec.group_size)) is not None:
            await consumer.give_up(entry, defect)
            return False
        elif self._ledger.is_behind(record.rollout.weights_version):
            self._recovery.engine_ahead(group_id, record.rollout.weights_version)
        elif issue is None:
            self._evaluations.receive(record)
        elif not (self._spec.deterministic and self._must_be_scored_again(group_id, record)):
            try:
                tokens = TokenBlock.model_validate_json(await self._blobs.get(record.rollout.tokens), extra="ignore")
                if len(tokens.response_token_ids) != self._spec.group_size:
                    raise ValueError(
                        f"tokens of {len(tokens.response_token_ids)} responses; the group has another number"
                    )
            except (BlobMissing, ValueError) as error:
                self._recovery.reissue(group_id, describe_failure(error))
            else:
                group = ScoredGroup(number=issue.number, record=record, tokens=tokens)
                if self._ledger.receive(group_id, record.rollout.weights_version, group) is Receipt.stale:
                    self._ledger.resample(group_id, self._recovery.deadline())
                    self._dispatch_queue.add(group_id)
        if group_id not in self._ledger.outstanding:
            self.last_arrival = time.monotonic()
            self._arrived.set()
        return True

    def _must_be_scored_again(self, group_id: str, record: RewardRecord) -> bool:
        """Return whether other clients than the pinned ones scored a group of a deterministic run, and recover it."""
        if absent := absent_clients(record):
            self._recovery.wait_for_clients(group_id, absent)
        elif (reason := unfit_reason(record)) is not None:
            self._recovery.reissue(group_id, reason)
        elif self._pinned is not None and (changed := self._pinned.changed_clients(record)):
            self._recovery.wait_for_clients(group_id, changed)
        else:
            return False
        return True
