"""Drift: a client that no longer scores as it did at the fit loses its weight until the next fit.

Two signals count: a sequential test of its honeypot scores under the active gate version against its baseline at the
fit (``drift_test``), and the model version that it reports.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.errors import Conflict, MorError, NotFound
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import ModelRef
from numpy import ndarray

from mor_router import metrics
from mor_router.audit import AuditLog
from mor_router.clients.change_limit import ChangeLimit
from mor_router.clients.honeypot_scores import HoneypotScore, HoneypotScores
from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.mathematics.drift_test import DriftResult, drift_result
from mor_router.mathematics.regional_slopes import influences
from mor_router.objectives.active_gates import GateResolver, LoadedGate
from mor_router.objectives.objective_store import COLD_START, ObjectiveStore

_MOST_MODEL_CHANGES = 8
"""Changes of a client's model that are recorded within ``_CHANGES_S``; replicas count apart."""
_CHANGES_S = 3600.0
"""Seconds; an operator deploys a few versions in an hour at most."""

log = structlog.get_logger(__name__)


class Drift:
    """Detector of clients that drifted, and of clients that serve another model."""

    def __init__(
        self,
        *,
        registry: ClientRegistry,
        objectives: ObjectiveStore,
        gate_resolver: GateResolver,
        honeypot_scores: HoneypotScores,
        audit: AuditLog,
        false_alarm: float,
    ) -> None:
        self._registry = registry
        self._objectives = objectives
        self._gate_resolver = gate_resolver
        self._honeypot_scores = honeypot_scores
        self._audit = audit
        self._threshold = -math.log(false_alarm)
        self._changes = ChangeLimit(_MOST_MODEL_CHANGES, _CHANGES_S)

    async def review(self, name: str) -> dict[str, DriftResult]:
        """Test every client of the objective's active gate on its honeypots, and distrust those that drifted.

        Raises:
            NotFound: no such objective.
            Conflict: its gate cannot be served.
        """
        objective = await self._objectives.get(name)
        if objective.active == COLD_START:
            return {}
        gate = await self._gate_resolver.load(objective)
        vectors = await self._honeypot_scores.embeddings(name)
        vectors = {digest: vector for digest, vector in vectors.items() if len(vector) == self._gate_resolver.features}
        answers = [
            answer
            for answer in await self._honeypot_scores.all(name)
            if answer.gate == objective.active and gate.models.get(answer.client) == answer.model
        ]
        found = await asyncio.to_thread(_drift_results, gate, answers, vectors)
        for client, result in found.items():
            metrics.DRIFT.labels(client).set(result.log_evidence / math.log(10))
            if result.log_evidence >= self._threshold:
                reason = f"drift for {name!r} under gate version {objective.active}: {result.reason}"
                await self.distrust(client, reason)
        return found

    async def distrust(self, client: str, reason: str) -> None:
        """Put a client on probation; only its honeypots count from now on, until enough of them are in its favour."""
        newly = False

        def change(record: ClientRecord) -> ClientRecord:
            nonlocal newly
            newly = record.state == "active" or (record.state == "probation" and record.distrusted_at is None)
            found = {"state": "probation", "reason": reason, "distrusted_at": SERVER_CLOCK.now()}
            return record.model_copy(update=found) if newly else record

        try:
            await self._registry.update(client, change)
        except (NotFound, Conflict):
            return  # removed meanwhile, or its record cannot be read
        if newly:
            self._audit.record("drift", client, "router", state="probation", reason=reason)
            log.warning("a client lost its weight until a fit restores it", client=client, reason=reason)

    async def record_model(self, client: str, serves: ModelRef) -> None:
        """Record the model that a client serves; gates fitted on another model give it no weight from now on.

        Of a client that names new models all the time only the first changes of an hour are recorded: they suffice to
        take its weight, and each one is a write to the registry and a line of the audit log.
        """
        verdict = self._changes.take(client)
        if verdict == "drop":
            return
        try:
            before = await self._registry.record_model(client, serves)
        except MorError as error:  # removed meanwhile, or changed by others: the next answer tries again
            log.info("a client's model was not recorded", client=client, reason=str(error))
            return
        if before is not None:
            more = {} if verdict == "record" else {"note": "further changes within the hour are not recorded"}
            self._audit.record("drift", client, "router", model=_text(serves), before=_text(before), **more)
            log.warning("a client serves another model; fit again", client=client, model=_text(serves), **more)


def _text(model: ModelRef) -> str:
    return f"{model.name} {model.version}"


def _drift_results(
    gate: LoadedGate, answers: Sequence[HoneypotScore], vectors: Mapping[str, Float[ndarray, " features"]]
) -> dict[str, DriftResult]:
    by_client: dict[str, list[HoneypotScore]] = {}
    for answer in answers:
        if answer.digest in vectors and answer.client in gate.expected:
            by_client.setdefault(answer.client, []).append(answer)
    order = list({answer.digest for own in by_client.values() for answer in own})
    if not order:
        return {}
    inputs = np.stack([vectors[digest] for digest in order]).astype(float)
    mixture = gate.mixture
    influence = influences(mixture.weights(inputs, mixture.clients), mixture.slopes(inputs))
    row = {digest: index for index, digest in enumerate(order)}
    found = {}
    for client, own in sorted(by_client.items()):
        rows = [row[answer.digest] for answer in own]
        differences = np.array([answer.difference for answer in own])
        found[client] = drift_result(gate.expected[client], differences, influence[rows, mixture.clients.index(client)])
    return found
