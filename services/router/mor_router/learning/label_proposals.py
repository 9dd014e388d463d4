"""Proposals of the pairs to have labelled next, out of live groups that are kept and of pairs that were uploaded.

A proposed pair moves to the queue of audited groups, where people or the objective's labeller label it, and becomes an
anchor. Audited groups themselves are never candidates: choosing among them by the clients' scores would bias the tests
of the clients.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mor_core.errors import Conflict
from mor_core.proposals import MOST_COUNT, MOST_EXCERPT, LabelProposal, ProposedLabel
from mor_core.server_clock import SERVER_CLOCK

from mor_router.audit import AuditLog
from mor_router.clients.honeypot_scores import HoneypotScores
from mor_router.embedding import Embedder, GateInput
from mor_router.mathematics.anchor_proposal import ProposedPair, ScoredPairs, propose
from mor_router.objectives.active_gates import GateResolver, LoadedGate
from mor_router.objectives.anchor_scores import AnchorScorer
from mor_router.objectives.objective_store import COLD_START, Objective, ObjectiveStore
from mor_router.trust.audit_types import LiveAudit, pairs_of
from mor_router.trust.live_audits import MOST_PROPOSED, AuditStore
from mor_router.trust.waiting_groups import WaitingGroups, audit_name, size_of

_MOST_RESPONSES = 8
"""Different responses of a group whose pairs are compared: 28 pairs."""
_FRESH_S = 10.0
"""Seconds for which a ranking is shown again: one of many candidates takes a second to compute."""


@dataclass(frozen=True)
class _Choice:
    """Candidate pair in the order of a ranking."""

    home: WaitingGroups
    name: str
    audit: LiveAudit
    worth: ProposedPair


@dataclass(frozen=True)
class _Shown:
    """Ranking as readers get it."""

    proposal: LabelProposal
    until: float
    """Time on the event loop's clock."""


class LabelProposals:
    """Ranking of an objective's unlabelled pairs, and their way to the queue of audited groups."""

    def __init__(
        self,
        *,
        objectives: ObjectiveStore,
        gates: GateResolver,
        embedder: Embedder,
        scorer: AnchorScorer,
        honeypot_scores: HoneypotScores,
        audits: AuditStore,
        candidates: Sequence[WaitingGroups],
        log: AuditLog,
    ) -> None:
        self._objectives = objectives
        self._gates = gates
        self._embedder = embedder
        self._scorer = scorer
        self._honeypot_scores = honeypot_scores
        self._audits = audits
        self._candidates = candidates
        self._log = log
        self._ranking = asyncio.Lock()
        self._shown: dict[str, _Shown] = {}

    async def preview(self, name: str, count: int) -> LabelProposal:
        """Return the pairs worth labelling next, and leave them where they are.

        Raises:
            NotFound: no such objective.
            Conflict: there is no fit to propose by.
        """
        objective = await self._objectives.get(name)
        async with self._ranking:
            now = asyncio.get_running_loop().time()
            known = self._shown.get(name)
            if known is None or known.until < now or known.proposal.gate_version != objective.active:
                choices, candidates = await self._rank(objective)
                pairs = tuple(_described(choice, None) for choice in choices)
                known = _Shown(self._proposal(objective, candidates, 0, pairs), now + _FRESH_S)
                self._shown[name] = known
        waiting = len(await self._audits.proposed.names(name))
        return known.proposal.model_copy(update={"waiting": waiting, "pairs": known.proposal.pairs[:count]})

    async def propose(self, name: str, count: int, by: str) -> LabelProposal:
        """Move the pairs worth labelling next to the queue of audited groups.

        Raises:
            NotFound: no such objective.
            Conflict: there is no fit to propose by, or the queue is full of proposed pairs.
        """
        objective = await self._objectives.get(name)
        async with self._ranking:
            names = await self._audits.proposed.names(name)
            waiting, room = len(names), self._audits.proposed.most_bytes - sum(map(size_of, names))
            if waiting >= MOST_PROPOSED or room <= 0:
                raise Conflict(
                    f"{waiting} proposed pairs of {name!r} wait for a label, as many as the queue holds; label some: "
                    f"mor label next {name}"
                )
            choices, candidates = await self._rank(objective)
            self._shown.pop(name, None)
            pairs: list[ProposedLabel] = []
            now = SERVER_CLOCK.now()
            for choice in choices[: min(count, MOST_PROPOSED - waiting)]:
                room -= size_of(choice.name)
                if room < 0:
                    break
                whole, _ = await choice.home.get(name, choice.name)
                if whole is None:
                    continue
                audit = whole.model_copy(update={"pair": choice.audit.pair, "proposed": True})
                place = audit_name(audit, now + len(pairs) / 1000)
                await self._audits.proposed.put(name, place, audit)  # first: a crash in between loses no pair
                if await choice.home.remove(name, choice.name):
                    pairs.append(_described(choice, place))
                else:  # another replica was faster
                    await self._audits.proposed.remove(name, place)
        self._log.record("propose", name, by, pairs=len(pairs))
        return self._proposal(objective, candidates - len(pairs), waiting + len(pairs), tuple(pairs))

    def _proposal(
        self, objective: Objective, candidates: int, waiting: int, pairs: tuple[ProposedLabel, ...]
    ) -> LabelProposal:
        return LabelProposal(
            objective=objective.name,
            gate_version=objective.active,
            candidates=candidates,
            waiting=waiting,
            pairs=pairs,
        )

    async def _rank(self, objective: Objective) -> tuple[list[_Choice], int]:
        """Rank the best pair of each candidate; return the most valuable ones, and the number of candidates.

        Raises:
            Conflict: there is no fit to propose by.
        """
        if objective.active == COLD_START:
            raise Conflict(
                f"objective {objective.name!r} has no fitted gate to propose by; fit it on a few labelled pairs first: "
                f"mor objective anchors {objective.name} FILE, then mor objective fit {objective.name}"
            )
        gate = await self._gates.load(objective)
        labelled = await self._labelled(objective, gate)
        stored = [
            (home, name, audit)
            for home in self._candidates
            for name, audit in (await home.all(objective.name)).items()
            if self._fits(audit)
        ]
        waiting = [audit for audit in (await self._audits.proposed.all(objective.name)).values() if self._fits(audit)]
        pairs = [(row, pair) for row, (_, _, audit) in enumerate(stored) for pair in _pairs(audit)]
        if not pairs:
            return [], 0

        def work() -> list[ProposedPair]:
            fresh = _scored(gate, [(stored[row][2], pair) for row, pair in pairs])
            groups = np.array([row for row, _ in pairs])
            return propose(
                gate.mixture,
                gate.precision,
                labelled,
                fresh,
                count=min(MOST_COUNT, len(stored)),
                groups=groups,
                waiting=_scored(gate, [(audit, audit.pair) for audit in waiting]) if waiting else None,
            )

        choices = []
        for worth in await asyncio.to_thread(work):
            row, pair = pairs[worth.candidate]
            home, name, audit = stored[row]
            shown = pair if secrets.randbelow(2) else pair[::-1]
            choices.append(_Choice(home, name, audit.model_copy(update={"pair": shown}), worth))
        return choices, len(stored)

    def _fits(self, audit: LiveAudit) -> bool:
        """Return whether a group has an embedding of the present embedder's size."""
        return len(audit.embedding) == np.dtype(np.float32).itemsize * self._embedder.size

    async def _labelled(self, objective: Objective, gate: LoadedGate) -> ScoredPairs:
        """Return the anchors as the clients of the gate scored them: at fits, as honeypots, and in live groups.

        Raises:
            Conflict: no such score is kept.
        """
        name = objective.name
        anchors = await self._objectives.anchors(name)
        images = await self._objectives.images(name, anchors)
        inputs = await self._embedder.inputs([GateInput(anchor.messages, images) for anchor in anchors])
        answers = await self._honeypot_scores.all(name)
        audits = await self._audits.labelled(name)
        scores = np.full((len(anchors), len(gate.mixture.clients), 2), np.nan)
        for column, client in enumerate(gate.mixture.clients):
            if (model := gate.models.get(client)) is None:
                continue
            found = await self._scorer.cached(client, model, objective, anchors)
            found |= {a.digest: (a.chosen, a.rejected) for a in answers if (a.client, a.model) == (client, model)}
            found |= pairs_of(audits.items(), client, model, since=0.0)
            for row, anchor in enumerate(anchors):
                scores[row, column] = found.get(anchor.digest, np.nan)
        scored = ~np.isnan(scores).all(axis=(1, 2))
        if not scored.any():
            raise Conflict(f"no scores are kept of the anchors of {name!r}; fit again: mor objective fit {name}")
        return ScoredPairs(inputs[scored], scores[scored])


def _pairs(audit: LiveAudit) -> list[tuple[int, int]]:
    """Return the pairs of the first different responses of a group."""
    places = [audit.responses.index(text) for text in dict.fromkeys(audit.responses)]
    return list(itertools.combinations(places[:_MOST_RESPONSES], 2))


def _scored(gate: LoadedGate, pairs: Sequence[tuple[LiveAudit, tuple[int, int]]]) -> ScoredPairs:
    """Return candidate pairs as the gate's clients scored them, by the models that it was fitted on."""
    scores = np.full((len(pairs), len(gate.mixture.clients), 2), np.nan)
    columns = {client: column for column, client in enumerate(gate.mixture.clients)}
    for row, (audit, pair) in enumerate(pairs):
        for line in audit.clients:
            if line.client in columns and line.model == gate.models.get(line.client):
                scores[row, columns[line.client]] = [line.raw[place] for place in pair]
    inputs = np.stack([np.frombuffer(audit.embedding, np.float32) for audit, _ in pairs])
    return ScoredPairs(inputs.astype(float), scores)


def _described(choice: _Choice, place: str | None) -> ProposedLabel:
    audit, worth = choice.audit, choice.worth
    questions = [message.text for message in audit.messages if message.role == "user"]
    first, second = (audit.responses[place] for place in audit.pair)
    return ProposedLabel(
        audit=place,
        source="uploaded" if audit.policy is None else "live",
        domain=audit.domain,
        question=_excerpt(questions[-1] if questions else ""),
        first=_excerpt(first),
        second=_excerpt(second),
        information=worth.information,
        disagreement=worth.disagreement / float(np.log(2)),
        coverage=worth.coverage,
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= MOST_EXCERPT else f"{text[: MOST_EXCERPT - 1]}…"
