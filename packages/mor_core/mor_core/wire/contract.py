"""The reward contract ``mor.reward/1``: requests to a client, its scores and its card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Base64Bytes, Field, StringConstraints, model_validator

from mor_core.objectives import RequestedObjective
from mor_core.wire.asks import Asks, PromptOrigin
from mor_core.wire.base import Finite, Sha256, Wire
from mor_core.wire.messages import Messages
from mor_core.wire.privacy import AnswerLimits, Distillation, Privacy, PrivacyAudit

Contract = Literal["mor.reward/1"]
CONTRACT: Contract = "mor.reward/1"

LARGEST_SCORE = 1e9
"""Largest magnitude of a score, logits: far above any log-odds, far below numbers whose squares and sums overflow."""
Score = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST_SCORE, le=LARGEST_SCORE)]
ModelName = Annotated[str, StringConstraints(max_length=200)]
"""Name or version of a model; both stand in every record of a group, in logs and in metrics."""


class _Group(Wire):
    item_id: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Messages
    responses: Annotated[tuple[str, ...], Field(min_length=1)]


class RewardItem(_Group):
    """One prompt and the group of responses to reward."""

    objective: RequestedObjective | None = None
    domain: str | None = None
    """Domain label of the prompt, for the clients' ``asks`` rules; clients do not get it."""
    public: bool = False
    """True where pictures and texts of the prompt are public, likewise."""

    @property
    def origin(self) -> PromptOrigin:
        return PromptOrigin(self.domain, self.public)


class ScoreItem(_Group):
    """Item in a request to a client, with the objective in words."""

    objective: str | None = None


class ScoreRequest(Wire):
    contract: Contract = CONTRACT
    items: Annotated[tuple[ScoreItem, ...], Field(min_length=1)]
    images: dict[Sha256, Base64Bytes] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _item_ids_are_distinct(self) -> ScoreRequest:
        ids = [item.item_id for item in self.items]
        if len(set(ids)) != len(ids):
            raise ValueError("item_id must be distinct within a request")
        return self


class ModelRef(Wire):
    name: ModelName
    version: ModelName


class ItemScores(Wire):
    """Scores of one item in calibrated logits, one for each response; ``None`` unless ``status`` is ``ok``."""

    item_id: str
    status: Literal["ok", "unscorable", "error"]
    scores: tuple[Score, ...] | None = None
    detail: str | None = None

    @model_validator(mode="after")
    def _scores_belong_to_ok(self) -> ItemScores:
        if (self.status == "ok") != (self.scores is not None):
            raise ValueError(f"item {self.item_id!r}: 'scores' go with status 'ok' and with no other")
        return self


class ScoreResponse(Wire):
    model: ModelRef
    items: tuple[ItemScores, ...]


class Calibration(Wire):
    """Accuracy of a reward model's logits on held-out preferences of its own client."""

    temperature: Finite
    """Divisor of raw score differences, fitted on held-out pairs."""
    ece: Finite
    """Expected calibration error of the calibrated pair probabilities, 0 to 1."""
    pair_accuracy: Finite
    """Share of held-out pairs ranked as labelled, 0 to 1."""
    pair_accuracy_interval: tuple[Finite, Finite]
    """95 % Wilson interval of ``pair_accuracy``."""
    pairs: int
    """Number of held-out pairs."""


_AtLeastOne = Annotated[int, Field(ge=1)]


class Limits(Wire):
    """Limits of a client's service. The service refuses requests over a limit; the router never sends one knowingly."""

    items: _AtLeastOne
    """Most items per request. The router divides its batches accordingly; the service answers more with 413."""
    responses: _AtLeastOne
    """Most responses per item, for any number of items. A group cannot be divided, so the router does not send a larger
    one and counts it as failed there; the service answers 413."""
    request_bytes: _AtLeastOne
    """Most bytes per request body, images in base64 included. The router divides its batches so that they fit with all
    their images; it sends an item that alone may be larger. The service answers more with 413."""
    image_bytes: _AtLeastOne | None = None
    """Most encoded bytes of one image; null: those of every image that MoR reads. An item with a larger image is
    ``unscorable``: the router does not send it, the service says so, and the other items of the request are scored."""
    concurrency: _AtLeastOne
    """Most score requests at a time. A router sends no more; the service answers further ones with 429."""


class Card(Wire):
    """Claims of a client about its reward model. The router weighs clients by anchors, not by their claims."""

    contract: Contract = CONTRACT
    model: ModelRef
    domains: Annotated[str, StringConstraints(max_length=10_000)]
    """Subjects that the model knows about, free text."""
    calibration: Calibration | None
    privacy: Privacy | None
    """Differential privacy of the training, or null."""
    audit: PrivacyAudit | None = None
    """Result of attacks on the model, or null where its owner has not audited it."""
    answers: AnswerLimits | None = None
    """Limits of what answers reveal, or null where scores are returned as they are."""
    distillation: Distillation | None = None
    """Permission to train a model of one's own on these scores; null where the client does not say."""
    asks: Asks | None = None
    """Prompts that the client wishes to be sent; a router sends no others. Null: whatever the router's operator
    allows."""
    limits: Limits
