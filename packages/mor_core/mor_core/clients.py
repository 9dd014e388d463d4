"""A router's clients, as its API takes and gives them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SecretStr, StringConstraints, field_serializer

from mor_core.wire import Card, Documented, ModelRef, Sha256

Source = Literal["api", "kubernetes", "loopback"]
State = Literal["probation", "active", "paused", "quarantined"]
ClientName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
Secret = Annotated[SecretStr, Field(min_length=16, max_length=4096)]


class Client(Documented):
    """A client as the registry tells of it."""

    name: ClientName
    """Lower-case letters, digits, ``.``, ``_`` and ``-``; at most 63."""
    url: str
    """Base address of its reward service."""
    domains: str
    """Free text: what the client says that its model knows about. A claim."""
    source: Source
    """How the endpoint came in, which decides the addresses that it may have."""
    state: State
    """``probation``: asked in shadow, without weight. ``active``: asked and weighed. ``paused``: not
    asked. ``quarantined``: asked about anchors only, at each fit."""
    reason: str | None = None
    """Why it is paused, quarantined or back on probation."""
    enrolled_at: float
    """Unix time, seconds."""
    probed_at: float | None = None
    """Unix time of the last successful probe, seconds."""
    model: ModelRef | None = None
    """The model that it served when last probed."""
    card: Card | None = None
    """Its card when last probed. A claim, not evidence."""


class _WithSecret(Documented):
    @field_serializer("token", when_used="json", check_fields=False)
    def _reveal(self, token: SecretStr | None) -> str | None:
        """The secret goes to the router in the clear; ``repr`` and logs hide it."""
        return None if token is None else token.get_secret_value()


class Enrolment(_WithSecret):
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
    page_token_sha256: Sha256 | None = None
    """SHA-256 of the token with which the client will read its own page, so that the token itself never travels; the
    router makes one and tells it where this is null."""
    state: Literal["probation", "active"] = "probation"
    """``active`` gives the client weight at once where no gate is fitted; otherwise a fit on anchors does."""


class Enrolled(Documented):
    client: Client
    token: str | None
    """The token with which the client reads its own page on the router. Shown once; only its hash is kept. Null where
    the client brought its own."""
    trial: str
    """What the client made of a tiny trial group."""


class Change(Documented):
    """``PATCH /v1/clients/{name}``: only what is given changes."""

    state: Literal["probation", "active", "paused"] | None = None
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None
    """Why, for people; kept with ``paused``."""
    url: Annotated[str, StringConstraints(max_length=2000)] | None = None
    """New base address; tried before it is taken."""
    domains: Annotated[str, StringConstraints(max_length=2000)] | None = None


class Rotation(_WithSecret):
    """``POST /v1/clients/{name}/rotate``."""

    token: Secret | None = None
    """New token to send to the reward service; tried before it is taken. Without, the one in use stays."""
    inbound: bool = False
    """Whether the client gets a new token for its own page; the old one ends at once."""


class Rotated(Documented):
    client: Client
    token: str | None
    """The new token of the client's own page, shown once."""


class ClientStatus(Documented):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "client": {
                        "name": "st-mary",
                        "url": "https://rewards.st-mary.example",
                        "domains": "brain MRI and head CT: plane, side, region",
                        "source": "api",
                        "state": "quarantined",
                        "reason": "no better than chance for any kind of input",
                        "enrolled_at": 1767220000.0,
                        "probed_at": 1767225600.0,
                        "model": {"name": "st-mary-vlm", "version": "3"},
                        "card": None,
                    },
                    "circuit": "closed",
                    "last_error": None,
                }
            ]
        }
    )

    client: Client
    circuit: Literal["closed", "open", "half_open"]
    """Whether it is being asked: ``open`` after too many failures in a row."""
    last_error: str | None
    """Why the last call or probe failed; null when it did not."""


class ObjectiveInfluence(Documented):
    """What a client's scores did to the latest rewards of one objective."""

    objective: str
    """Name; of a blend all names, largest share first, joined by ``+``; ``(none)`` where none was named or known."""
    groups: int
    """Groups that got a reward."""
    counted: int
    """Those in which the client's scores counted."""
    mean_weight: float
    """Over all groups; 0 where it did not count."""
    variance_share: float | None
    """Its share of the within-group variance of the mixture; null where no group has any."""
    left_out: dict[str, int]
    """Status of its answer -> groups in which it did not count."""


class Influence(Documented):
    client: str
    since: float | None
    """Unix time of the oldest group that is counted here, seconds; at most 2,000 groups are."""
    objectives: tuple[ObjectiveInfluence, ...]
