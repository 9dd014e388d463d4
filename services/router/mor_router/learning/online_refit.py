"""Online refit: gates follow the policy as it trains.

The policy answers questions of the anchors, also those of audited groups, and the objective's checker or judge labels
its responses; the fused reward never does. Without checker or judge, the old anchors most similar to the responses
count most (``density``).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from mor_core.endless_keys import delete_endless
from mor_core.errors import MorError, Unavailable
from mor_core.failures import describe_failure
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router.audit import AuditLog
from mor_router.clients.responses import ClientFailure
from mor_router.config import RouterSettings
from mor_router.embedding import Embedder
from mor_router.learning.gate_fitter import GateFitter
from mor_router.learning.labels import Labeller, LabellerStore, SampledGroup
from mor_router.learning.sampler import PolicySampler
from mor_router.mathematics.density import effective_share, importance_weights, thin
from mor_router.objectives.gates import GateStore, GateVersion, RefitSummary
from mor_router.objectives.objective_store import COLD_START, Anchor, Objective, ObjectiveStore, digest_of
from mor_router.store import key

_AT_ONCE = 4
"""Questions that are sampled and labelled at a time, to bound the load on the engine."""
_LEAST = 8
"""Questions that must have been sampled, or labelled, for a refit."""
_WATCH_S = 5.0
"""Longest pause between checks for a due refit, seconds."""

log = structlog.get_logger(__name__)


@dataclass
class PolicySamples:
    """Responses of the policy to questions of the anchors, and the pairs labelled among them."""

    policy: str = "unknown"
    """Run and weights version that was sampled."""
    found: list[SampledGroup] = field(default_factory=list)
    labelled: list[Anchor] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of questions that gave no labelled pair."""
    problem: str | None = None
    """Latest failure of the policy or the labeller."""


class OnlineRefit:
    """Refit of gates on the policy's own responses, on request or at an interval."""

    def __init__(
        self,
        *,
        redis: Redis,
        settings: RouterSettings,
        objectives: ObjectiveStore,
        gates: GateStore,
        labellers: LabellerStore,
        gate_fitter: GateFitter,
        embedder: Embedder,
        audit: AuditLog,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._objectives = objectives
        self._gates = gates
        self._labellers = labellers
        self._gate_fitter = gate_fitter
        self._embedder = embedder
        self._audit = audit

    async def follow(self) -> None:
        """Refit every fitted objective at the set interval until cancelled, where the policy has moved since.

        One replica does it each time.
        """
        interval = self._settings.refit_interval_s
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) * min(_WATCH_S, interval))
            try:
                for objective in await self._objectives.all():
                    due = objective.active != COLD_START and await self._is_due(objective.name, interval)
                    if due and await self._moved(objective):
                        await self.refit(objective.name, "router", activate=True)
            except (MorError, ClientFailure, RedisError) as error:
                log.warning("an online refit failed; the active gate stays", reason=describe_failure(error))
            except Exception as error:  # the loop outlives one failure; the next interval tries again
                log.error("an online refit broke off; the active gate stays", exc_info=error)

    async def _is_due(self, name: str, interval: float) -> bool:
        """Return whether no replica has looked at an objective within the interval, which begins anew then."""
        place = key("refitted", name)
        await delete_endless(self._redis, place, interval)
        return bool(await self._redis.set(place, "1", nx=True, px=max(1, round(1000 * interval))))

    async def _moved(self, objective: Objective) -> bool:
        """Return whether the policy differs from the one that the active gate was fitted for."""
        gate = await self._gates.get(objective.name, objective.active)
        sampler = PolicySampler(self._settings)
        try:
            return gate.refitted is None or gate.refitted.policy != await sampler.version(self._settings.deadline_s)
        finally:
            await sampler.close()

    async def refit(self, name: str, by: str, *, activate: bool) -> GateVersion:
        """Sample the policy, have its responses labelled, and fit.

        Raises:
            NotFound: no such objective.
            Conflict: there is no policy to sample, or a fit is running.
            Unavailable: the policy answered too few questions, or too few were labelled.
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
        summary = RefitSummary(
            policy=samples.policy,
            questions=len(samples.found),
            labelled=len(samples.labelled),
            dropped=dict(samples.dropped),
            effective_share=None,
        )
        only = None
        if labeller is None:
            summary, only = await self._nearest(summary, anchors, samples)
        else:
            await self._objectives.add_sampled(name, samples.labelled)
        self._audit.record("refit", name, by, policy=summary.policy, labelled=summary.labelled)
        return await self._gate_fitter.fit(name, by, activate=activate, only=only, refitted=summary)

    async def _samples(
        self, objective: Objective, anchors: Sequence[Anchor], sampler: PolicySampler, labeller: Labeller | None
    ) -> PolicySamples:
        """Sample the policy on some of the anchors' questions and have its responses labelled.

        Raises:
            Unavailable: too few questions were answered or labelled.
        """
        audited = [anchor for anchor in await self._objectives.anchors(objective.name) if anchor.audited]
        labelled = audited if labeller is not None else []  # only a label makes an anchor of a sample
        distinct = list({anchor.messages: anchor for anchor in (*labelled, *anchors)}.values())
        questions = random.sample(distinct, min(self._settings.refit_questions, len(distinct)))
        images = await self._objectives.images(objective.name, questions)
        samples = PolicySamples()
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
                await asyncio.gather(*(one(anchor) for anchor in questions))
        except TimeoutError:
            samples.dropped["out of time"] = len(questions) - len(samples.found) - samples.dropped["not sampled"]
        enough = samples.found if labeller is None else samples.labelled
        if len(enough) < _LEAST:
            raise Unavailable(
                f"{len(enough)} of {len(questions)} questions can be fitted on; at least {_LEAST} are needed: "
                f"{dict(samples.dropped)}; {samples.problem}"
            )
        return samples

    async def _sampled(
        self, anchor: Anchor, images: Mapping[str, bytes], sampler: PolicySampler, samples: PolicySamples
    ) -> SampledGroup | None:
        try:
            samples.policy, texts = await sampler.sample(anchor.messages, images, self._settings.deadline_s)
        except Exception as failure:  # whatever fails, it costs this question alone
            samples.dropped["not sampled"] += 1
            samples.problem = describe_failure(failure)
            return None
        return SampledGroup(anchor.messages, tuple(dict.fromkeys(texts)), images, tuple(texts))

    async def _label(
        self, objective: Objective, anchor: Anchor, sampled: SampledGroup, labeller: Labeller, samples: PolicySamples
    ) -> None:
        if len(sampled.responses) < 2:
            samples.dropped["all alike"] += 1
            return
        try:
            pairs = await labeller.label(sampled, objective.text, self._settings.deadline_s)
        except Exception as error:  # likewise
            samples.dropped["not labelled"] += 1
            samples.problem = describe_failure(error)
            return
        if not pairs:
            samples.dropped["undecided"] += 1
        else:
            samples.labelled.append(_labelled(anchor, sampled, pairs[0], samples.policy))

    async def _nearest(
        self, summary: RefitSummary, anchors: Sequence[Anchor], samples: PolicySamples
    ) -> tuple[RefitSummary, frozenset[str]]:
        """Choose the old anchors that are kept for this policy, by digest."""
        pairs = np.stack(
            [
                np.stack([await self._embedder.text(anchor.chosen), await self._embedder.text(anchor.rejected)])
                for anchor in anchors
            ]
        )
        texts = [text for sampled in samples.found for text in sampled.responses]
        policy = np.stack([await self._embedder.text(text) for text in texts])
        importance = await asyncio.to_thread(importance_weights, pairs, policy)
        uniform = np.array([int(anchor.digest[:13], 16) / 16**13 for anchor in anchors])
        stays = thin(importance, uniform)
        kept = frozenset(anchor.digest for anchor, stay in zip(anchors, stays, strict=True) if stay)
        share = effective_share(importance)
        return summary.model_copy(update={"effective_share": share}), kept


def _labelled(anchor: Anchor, sampled: SampledGroup, pair: tuple[int, int], policy: str) -> Anchor:
    better, worse = (sampled.responses[place] for place in pair)
    return Anchor(
        id=f"{anchor.id}@{policy}",
        digest=digest_of(anchor.messages, better, worse),
        messages=anchor.messages,
        chosen=better,
        rejected=worse,
        domain=anchor.domain,
        public=anchor.public,
        others=tuple(text for place, text in enumerate(sampled.responses) if place not in pair),
        sample=sampled.drawn,
        live_question=anchor.audited,
        policy=policy,
    )
