"""Drift: a client whose answers are no longer those that its calibration was fitted on loses its weight until a fit.

Two things are looked at: its answers to interleaved anchors under the gate version in force, by a sequential test
against what the fit expects (``expectation``), and the model version that it says it serves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.errors import NotFound
from mor_core.wire import ModelRef
from numpy import ndarray

from mor_router import metrics
from mor_router.audit import Audit
from mor_router.expectation import Departure, depart, influences
from mor_router.live_answers import LiveAnswer, LiveAnswers
from mor_router.objectives import COLD_START, Objectives
from mor_router.registry import ClientRecord, Registry
from mor_router.serving import Loaded, ServedGates

log = structlog.get_logger(__name__)


class Drift:
    def __init__(
        self,
        *,
        registry: Registry,
        objectives: Objectives,
        served: ServedGates,
        live: LiveAnswers,
        audit: Audit,
        false_alarm: float,
    ) -> None:
        self._registry = registry
        self._objectives = objectives
        self._served = served
        self._live = live
        self._audit = audit
        self._threshold = -math.log(false_alarm)

    async def review(self, name: str) -> dict[str, Departure]:
        """Judge every client of the objective's gate in force by its interleaved anchors; what was found of each.

        Raises:
            NotFound: no such objective.
            Conflict: its gate cannot be served.
        """
        objective = await self._objectives.get(name)
        if objective.active == COLD_START:
            return {}
        gate = await self._served.load(objective)
        answers = [
            answer
            for answer in await self._live.all(name)
            if answer.gate == objective.active and gate.models.get(answer.client) == answer.model
        ]
        found = _departures(gate, answers, await self._live.vectors(name)) if answers else {}
        for client, departure in found.items():
            metrics.DRIFT.labels(client).set(departure.log_evidence / math.log(10))
            if departure.log_evidence >= self._threshold:
                reason = f"drift for {name!r} under gate version {objective.active}: {departure.reason}"
                await self.distrust(client, reason)
        return found

    async def distrust(self, client: str, reason: str) -> None:
        """Take the weight of a client that answers otherwise than at the fit; only interleaved anchors count from now
        on, until enough of them speak for it."""
        await self._demote(client, reason, distrusted_at=time.time())

    async def renewed(self, client: str, fitted: ModelRef, serves: ModelRef) -> None:
        """Take the weight of a client that serves another model than its calibration was fitted on.

        The last active client keeps it: a new version is no sign of bad faith, and without any client nothing goes on.
        """
        others = [record for record in await self._registry.all() if record.state == "active" and record.name != client]
        if others:
            told = (
                f"serves {serves.name} {serves.version}; its calibration was fitted on {fitted.name} {fitted.version}"
            )
            await self._demote(client, told, distrusted_at=None)

    async def _demote(self, client: str, reason: str, *, distrusted_at: float | None) -> None:
        demoted = False

        def change(record: ClientRecord) -> ClientRecord:
            nonlocal demoted
            newly = distrusted_at is not None and record.distrusted_at is None and record.state == "probation"
            demoted = record.state == "active" or newly
            if not demoted:
                return record
            found = {"state": "probation", "reason": reason, "demoted_at": time.time()}
            if distrusted_at is not None:
                found["distrusted_at"] = distrusted_at
            return record.model_copy(update=found)

        try:
            await self._registry.update(client, change)
        except NotFound:
            return  # removed meanwhile
        if demoted:
            self._audit.record("drift", client, "router", state="probation", reason=reason)
            log.warning("a client lost its weight until the next fit", client=client, reason=reason)


def _departures(
    gate: Loaded, answers: Sequence[LiveAnswer], vectors: Mapping[str, Float[ndarray, " features"]]
) -> dict[str, Departure]:
    known = [answer for answer in answers if answer.digest in vectors and answer.client in gate.expected]
    order = list(dict.fromkeys(answer.digest for answer in known))
    if not order:
        return {}
    inputs = np.stack([vectors[digest] for digest in order]).astype(float)
    mixture = gate.mixture
    influence = influences(mixture.weights(inputs, mixture.clients), mixture.slopes(inputs))
    row = {digest: index for index, digest in enumerate(order)}
    column = {client: index for index, client in enumerate(mixture.clients)}
    found = {}
    for client in sorted({answer.client for answer in known}):
        own = [answer for answer in known if answer.client == client]
        differences = np.array([answer.difference for answer in own])
        stakes = np.array([influence[row[answer.digest], column[client]] for answer in own])
        found[client] = depart(gate.expected[client], differences, stakes)
    return found
