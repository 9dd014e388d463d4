"""Which of a client's answers a fit believes: those to the anchors that it was shown, those in live traffic, or both.

Both, live ones first, unless they contradict each other (``consistency``): then those to shown anchors are worth
nothing, because a client knows that it is being judged by them, and the client is distrusted. A distrusted client is
believed again once it has answered enough anchors in live traffic since, and those agree with what it says at fits.
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
from mor_router.mathematics.permutation_test import p_value
from mor_router.objectives.anchor_scores import AnchorScores
from mor_router.trust.drift import Drift

_TWO_FACED = 0.0005
"""p at which live and shown answers contradict each other."""
_AGREES = 0.05
"""p above which they agree, for a client that was distrusted."""
_LEAST_SINCE = 24
"""Live answers after which a distrusted client may be believed."""

Vectors = Mapping[str, Float[ndarray, " features"]]
Pairs = Mapping[str, tuple[float, float]]
"""Digest of an anchor -> raw scores of (chosen, rejected)."""


class Honesty:
    def __init__(self, live: HoneypotScores, drift: Drift) -> None:
        self._honeypot_scores = live
        self._drift = drift

    async def believed(
        self,
        objective: str,
        present: Vectors,
        scored: Sequence[AnchorScores],
        records: Mapping[str, ClientRecord],
    ) -> tuple[list[AnchorScores], Vectors]:
        """What counts of what each client said, of anchors that are not ``present`` any more too, and the embeddings
        of all these anchors. ``scored`` is what they said when they were shown the present ones.

        Takes the weight of clients whose live answers contradict those.
        """
        await self._honeypot_scores.prune(objective)
        answers = await self._honeypot_scores.all(objective)
        vectors = {
            **present,
            **{d: v for d, v in (await self._honeypot_scores.embeddings(objective)).items() if d not in present},
        }
        found = []
        for shown in scored:
            record = records.get(shown.client)
            if record is None or record.state == "quarantined":
                found.append(shown)  # it is judged by each fit alone
                continue
            own = [answer for answer in answers if (answer.client, answer.model) == (shown.client, shown.model)]
            found.append(await self._counted(record, shown, own, vectors))
        return found, vectors

    async def _counted(
        self, record: ClientRecord, shown: AnchorScores, answers: Sequence[HoneypotScore], vectors: Vectors
    ) -> AnchorScores:
        since = record.distrusted_at
        live = {
            answer.digest: (answer.chosen, answer.rejected) for answer in answers if since is None or answer.at > since
        }
        p = await asyncio.to_thread(contradiction, shown.scores, live, vectors)
        if since is not None and (len(live) < _LEAST_SINCE or p <= _AGREES):
            return replace(
                shown,
                scores=live,
                problem=f"distrusted ({record.reason}); it has answered {len(live)} interleaved anchors since, and is "
                f"believed after {_LEAST_SINCE} that agree with what it says at fits (p = {p:.2g})",
            )
        if since is None and p <= _TWO_FACED:
            reason = f"answers {len(live)} interleaved anchors otherwise than those of fits (p = {p:.2g})"
            await self._drift.distrust(record.name, reason)
            return replace(shown, scores=live, problem=reason)
        return replace(shown, scores={**shown.scores, **live})


def contradiction(shown: Pairs, live: Pairs, vectors: Vectors) -> float:
    """p of a client that makes no distinction between shown and live anchors; 1 where there are too few of either."""
    apart = {digest: pair for digest, pair in shown.items() if digest not in live}
    pairs = {digest: pair for digest, pair in {**apart, **live}.items() if digest in vectors}
    if not live or not apart or not pairs:
        return 1.0
    sizes = {len(vectors[digest]) for digest in pairs}
    if len(sizes) > 1:  # another embedder since; its regions cannot be compared
        return 1.0
    inputs = np.stack([vectors[digest] for digest in pairs]).astype(float)
    differences = np.array([chosen - rejected for chosen, rejected in pairs.values()])
    return p_value(inputs, differences, np.array([digest in live for digest in pairs]))
