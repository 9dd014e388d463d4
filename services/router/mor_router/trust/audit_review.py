"""Review of labelled audits: a client that misleads live groups loses its weight until the next fit.

Only audits of the client's present model since its enrolment count, and since it was last distrusted. Audits under the
cold start are no evidence: a specialist may be wrong outside its domain while no gate is fitted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from mor_core.audits import ClientAudits, ObjectiveAudits
from mor_core.errors import NotFound
from mor_core.intervals import wilson
from numpy import ndarray

from mor_router import metrics
from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.mathematics.audit_test import AuditedGroup, AuditResult, audit_result
from mor_router.mathematics.drift_test import right
from mor_router.mathematics.standardise import fit_standardiser
from mor_router.objectives.objective_store import COLD_START, ObjectiveStore
from mor_router.trust.audit_types import AuditScores, LabelledAudit, drawn, pairs_of
from mor_router.trust.drift import Drift
from mor_router.trust.live_audits import AuditStore

_SHOWN_BY = 10
"""Audits are shown to clients by the ten: a count that grew by one after a group would reveal that it was audited."""


class AuditReview:
    """Tests of all clients on the labelled audits of an objective."""

    def __init__(
        self,
        store: AuditStore,
        objectives: ObjectiveStore,
        registry: ClientRegistry,
        drift: Drift,
        false_alarm: float,
    ) -> None:
        self._store = store
        self._objectives = objectives
        self._registry = registry
        self._drift = drift
        self._threshold = -math.log(false_alarm)
        self._summarising = asyncio.Lock()
        self._summarised: object = None
        self._known: Mapping[str, ClientAudits] = {}
        """Client -> summary, from the audits and clients that ``_summarised`` describes."""

    async def review(self, objective: str) -> dict[str, AuditResult]:
        """Test every client, and distrust those that mislead."""
        await self._store.prune(objective)
        audits = list(drawn(await self._store.labelled(objective)).values())
        records = {record.name: record for record in await self._registry.all()}
        found = await asyncio.to_thread(lambda: audit_result(audited_groups(audits, records)))
        for client, result in found.items():
            metrics.AUDIT_EVIDENCE.labels(client).set(result.log_evidence / math.log(10))
            if result.log_evidence >= self._threshold:
                await self._drift.distrust(client, f"audits of live groups for {objective!r}: {result.reason}")
        return found

    async def of_client(self, client: str) -> ClientAudits:
        """Summarise what the labelled audits say about a client.

        Raises:
            NotFound: no such client.
        """
        await self._registry.get(client)
        found = await self._summaries()
        if client not in found:
            raise NotFound(f"no client {client!r}; 'mor client list' shows all")  # removed meanwhile
        return found[client]

    async def of_all(self) -> list[ClientAudits]:
        """Summarise what the labelled audits say about each client, by name."""
        return list((await self._summaries()).values())

    async def _summaries(self) -> Mapping[str, ClientAudits]:
        """Summarise the audits of every client, by name, once for all callers until there are other audits or clients.

        All audits of an objective take megabytes and a tenth of a second, and any client's token may ask.
        """
        async with self._summarising:
            records = await self._registry.all()
            names = [objective.name for objective in await self._objectives.all()]
            counts = [(name, await self._store.count_labelled(name)) for name in names]
            present = counts, [(record.name, record.model, record.enrolled_at) for record in records]
            if present != self._summarised:
                found: dict[str, list[ObjectiveAudits]] = {record.name: [] for record in records}
                for name in names:
                    audits = drawn(await self._store.labelled(name))
                    for client, line in (await asyncio.to_thread(_by_client, name, audits, records)).items():
                        found[client].append(line)
                self._known = {
                    client: ClientAudits(client=client, objectives=tuple(lines)) for client, lines in found.items()
                }
                self._summarised = present
            return self._known


def audited_groups(audits: Sequence[LabelledAudit], records: Mapping[str, ClientRecord]) -> list[AuditedGroup]:
    """Return the groups that are evidence about the clients of ``records``, with the scores that count."""
    fitted = [audit for audit in audits if audit.gate != COLD_START]
    lines = [{line.client: line for line in audit.clients if _counts(audit, line, records)} for audit in fitted]
    shadows = _shadow_scores(fitted, lines)
    return [
        AuditedGroup(
            pairs=audit.pairs or (audit.pair,),
            scores={
                client: shadows[client, place] if line.standardised is None else np.array(line.standardised)
                for client, line in own.items()
            },
            weights={client: line.weight for client, line in own.items()},
            slopes={client: line.slope for client, line in own.items()},
            rewards=np.array(audit.rewards),
            probability=audit.probability,
            support=audit.support,
            situations=audit.situations,
            suspects=frozenset(audit.suspects),
        )
        for place, (audit, own) in enumerate(zip(fitted, lines, strict=True))
    ]


def _counts(audit: LabelledAudit, line: AuditScores, records: Mapping[str, ClientRecord]) -> bool:
    record = records.get(line.client)
    return record is not None and line.model == record.model and audit.at > (record.distrusted_at or record.enrolled_at)


def _shadow_scores(
    audits: Sequence[LabelledAudit], lines: Sequence[Mapping[str, AuditScores]]
) -> dict[tuple[str, int], Float[ndarray, " responses"]]:
    """Standardise the scores of shadows, by client and place of the audit, on their own audited pairs."""
    places: dict[str, list[int]] = {}
    for place, own in enumerate(lines):
        for client, line in own.items():
            if line.standardised is None:
                places.setdefault(client, []).append(place)
    found: dict[tuple[str, int], Float[ndarray, " responses"]] = {}
    for client, own_places in places.items():
        raw = {place: np.array(lines[place][client].raw) for place in own_places}
        standardise = fit_standardiser(np.stack([raw[place][list(audits[place].pair)] for place in own_places]))
        found |= {(client, place): standardise(scores) for place, scores in raw.items()}
    return found


def _by_client(
    objective: str, audits: Mapping[str, LabelledAudit], records: Sequence[ClientRecord]
) -> dict[str, ObjectiveAudits]:
    """Summarise the audits of each client that has enough of them to be shown."""
    known = sorted(audits.items(), key=lambda item: item[1].labelled_at)
    found = {}
    for record in records:
        pairs = [*pairs_of(known, record.name, record.model, record.enrolled_at).values()]
        if len(pairs) >= _SHOWN_BY:
            found[record.name] = _summary(objective, np.array(pairs[: len(pairs) - len(pairs) % _SHOWN_BY]))
    return found


def _summary(objective: str, pairs: Float[ndarray, "audits 2"]) -> ObjectiveAudits:
    agreed = right(pairs[:, 0] - pairs[:, 1]).sum()
    return ObjectiveAudits(
        objective=objective,
        audits=len(pairs),
        agreement=float(agreed / len(pairs)),
        agreement_interval=wilson(float(agreed), len(pairs)),
    )
