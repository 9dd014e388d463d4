"""Requests and responses of the router's HTTP API that are not wire types of ``mor_core``."""

from __future__ import annotations

from typing import Annotated, Literal

from mor_core.clients import ClientStatus
from mor_core.objectives import RequestedObjective
from mor_core.stored_objectives import Objective
from mor_core.visibility import Scope, hidden_from
from mor_core.wire import ClientScore, Documented, Finite, Messages, ObjectiveShare, RewardItem, Sha256
from pydantic import Base64Bytes, ConfigDict, Field

from mor_router.mathematics.fusion import FusionChoice


class RouteRequest(Documented):
    """``POST /v1/route``: an input, to see which clients would score it and with which weight."""

    messages: Messages
    objective: RequestedObjective | None = None
    """Name of an objective (``name@3``: with gate version 3), a text in words, or a blend ``{name: share}`` with shares
    that sum to 1."""
    domain: str | None = None
    """Domain label of the prompt, for the clients' ``asks`` rules."""
    public: bool = False
    """True where pictures and texts of the prompt are public, likewise."""
    images: dict[Sha256, Base64Bytes] = Field(default_factory=dict)
    """Images that the messages name, base64 by hash; those of the caller's earlier requests may be left out."""


class RoutedClient(Documented):
    """One client's part in the reward of an input."""

    client: str
    asked: bool
    """True if the client is called for this input."""
    weight: Finite
    """Share of the gate; 0 for a client that does not count."""
    slope: Finite | None
    """Slope of the calibration for this input, in logits per standardised unit."""
    influence: Finite | None
    """weight x slope as a share of the sum over all clients."""
    reason: str | None
    """Reason why the client does not count; null where it does."""


class RouteResponse(Documented):
    """Gate weights for an input, explained."""

    objectives: tuple[ObjectiveShare, ...]
    """Objectives of the reward, largest share first."""
    gate_version: int
    """Gate version of the first of ``objectives``; 0: cold start."""
    note: str | None
    """Reason why there is no fitted gate, or why these objectives were chosen."""
    entropy: Finite
    """Entropy of the weights, nats."""
    ood_score: Finite
    """Distance of the input from the anchors' distribution: 0 where they have inputs like it; towards 1 where none is
    like it, and every client counts the same."""
    clients: tuple[RoutedClient, ...]


class RewardRequest(Documented):
    """``POST /v1/reward``: groups to score; the shape of a ``ScoreRequest`` without the contract's name.

    An item's objective is a name (``name@3``: with gate version 3), a text in words, or a blend ``{name: share}``."""

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
    """Images that the items name, base64 by hash; those of the caller's earlier requests may be left out. 409 with a
    list ``missing_images`` names those that the router lacks."""
    fusion: FusionChoice | None = None
    """Fusion for this request; null: the router's own."""
    deadline_s: float | None = Field(None, gt=0, le=600)
    """Seconds that clients have to score; null: the router's own limit. A client that misses a shorter limit than the
    router's has not failed, and its circuit stays as it is."""


class ItemReward(Documented):
    """Reward of one item, or why it has none."""

    item_id: str
    status: Literal["ok", "error"]
    rewards: tuple[Finite, ...] | None
    """One reward for each response, in logits; null unless ``status`` is ``ok``."""
    detail: str | None
    """Reason why there is no reward. It names no client for a token of scope ``scorer``."""
    clients: Annotated[tuple[ClientScore, ...] | None, hidden_from(Scope.scorer)]
    """Each client's scores and weight; without weight, the reason."""
    objectives: tuple[ObjectiveShare, ...]
    """Objectives of the reward, largest share first; empty where the item names none, or its text is unlike every
    known objective."""
    gate_version: int
    """Gate version of the first of ``objectives``; 0: none was fitted."""
    fusion: str
    entropy: Annotated[Finite | None, hidden_from(Scope.scorer)]
    """Entropy of the mixture weights, nats; 0 without a reward."""
    note: str | None
    """Reason why there is no fitted gate, or why these objectives were chosen."""


class RewardResponse(Documented):
    items: tuple[ItemReward, ...]


class RouterStatus(Documented):
    """Configuration and state of a router."""

    version: str
    embedder: str
    """Name of the embedder of the gate's inputs."""
    embedder_note: str | None
    """Limits of the default embedder; null where models are set."""
    fusion: FusionChoice
    quorum: float
    runs: tuple[str, ...]
    """Runs whose groups this process scores."""
    active_clients: int
    """Clients with weight; without one, no group gets a reward."""
    state_problem: str | None
    """Reason why the router's state is lost, damaged or not saved, if it is."""
    clients: tuple[ClientStatus, ...]
    objectives: tuple[Objective, ...]
