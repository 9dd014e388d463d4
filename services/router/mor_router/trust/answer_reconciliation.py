"""Reconciliation of a client's scores of anchors shown at fits with those of honeypots in live traffic.

A fit uses both, honeypots first, unless they contradict each other (``permutation_test``). In that case the scores of
shown anchors are dropped, because a client knows that it is judged by them, and the client is distrusted. A distrusted
client is trusted again once it has answered enough honeypots since, and these agree with its scores at fits.

Scores of audited groups and of proposed pairs count as well. They are not compared with those at fits, because pairs of
a moving policy are harder or easier than anchors. While an objective has audits, a distrusted client must also have
ranked the better responses of audited groups higher since (``sign_flip_test``). Proposed pairs show nothing of that:
they were chosen by the clients' scores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.clients.honeypot_scores import HoneypotScore, HoneypotScores
from mor_router.clients.registry import ClientRecord
from mor_router.mathematics import permutation_test, sign_flip_test
from mor_router.mathematics.standardise import fit_standardiser
from mor_router.objectives.anchor_scores import AnchorScores
from mor_router.trust.audit_types import LabelledAudit, drawn, embeddings, pairs_of
from mor_router.trust.drift import Drift
from mor_router.trust.live_audits import AuditStore

_CONTRADICTS = 0.0005
"""p at and below which honeypot scores and shown scores contradict each other."""
_AGREES = 0.05
"""p above which the two agree, for a client that was distrusted."""
_LEAST_SINCE = 24
"""Honeypots that a distrusted client must have answered before it can be trusted again, and audited groups that it must
have scored, where there are audits."""
_RECOVERED = 0.05
"""p at and below which a distrusted client ranks audited pairs better than by chance."""

Vectors = Mapping[str, Float[ndarray, " features"]]
Pairs = Mapping[str, tuple[float, float]]
"""Digest of an anchor -> raw scores of (chosen, rejected)."""


class AnswerReconciliation:
    """Choice of the scores that a fit uses of each client."""

    def __init__(self, honeypot_scores: HoneypotScores, audits: AuditStore, drift: Drift) -> None:
        self._honeypot_scores = honeypot_scores
        self._audits = audits
        self._drift = drift

    async def reconcile(
        self,
        objective: str,
        present: Vectors,
        scored: Sequence[AnchorScores],
        records: Mapping[str, ClientRecord],
    ) -> tuple[list[AnchorScores], Vectors]:
        """Return each client's scores that count, and the embeddings of their anchors.

        ``scored`` are the clients' scores of the ``present`` anchors, shown at this fit. Honeypots and audits count
        also where their anchors are no longer present. Clients whose honeypot scores contradict ``scored`` lose their
        weight.
        """
        await self._honeypot_scores.prune(objective)
        answers = await self._honeypot_scores.all(objective)
        audits = await self._audits.labelled(objective)
        size = len(next(iter(present.values()), ()))
        earlier = {**embeddings(audits), **await self._honeypot_scores.embeddings(objective)}
        vectors = {**{d: v for d, v in earlier.items() if not present or len(v) == size}, **present}
        found = []
        for shown in scored:
            record = records.get(shown.client)
            if record is None or record.state == "quarantined":
                found.append(shown)  # each fit judges it again
                continue
            own = [answer for answer in answers if (answer.client, answer.model) == (shown.client, shown.model)]
            found.append(await self._reconciled(record, shown, own, audits, vectors))
        return found, vectors

    async def _reconciled(
        self,
        record: ClientRecord,
        shown: AnchorScores,
        answers: Sequence[HoneypotScore],
        audits: Mapping[str, LabelledAudit],
        vectors: Vectors,
    ) -> AnchorScores:
        since = record.distrusted_at
        begin = record.enrolled_at if since is None else since
        live = {
            answer.digest: (answer.chosen, answer.rejected) for answer in answers if since is None or answer.at > since
        }
        labelled = pairs_of(audits.items(), record.name, shown.model, begin)
        counting = {**live, **labelled}
        p = await asyncio.to_thread(contradiction, shown.scores, live, vectors)
        if since is not None:
            checked = pairs_of(drawn(audits).items(), record.name, shown.model, begin)
            audited = any(audit.at > since for audit in drawn(audits).values())
            problem = await asyncio.to_thread(_doubt, live, p, checked if audited else None, vectors)
            if problem is not None:
                return replace(shown, scores=counting, problem=f"distrusted ({record.reason}); {problem}")
        elif p <= _CONTRADICTS:
            reason = f"scores {len(live)} honeypots differently from anchors shown at fits (p = {p:.2g})"
            await self._drift.distrust(record.name, reason)
            return replace(shown, scores=counting, problem=reason)
        return replace(shown, scores={**shown.scores, **counting})


def _doubt(live: Pairs, p: float, checked: Pairs | None, vectors: Vectors) -> str | None:
    """Explain why a distrusted client is not trusted yet; ``None`` where it is. ``checked``: its audited pairs since,
    ``None`` where the objective has no audits."""
    if checked is not None:
        useful = usefulness(checked, vectors) if len(checked) >= _LEAST_SINCE else 1.0
        if useful > _RECOVERED:
            return (
                f"it has scored {len(checked)} audited groups since, and is trusted again after {_LEAST_SINCE} in "
                f"which it ranks the better responses higher (p = {useful:.2g})"
            )
    if len(live) + len(checked or ()) < _LEAST_SINCE or p <= _AGREES:
        return (
            f"it has answered {len(live)} honeypots since, and is trusted again after {_LEAST_SINCE} that agree with "
            f"its scores at fits (p = {p:.2g})"
        )
    return None


def usefulness(pairs: Pairs, vectors: Vectors) -> float:
    """Compute p that a client ranks these pairs by chance; 1 where there are too few."""
    raw = np.array([pair for digest, pair in pairs.items() if digest in vectors]).reshape(-1, 2)
    if not len(raw):
        return 1.0
    units = fit_standardiser(raw)(raw)
    inputs = np.stack([vectors[digest] for digest in pairs if digest in vectors]).astype(float)
    return sign_flip_test.p_value(sign_flip_test.region_cells(inputs), units[:, 0] - units[:, 1])


def contradiction(shown: Pairs, live: Pairs, vectors: Vectors) -> float:
    """Compute p that a client treats shown and live anchors alike; 1 where there are too few of either."""
    apart = {digest: pair for digest, pair in shown.items() if digest not in live}
    pairs = {digest: pair for digest, pair in {**apart, **live}.items() if digest in vectors}
    if not live or not apart or not pairs:
        return 1.0
    sizes = {len(vectors[digest]) for digest in pairs}
    if len(sizes) > 1:  # vectors of another embedder have no common regions
        return 1.0
    inputs = np.stack([vectors[digest] for digest in pairs]).astype(float)
    differences = np.array([chosen - rejected for chosen, rejected in pairs.values()])
    return permutation_test.p_value(inputs, differences, np.array([digest in live for digest in pairs]))
