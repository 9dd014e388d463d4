"""Online refit: gates follow the policy. The policy is sampled on questions of the anchors and the samples are labelled
by the objective's checker or judge; never by the fused reward. Where there is neither, the old anchors that are most
like the samples count most (``density``)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from mor_core.errors import MorError, Unavailable
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router.audit import AuditLog
from mor_router.clients.responses import ClientFailure
from mor_router.config import RouterSettings
from mor_router.embedding import Embedder
from mor_router.learning.fitting import Fitting
from mor_router.learning.labels import Labeller, Labellers, Sampled
from mor_router.learning.sampler import PolicySampler
from mor_router.mathematics.density import effective_share, thin, weights
from mor_router.objectives.gates import GateStore, GateVersion, RefitSummary
from mor_router.objectives.objective_store import COLD_START, Anchor, Objective, ObjectiveStore, digest_of
from mor_router.store import key

_AT_ONCE = 4
_LEAST = 8
"""Questions that must have been sampled, or labelled, for a refit."""
_WATCH_S = 5.0

log = structlog.get_logger(__name__)


@dataclass
class Samples:
    """What the policy said, and what became of the questions that it is not used for."""

    policy: str = "unknown"
    found: list[Sampled] = field(default_factory=list)
    labelled: list[Anchor] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    problem: str | None = None


class Refitting:
    def __init__(
        self,
        *,
        redis: Redis,
        settings: RouterSettings,
        objectives: ObjectiveStore,
        gates: GateStore,
        labellers: Labellers,
        fitting: Fitting,
        embedder: Embedder,
        audit: AuditLog,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._objectives = objectives
        self._gates = gates
        self._labellers = labellers
        self._fitting = fitting
        self._embedder = embedder
        self._audit = audit

    async def follow(self) -> None:
        """Refit every fitted objective at the interval of the settings, one replica each time, until cancelled; not
        where the policy has not moved since."""
        interval = self._settings.refit_interval_s
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) * min(_WATCH_S, interval))
            try:
                for objective in await self._objectives.all():
                    due = objective.active != COLD_START and await self._redis.set(
                        key("refitted", objective.name), "1", nx=True, px=max(1, round(1000 * interval))
                    )
                    if due and await self._moved(objective):
                        await self.refit(objective.name, "router", activate=True)
            except (MorError, ClientFailure, RedisError) as error:
                log.warning("an online refit failed; the gate in force stays", reason=str(error))
            except Exception as error:  # the next interval is another try
                log.error("an online refit broke off; the gate in force stays", exc_info=error)

    async def _moved(self, objective: Objective) -> bool:
        """Whether the policy is another one than the gate in force was fitted for."""
        gate = await self._gates.get(objective.name, objective.active)
        sampler = PolicySampler(self._settings)
        try:
            return gate.refitted is None or gate.refitted.policy != await sampler.version(self._settings.deadline_s)
        finally:
            await sampler.close()

    async def refit(self, name: str, by: str, *, activate: bool) -> GateVersion:
        """Sample the policy, have it labelled, fit.

        Raises:
            NotFound: no such objective.
            Conflict: no policy to sample, no anchors, or a fit is going on.
            Unavailable: too few questions were answered by the policy, or labelled.
        """
        objective = await self._objectives.get(name)
        anchors = await self._objectives.uploaded(name)
        sampler = PolicySampler(self._settings)
        try:
            labeller = await self._labellers.open(name)
            try:
                samples = await self._samples(objective, anchors, sampler, labeller)
            finally:
                if labeller is not None:
                    await labeller.close()
        finally:
            await sampler.close()
        account = RefitSummary(
            policy=samples.policy,
            questions=len(samples.found),
            labelled=len(samples.labelled),
            dropped=dict(samples.dropped),
            effective_share=None,
        )
        only = None
        if labeller is None:
            account, only = await self._nearest(account, anchors, samples)
        else:
            await self._objectives.add_sampled(name, samples.labelled)
        self._audit.record("refit", name, by, policy=account.policy, labelled=account.labelled)
        return await self._fitting.fit(name, by, activate=activate, only=only, refitted=account)

    async def _samples(
        self, objective: Objective, anchors: Sequence[Anchor], sampler: PolicySampler, labeller: Labeller | None
    ) -> Samples:
        """The policy's responses to some of the anchors' questions, and the pairs that were labelled.

        Raises:
            Unavailable: too few.
        """
        distinct = list({anchor.messages: anchor for anchor in anchors}.values())
        asked = random.sample(distinct, min(self._settings.refit_questions, len(distinct)))
        images = await self._objectives.images(objective.name, asked)
        samples = Samples()
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(anchor: Anchor) -> None:
            async with slots:
                sampled = await self._sampled(anchor, images, sampler, samples)
                if sampled is None:
                    return
                samples.found.append(sampled)
                if labeller is not None:
                    await self._label(objective, anchor, sampled, labeller, samples)

        try:
            async with asyncio.timeout(self._settings.refit_timeout_s):
                await asyncio.gather(*(one(anchor) for anchor in asked))
        except TimeoutError:
            samples.dropped["out of time"] = len(asked) - len(samples.found) - samples.dropped["not sampled"]
        enough = samples.found if labeller is None else samples.labelled
        if len(enough) < _LEAST:
            raise Unavailable(
                f"{len(enough)} of {len(asked)} questions gave something to fit on, {_LEAST} are needed: "
                f"{dict(samples.dropped)}; {samples.problem}"
            )
        return samples

    async def _sampled(
        self, anchor: Anchor, images: Mapping[str, bytes], sampler: PolicySampler, samples: Samples
    ) -> Sampled | None:
        try:
            samples.policy, texts = await sampler.sample(anchor.messages, images, self._settings.deadline_s)
        except ClientFailure as failure:
            samples.dropped["not sampled"] += 1
            samples.problem = str(failure)
            return None
        return Sampled(anchor.messages, tuple(dict.fromkeys(texts)), images)

    async def _label(
        self, objective: Objective, anchor: Anchor, sampled: Sampled, labeller: Labeller, samples: Samples
    ) -> None:
        if len(sampled.responses) < 2:
            samples.dropped["all alike"] += 1
            return
        try:
            pair = await labeller.label(sampled, objective.text, self._settings.deadline_s)
        except Unavailable as error:
            samples.dropped["not labelled"] += 1
            samples.problem = str(error)
            return
        if pair is None:
            samples.dropped["undecided"] += 1
        else:
            samples.labelled.append(_labelled(anchor, sampled, pair, samples.policy))

    async def _nearest(
        self, account: RefitSummary, anchors: Sequence[Anchor], samples: Samples
    ) -> tuple[RefitSummary, frozenset[str]]:
        """The old anchors that stay for this policy, by their digests."""
        pairs = np.stack(
            [
                np.stack([await self._embedder.text(anchor.chosen), await self._embedder.text(anchor.rejected)])
                for anchor in anchors
            ]
        )
        texts = [text for sampled in samples.found for text in sampled.responses]
        policy = np.stack([await self._embedder.text(text) for text in texts])
        importance = await asyncio.to_thread(weights, pairs, policy)
        uniform = np.array([int(anchor.digest[:13], 16) / 16**13 for anchor in anchors])
        stays = thin(importance, uniform)
        kept = frozenset(anchor.digest for anchor, stay in zip(anchors, stays, strict=True) if stay)
        share = effective_share(importance)
        return account.model_copy(update={"effective_share": share}), kept


def _labelled(anchor: Anchor, sampled: Sampled, pair: tuple[int, int], policy: str) -> Anchor:
    better, worse = (sampled.responses[place] for place in pair)
    return Anchor(
        id=f"{anchor.id}@{policy}",
        digest=digest_of(anchor.messages, better, worse),
        messages=anchor.messages,
        chosen=better,
        rejected=worse,
        domain=anchor.domain,
        others=tuple(text for place, text in enumerate(sampled.responses) if place not in pair),
        policy=policy,
    )
