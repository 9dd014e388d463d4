"""Groups that are labelled: those that were drawn as audits or proposed, without a label and with one."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from jaxtyping import Float
from mor_core.wire import Finite, Messages, ModelRef, Sha256, Wire, image_hashes
from numpy import ndarray
from pydantic import ConfigDict, Field, NonNegativeInt, model_validator

from mor_router.objectives.objective_store import digest_of

LABELLER = "labeller"
"""``by`` of a label that the objective's labeller gave. A person's token may have the same name."""
_PAIR = 2
"""Responses of an uploaded pair."""


class AuditScores(Wire):
    """One client's answer for an audited group."""

    client: str
    model: ModelRef
    raw: tuple[Finite, ...]
    standardised: tuple[Finite, ...] | None
    """``None`` for a shadow, which has no standardiser of the gate."""
    weight: Finite
    """Gate weight over all clients of the gate, whichever of them answered; 0 for a shadow."""
    slope: Finite
    """Logits per standardised unit at this input; 0 for a shadow."""


class ChosenGroup(Wire):
    """Group that was chosen for a label, before it has one and after."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    at: Finite
    """Unix time at which the clients had answered, seconds."""
    gate: int
    """Gate version of the reward; 0: cold start."""
    policy: str | None
    """Run and weights version that sampled the responses; ``None``: an uploaded pair, which had no reward."""
    probability: float = Field(gt=0, le=1)
    """Probability with which the group was chosen, or kept as a candidate."""
    proposed: bool = False
    """True for a pair that was chosen by its clients' scores, for what its label tells a fit: it is no evidence about a
    client, because an honest one may often be wrong in such pairs."""
    support: Finite
    """1 where the anchors cover the input, towards 0 far from all of them: how far the fit vouches for the weights."""
    rewards: tuple[Finite, ...]
    """Rewards of the responses; empty for an uploaded pair."""
    clients: tuple[AuditScores, ...]
    embedding: bytes = Field(repr=False)
    """Embedding of the input, float32."""
    pair: tuple[NonNegativeInt, NonNegativeInt]
    situations: tuple[str, ...] = ()
    """Features of the group that a client could see, see ``mathematics.suspicion``."""
    suspects: tuple[str, ...] = ()
    """Clients that were suspected in such groups when it was chosen."""

    @property
    def size(self) -> int:
        """Number of responses."""
        return _PAIR if self.policy is None else len(self.rewards)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        responses = self.size
        raw = {len(scores) for line in self.clients for scores in (line.raw, line.standardised) if scores is not None}
        if raw - {responses} or max(self.pair) >= responses:
            raise ValueError(f"scores of {sorted(raw)} and pair {self.pair} do not fit {responses} responses")
        if not np.isfinite(np.frombuffer(self.embedding, np.float32)).all():
            raise ValueError("the embedding has a number that is not finite")
        return self


class LiveAudit(ChosenGroup):
    """An audited group that waits for a label."""

    messages: Messages
    responses: tuple[str, ...]
    images: dict[Sha256, bytes] = Field(repr=False)
    pair: tuple[NonNegativeInt, NonNegativeInt]
    """Two different responses drawn at random, in random order: what a person compares."""
    domain: str | None = None
    """Domain label of the prompt."""
    public: bool = False
    """The prompt's source is marked as public."""

    @model_validator(mode="after")
    def _check_responses(self) -> Self:
        if len(self.responses) != self.size or not {*image_hashes(self.messages)} <= self.images.keys():
            raise ValueError(f"{len(self.responses)} responses and {len(self.images)} images do not fit the group")
        return self


class LabelledAudit(ChosenGroup):
    """An audited group with its label."""

    pair: tuple[NonNegativeInt, NonNegativeInt]
    """Indices of the better and of the worse response: the clearest of ``pairs``."""
    pairs: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    """All labelled pairs; audits of earlier versions have ``pair`` alone."""
    labelled_at: Finite
    by: str
    """``labeller``, or name of the person's token."""
    by_person: bool | None = None
    """True if a person gave it; ``None`` in audits of earlier versions, where ``by`` alone tells."""

    @property
    def person(self) -> str | None:
        """Name of the token of the person who labelled it; ``None``: the objective's labeller did."""
        by_person = self.by != LABELLER if self.by_person is None else self.by_person
        return self.by if by_person else None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if any(max(pair) >= self.size for pair in self.pairs):
            raise ValueError(f"labelled pairs {self.pairs} do not fit {self.size} responses")
        return self


def draw_pair(responses: Sequence[str]) -> tuple[int, int] | None:
    """Draw two different responses in random order; ``None`` where all are alike."""
    first = secrets.randbelow(len(responses))
    others = [place for place, text in enumerate(responses) if text != responses[first]]
    if not others:
        return None
    pair = first, secrets.choice(others)
    return pair if secrets.randbelow(2) else (pair[1], pair[0])


def drawn(audits: Mapping[str, LabelledAudit]) -> dict[str, LabelledAudit]:
    """Return the audits that were drawn, which are evidence about the clients, without the proposed pairs."""
    return {digest: audit for digest, audit in audits.items() if not audit.proposed}


def embeddings(audits: Mapping[str, LabelledAudit]) -> dict[str, Float[ndarray, " features"]]:
    """Return the embeddings of the audits' inputs, by digest."""
    return {digest: np.frombuffer(audit.embedding, np.float32) for digest, audit in audits.items()}


def pairs_of(
    audits: Iterable[tuple[str, LabelledAudit]], client: str, model: ModelRef | None, since: float
) -> dict[str, tuple[float, float]]:
    """Return a client's raw scores of (better, worse) by digest, from audits of its ``model`` after ``since``."""
    return {
        digest: (line.raw[audit.pair[0]], line.raw[audit.pair[1]])
        for digest, audit in audits
        if audit.at > since
        for line in audit.clients
        if line.client == client and line.model == model
    }


def pair_digest(audit: LiveAudit, pair: tuple[int, int]) -> str:
    """Return the digest under which a labelled pair (better, worse) of a group is stored."""
    return digest_of(audit.messages, *(audit.responses[place] for place in pair))
