"""What the router's HTTP API takes and gives, where it is not a wire type of ``mor_core``."""

from __future__ import annotations

from typing import Annotated, Literal

from mor_core.objectives import AskedObjective, ObjectiveName
from mor_core.wire import ClientScore, Finite, Messages, ObjectiveShare, RewardItem, Sha256, Wire
from pydantic import Base64Bytes, ConfigDict, Field, SecretStr, StringConstraints

from mor_router.fusion import FusionChoice
from mor_router.objectives import Objective
from mor_router.registry import Client, ClientName

ObjectiveText = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Paraphrases = Annotated[tuple[ObjectiveText, ...], Field(max_length=32)]
Secret = Annotated[SecretStr, Field(min_length=16, max_length=4096)]


class _Documented(Wire):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Enrolment(_Documented):
    """``POST /v1/clients``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "st-mary",
                    "url": "https://rewards.st-mary.example",
                    "domains": "brain MRI and head CT: plane, side, region",
                    "token": "the token that the reward service was started with",
                }
            ]
        }
    )

    name: ClientName
    """Lower-case letters, digits, ``.``, ``_`` and ``-``; at most 63."""
    url: Annotated[str, StringConstraints(max_length=2000)]
    """Base address of the reward service."""
    domains: Annotated[str, StringConstraints(max_length=2000)] = ""
    """Free text: what the model knows about. From the client's card where it is empty."""
    token: Secret
    """The bearer token that the router must send to the reward service."""
    state: Literal["probation", "active"] = "probation"
    """``active`` gives the client weight at once where no gate is fitted; otherwise a fit on anchors does."""


class Enrolled(_Documented):
    client: Client
    token: str
    """The token with which the client reads its own page on the router. Shown once; only its hash is kept."""
    trial: str
    """What the client made of a tiny trial group."""


class Change(_Documented):
    """``PATCH /v1/clients/{name}``: only what is given changes."""

    state: Literal["probation", "active", "paused"] | None = None
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None
    """Why, for people; kept with ``paused``."""
    url: Annotated[str, StringConstraints(max_length=2000)] | None = None
    """New base address; tried before it is taken."""
    domains: Annotated[str, StringConstraints(max_length=2000)] | None = None


class Rotation(_Documented):
    """``POST /v1/clients/{name}/rotate``."""

    token: Secret | None = None
    """New token to send to the reward service; tried before it is taken. Without, the one in use stays."""
    inbound: bool = False
    """Whether the client gets a new token for its own page; the old one ends at once."""


class Rotated(_Documented):
    client: Client
    token: str | None
    """The new token of the client's own page, shown once."""


class ClientStatus(_Documented):
    client: Client
    circuit: Literal["closed", "open", "half_open"]
    """Whether it is being asked: ``open`` after too many failures in a row."""
    last_error: str | None
    """Why the last call or probe failed; null when it did not."""


class NewObjective(_Documented):
    """``POST /v1/objectives``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "helpful", "text": "Answer correctly, with what was asked for."}]}
    )

    name: ObjectiveName
    text: ObjectiveText
    """What a run with this objective aligns to. Clients see it."""
    paraphrases: Paraphrases = ()
    """The same in other words; a text that a run asks for is compared with each of them too."""


class ObjectiveChange(_Documented):
    """``PATCH /v1/objectives/{name}``."""

    paraphrases: Paraphrases
    """Replace the ones there are."""


class FitRequest(_Documented):
    activate: bool = True
    """Whether the new gate version is put in force."""
    newcomers_only: bool = False
    """Whether the clients of the version in force stay as they are and only those are fitted that are not in it."""


class RefitRequest(_Documented):
    activate: bool = True
    """Whether the new gate version is put in force."""


class RouteRequest(_Documented):
    """``POST /v1/route``: who would be asked about an input, with which weight."""

    messages: Messages
    objective: AskedObjective | None = None
    """Name of an objective, a text that says what is wanted, or a blend ``{name: share}`` with shares that sum to 1."""
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
    clients: tuple[Routed, ...]


class RewardRequest(_Documented):
    """``POST /v1/reward``: groups to score; the shape of a ``ScoreRequest`` without the contract's name.

    The objective of an item is the name of one, a text that says what is wanted, or a blend ``{name: share}``."""

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
    """One for each response, in logits; null unless ``status`` is ``ok``."""
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
