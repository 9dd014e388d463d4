"""The reward contract ``mor.reward/1``: what a client is asked, answers and claims."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Base64Bytes, Field, model_validator

from mor_core.objectives import AskedObjective
from mor_core.wire.base import Finite, Sha256, Wire
from mor_core.wire.messages import Messages

Contract = Literal["mor.reward/1"]
CONTRACT: Contract = "mor.reward/1"


class RewardItem(Wire):
    """One prompt and the group of responses to reward."""

    item_id: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Messages
    responses: Annotated[tuple[str, ...], Field(min_length=1)]
    objective: AskedObjective | None = None


class ScoreItem(RewardItem):
    """The same as a client is asked to score it, with the objective in words."""

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
    name: str
    version: str


class ItemScores(Wire):
    """Scores of one item in calibrated logits, one for each response; ``None`` unless ``status`` is ``ok``."""

    item_id: str
    status: Literal["ok", "unscorable", "error"]
    scores: tuple[Finite, ...] | None = None
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
    """How well a reward model's logits predict held-out preferences of its own client."""

    temperature: Finite
    """Divisor of the raw score differences, fitted on held-out pairs."""
    ece: Finite
    """Expected calibration error of the calibrated pair probabilities, 0 to 1."""
    pair_accuracy: Finite
    """Share of held-out pairs ranked as labelled, 0 to 1."""
    pair_accuracy_interval: tuple[Finite, Finite]
    """95 % Wilson interval of ``pair_accuracy``."""
    pairs: int
    """Number of held-out pairs."""


class Privacy(Wire):
    epsilon: Finite
    delta: Finite


_AtLeastOne = Annotated[int, Field(ge=1)]


class Limits(Wire):
    """What a client takes. Its service refuses what is over a limit; the router keeps to them and does not try."""

    items: _AtLeastOne
    """Most items per request. The router cuts its batches to it; the service answers more with 413."""
    responses: _AtLeastOne
    """Most responses per item, however many items a request has. The router cannot cut a group, so it does not ask the
    client about one that has more and counts it as failed there; the service answers 413."""
    request_bytes: _AtLeastOne
    """Most bytes per request body, images in base64 included. The router cuts its batches so that they fit with all
    their images; an item that alone may have more is tried. The service answers more with 413."""
    concurrency: _AtLeastOne
    """Most score requests at a time. Each router makes no more; the service answers further ones with 429."""


class Card(Wire):
    """What a client claims about its reward model. A claim, not evidence: the router weighs by anchors."""

    contract: Contract = CONTRACT
    model: ModelRef
    domains: str
    """Free text: what the model knows about."""
    calibration: Calibration | None
    privacy: Privacy | None
    limits: Limits
