"""Fit of a gate version on an objective's anchors, and its activation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.background import in_background
from mor_core.errors import Conflict, Invalid, NotFound, Unavailable
from mor_core.failures import describe_failure
from mor_core.server_clock import SERVER_CLOCK
from numpy import ndarray
from redis.asyncio import Redis
from redis.exceptions import LockError, RedisError

from mor_router import metrics
from mor_router.audit import AuditLog
from mor_router.clients.pool import ClientPool
from mor_router.clients.registry import ClientRegistry
from mor_router.config import RouterSettings
from mor_router.embedding import Embedder, GateInput
from mor_router.mathematics import loo_agreement
from mor_router.mathematics.drift_test import DriftBaseline, fit_baseline
from mor_router.mathematics.mixture import Mixture, extend_mixture, fit_mixture, standardised_differences
from mor_router.mathematics.regional_slopes import influences
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.anchor_scores import AnchorScorer, AnchorScores, score_all
from mor_router.objectives.gate_report import FitReport, build_report
from mor_router.objectives.gates import GateStore, GateVersion, RefitSummary, dump_mixture, load_mixture
from mor_router.objectives.objective_store import COLD_START, Anchor, Objective, ObjectiveStore
from mor_router.store import key
from mor_router.trust.answer_reconciliation import AnswerReconciliation
from mor_router.trust.quarantine import Quarantine

_LEAST_PAIRS = 8
"""Anchors that a fit needs, and that a client must have scored to be fitted."""
_LEAST_SHARE = 0.5
"""Share of the anchors shown to a client that it must have scored to be fitted."""
_LOCK_S = 60.0
"""Lifetime of a fit's lock, seconds, renewed three times as often: a crash blocks fits for a minute at most."""

log = structlog.get_logger(__name__)


class GateFitter:
    """Fitter of gate versions, one fit of an objective at a time."""

    def __init__(
        self,
        *,
        redis: Redis,
        settings: RouterSettings,
        registry: ClientRegistry,
        pool: ClientPool,
        objectives: ObjectiveStore,
        gates: GateStore,
        embedder: Embedder,
        scorer: AnchorScorer,
        holdout: AnchorHoldout,
        reconciliation: AnswerReconciliation,
        quarantine: Quarantine,
        audit: AuditLog,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._registry = registry
        self._pool = pool
        self._objectives = objectives
        self._gates = gates
        self._embedder = embedder
        self._scorer = scorer
        self._holdout = holdout
        self._reconciliation = reconciliation
        self._quarantine = quarantine
        self._audit = audit

    async def fit(
        self,
        name: str,
        by: str,
        *,
        activate: bool,
        newcomers_only: bool = False,
        only: Collection[str] | None = None,
        refitted: RefitSummary | None = None,
    ) -> GateVersion:
        """Have every client that is not paused score the anchors, fit on the useful clients, and store the version.

        Held-out anchors and audited pairs are not shown; the clients' scores of them in live traffic count together
        with the new scores. With
        ``newcomers_only`` the clients of the active version keep their coefficients. With ``only``, digests, the other
        anchors are left out. ``refitted`` is recorded with the version.

        Raises:
            NotFound: no such objective.
            Conflict: another fit of the objective is running, or there is no version that newcomers could join.
            Invalid: too few anchors.
            Unavailable: no client scored enough of them.
        """
        objective = await self._objectives.get(name)
        anchors = [a for a in await self._objectives.anchors(name) if only is None or a.digest in only]
        if len(anchors) < _LEAST_PAIRS:
            raise Invalid(f"objective {name!r} has {len(anchors)} anchors; at least {_LEAST_PAIRS} are needed to fit")
        base = await self._base(objective) if newcomers_only else None
        async with self._alone(name):
            images = await self._objectives.images(name, anchors)
            await self._pool.refresh()
            trusted = self._pool.names_in_state("active", "probation")
            called = [*trusted, *self._pool.names_in_state("quarantined")]
            shown, _ = await self._holdout.split(
                [anchor for anchor in anchors if not (anchor.audited or anchor.live_question)]
            )
            scored = await score_all(self._scorer, called, objective, shown, images)
            inputs = await self._embedder.inputs([GateInput(anchor.messages, images) for anchor in anchors])
            vectors = {anchor.digest: vector for anchor, vector in zip(anchors, inputs, strict=True)}
            scored, reviewed = await self._reconciliation.reconcile(name, vectors, scored, self._pool.records)
            review = await self._quarantine.review(objective, reviewed, scored)
            left_out = {client: finding.reason for client, finding in review.changed.items() if not finding.useful}
            left_out |= {client: reason for client, reason in review.doubted.items() if client in trusted}
            excluded = {*review.changed, *review.doubted}
            kept = [
                found.restricted_to(vectors)
                for found in scored
                if found.client in trusted and found.client not in excluded
            ]
            gate = await self._fit(objective, anchors, inputs, kept, left_out=left_out, base=base)
            gate = gate.model_copy(update={"refitted": refitted})
            await self._gates.put(gate)
        for found in kept:
            if found.model is not None:
                with suppress(NotFound):  # removed meanwhile
                    await self._registry.record_model(found.client, found.model)
        self._audit.record("fit", name, by, version=gate.version, pairs=gate.report.pairs, extends=gate.extends)
        if activate:
            await self.activate(name, gate.version, by)
        return gate

    async def activate(self, name: str, version: int, by: str) -> Objective:
        """Activate a version. Its clients that were on probation have earned their weight and become active.

        Raises:
            NotFound: no such objective or version.
        """
        gate = await self._gates.get(name, version)
        objective = await self._objectives.activate(name, version)
        self._audit.record("activate", name, by, version=version)
        kept = (await self._gates.get(name, gate.extends)).models if gate.extends is not None else {}
        for client in set(gate.models) & set(self._pool.names_in_state("probation")):
            if gate.models[client] == kept.get(client):
                continue
            with suppress(NotFound):  # removed meanwhile
                if await self._registry.promote(client, gate.created_at):
                    self._audit.record("change", client, by, state="active", version=version)
        await self._pool.refresh()
        return objective

    async def _base(self, objective: Objective) -> GateVersion:
        """Load the active version, which newcomers join.

        Raises:
            Conflict: there is no active version, or it was fitted with another embedder.
        """
        if objective.active == COLD_START:
            raise Conflict(f"objective {objective.name!r} has no gate that newcomers could join; fit all clients first")
        base = await self._gates.get(objective.name, objective.active)
        if base.embedder != self._embedder.name:
            raise Conflict(
                f"gate version {base.version} was fitted with embedder {base.embedder}; fit all clients again"
            )
        return base

    async def _fit(
        self,
        objective: Objective,
        anchors: Sequence[Anchor],
        inputs: Float[ndarray, "anchors features"],
        scored: Sequence[AnchorScores],
        *,
        left_out: Mapping[str, str],
        base: GateVersion | None,
    ) -> GateVersion:
        """Fit the clients that scored enough anchors, or only those that are not in ``base``.

        Raises:
            Conflict: every such client is in ``base``.
            Unavailable: no client scored enough anchors.
        """
        enough = [found for found in scored if len(found.scores) >= max(_LEAST_PAIRS, _LEAST_SHARE * found.askable)]
        without = dict(left_out) | {
            found.client: f"scored {len(found.scores)} of {found.askable} shown anchors: "
            f"{found.problem or f'at least {_LEAST_PAIRS} are needed'}"
            for found in scored
            if found not in enough
        }
        if not enough:
            reasons = "; ".join(f"{client}: {reason}" for client, reason in without.items())
            raise Unavailable(f"no client scored enough anchors of {objective.name!r}: {reasons or 'none is enrolled'}")
        lines = {found.client: found for found in enough}
        known = load_mixture(base.parameters) if base is not None else None
        newcomers = [client for client in lines if known is None or client not in known.clients]
        if not newcomers:
            raise Conflict(f"every client that scored enough anchors of {objective.name!r} is in the gate already")
        clients = [*(known.clients if known is not None else ()), *newcomers]
        without = {client: reason for client, reason in without.items() if client not in clients}
        scores = np.stack([lines.get(client, AnchorScores(client)).array(anchors) for client in clients], axis=1)
        useful = ~np.isnan(scores).all(axis=(1, 2))
        domains = [anchor.domain for anchor, used in zip(anchors, useful, strict=True) if used]

        def work() -> tuple[dict[str, object], FitReport, dict[str, DriftBaseline]]:
            started = time.perf_counter()
            if known is not None and base is not None:
                mixture, fitted = extend_mixture(
                    known, newcomers, inputs[useful], scores[useful], base.report.precision
                )
            else:
                mixture, fitted = fit_mixture(
                    clients,
                    inputs[useful],
                    scores[useful],
                    entropy_floor=self._settings.entropy_floor,
                )
            seconds = time.perf_counter() - started
            report = build_report(
                mixture,
                fitted,
                inputs=inputs[useful],
                scores=scores[useful],
                domains=domains,
                left_out=without,
                seconds=seconds,
            )
            return dump_mixture(mixture), report, drift_baselines(mixture, inputs[useful], scores[useful])

        parameters, fit_report, expected = await asyncio.to_thread(work)
        metrics.FIT_SECONDS.observe(fit_report.seconds)
        return GateVersion(
            version=await self._gates.next_version(),
            objective=objective.name,
            created_at=SERVER_CLOCK.now(),
            embedder=self._embedder.name,
            models=(base.models if base is not None else {})
            | {client: model for client in newcomers if (model := lines[client].model) is not None},
            extends=base.version if base is not None else None,
            report=fit_report,
            expected=expected,
            parameters=parameters,
        )

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """Hold the lock of an objective's fits, over all replicas.

        Raises:
            Conflict: another fit of the objective is running.
        """
        lock = self._redis.lock(key("fitting", name), timeout=_LOCK_S, blocking=False)
        if not await lock.acquire():
            raise Conflict(f"a fit of objective {name!r} is running; try again when it has ended")

        async def renew() -> None:
            while True:
                await asyncio.sleep(_LOCK_S / 3)
                try:
                    await lock.reacquire()
                except LockError:
                    return  # reported when the fit ends
                except RedisError as error:
                    log.warning("the lock of a fit is not renewed", objective=name, error=describe_failure(error))

        try:
            async with in_background(others=[renew]):
                yield
        finally:
            try:
                await lock.release()
            except LockError:
                log.warning("a fit lost its lock before it ended", objective=name)


def drift_baselines(
    mixture: Mixture, inputs: Float[ndarray, "pairs features"], scores: Float[ndarray, "pairs clients 2"]
) -> dict[str, DriftBaseline]:
    """Compute each client's baseline for drift and disagreement from its scores of the anchors."""
    weights, slopes = mixture.weights(inputs, mixture.clients), mixture.slopes(inputs)
    influence = influences(weights, slopes)
    differences = scores[..., 0] - scores[..., 1]
    known = ~np.isnan(differences)
    found = {
        client: fit_baseline(differences[known[:, k], k], influence[known[:, k], k])
        for k, client in enumerate(mixture.clients)
        if known[:, k].any()
    }
    if len(mixture.clients) >= loo_agreement.LEAST_CLIENTS:
        calibrated = slopes * standardised_differences(mixture.standardisers, scores)
        agreement = loo_agreement.of_pairs(calibrated, weights)
        disagreement = loo_agreement.disagreement(calibrated, weights, np.where(known, influence, 0.0))
        for k, client in enumerate(mixture.clients):
            if client in found:
                least = loo_agreement.lower_limit(agreement[known[:, k], k], influence[known[:, k], k])
                measured = {"least_agreement": least, "disagreement": float(disagreement[k])}
                found[client] = found[client].model_copy(update=measured)
    return found
