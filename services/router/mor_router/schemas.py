"""What the router's HTTP API takes and gives, where it is not a wire type of ``mor_core``."""

from __future__ import annotations

from typing import Annotated, Literal

from mor_core.clients import ClientStatus
from mor_core.objectives import RequestedObjective
from mor_core.stored_objectives import Objective
from mor_core.wire import ClientScore, Finite, Messages, ObjectiveShare, RewardItem, Sha256, Wire
from pydantic import Base64Bytes, ConfigDict, Field

from mor_router.mathematics.fusion import FusionChoice


class _Documented(Wire):
    model_config = ConfigDict(use_attribute_docstrings=True)


class RouteRequest(_Documented):
    """``POST /v1/route``: who would be asked about an input, with which weight."""

    messages: Messages
    objective: RequestedObjective | None = None
    """Name of an objective (``name@3``: with gate version 3), a text that says what is wanted, or a blend
    ``{name: share}`` with shares that sum to 1."""
    images: dict[Sha256, Base64Bytes] = Field(default_factory=dict)
    """The images that the messages name, base64 by hash."""


class Routed(_Documented):
    client: str
    asked: bool
    weight: Finite
    """Share of the gate, 0 without a say."""
    slope: Finite | None
    """Logits per standardised unit for this input."""
    influence: Finite | None
    """weight x slope as a share of all clients'."""
    reason: str | None
    """Why it has no say."""


class RouteResponse(_Documented):
    objectives: tuple[ObjectiveShare, ...]
    """What would be rewarded, largest share first."""
    gate_version: int
    """Of the first of ``objectives``; 0: cold start."""
    note: str | None
    """Why there is no fitted gate, or why these objectives were taken."""
    entropy: Finite
    """Of the weights, nats."""
    beyond_anchors: Finite
    """0 where the anchors are about inputs like this one; towards 1 where none is, and every client counts the same."""
    clients: tuple[Routed, ...]


class RewardRequest(_Documented):
    """``POST /v1/reward``: groups to score; the shape of a ``ScoreRequest`` without the contract's name.

    The objective of an item is the name of one (``name@3``: with gate version 3), a text that says what is wanted, or a
    blend ``{name: share}``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "item_id": "q1",
                            "messages": [{"role": "user", "content": "How many bars are there?"}],
                            "responses": ["Four.", "It is a chart."],
                            "objective": "helpful",
                        }
                    ]
                }
            ]
        }
    )

    items: Annotated[tuple[RewardItem, ...], Field(min_length=1, max_length=256)]
    images: dict[Sha256, Base64Bytes] = Field(default_factory=dict)
    """The images that the items name, base64 by hash."""
    fusion: FusionChoice | None = None
    """Another fusion than the router's own."""
    deadline_s: float | None = Field(None, gt=0, le=600)
    """Seconds that clients have; the router's own limit without."""


class ItemReward(_Documented):
    item_id: str
    status: Literal["ok", "error"]
    rewards: tuple[Finite, ...] | None
    """One for each response, in logits; null unless ``status`` is ``ok``, and for a client's own token."""
    detail: str | None
    """Why there is no reward."""
    objectives: tuple[ObjectiveShare, ...]
    """What was rewarded, largest share first."""
    gate_version: int
    """Of the first of ``objectives``; 0: cold start."""
    fusion: str
    entropy: Finite
    """Of the mixture weights, nats."""
    note: str | None
    """Why there is no fitted gate, or why these objectives were taken."""
    clients: tuple[ClientScore, ...]
    """What each client said and what it counted for; a client's own token shows its own line only."""


class RewardResponse(_Documented):
    items: tuple[ItemReward, ...]


class Status(_Documented):
    version: str
    embedder: str
    """How inputs are embedded for the gate."""
    embedder_note: str | None
    """What the default embedder cannot do."""
    fusion: FusionChoice
    quorum: float
    runs: tuple[str, ...]
    """Runs whose groups this process is scoring."""
    clients: tuple[ClientStatus, ...]
    objectives: tuple[Objective, ...]
