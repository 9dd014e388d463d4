"""Types of the router's API about clients."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, StringConstraints, field_serializer

from mor_core.patterns import matching, plain_name
from mor_core.visibility import Scope, hidden_from
from mor_core.wire import NOT_SENT, Asks, Card, Documented, ModelRef, PromptOrigin, Sha256

Source = Literal["api", "kubernetes", "loopback"]
_SECRET = re.compile("[!-~]+")


def _check_secret(secret: SecretStr) -> SecretStr:
    if not _SECRET.fullmatch(secret.get_secret_value()):
        raise ValueError("a token is made of visible ASCII characters without spaces; copy it again")
    return secret


State = Literal["probation", "active", "paused", "quarantined"]
ClientName = Annotated[str, matching(r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$", plain_name(63, "'.', '_', '-'"))]
Secret = Annotated[SecretStr, Field(min_length=16, max_length=4096), AfterValidator(_check_secret)]
"""Bearer token of another service, as an ``Authorization`` header can carry it."""


class Client(Documented):
    """Registered client."""

    name: ClientName
    """Lower-case letters, digits, ``.``, ``_`` and ``-``; at most 63."""
    url: Annotated[str | None, hidden_from(Scope.viewer)]
    """Base address of its reward service; null for a viewer."""
    domains: str
    """Topics that the model can judge, as the client's free text. A claim."""
    asks: Asks = Asks()
    """Prompts that the platform's operator lets it be sent; the client's own wish is on its card, and both hold."""
    source: Source
    """Origin of the registration, which determines the permitted addresses."""
    state: State
    """``probation``: it scores, without weight. ``active``: it scores, with weight. ``paused``: it gets no requests.
    ``quarantined``: it scores anchors only, at each fit."""
    reason: str | None = None
    """Reason why it is paused, quarantined or back on probation."""
    enrolled_at: float
    """Unix time, seconds."""
    probed_at: float | None = None
    """Unix time of the last successful probe, seconds."""
    model: ModelRef | None = None
    """Model that it served at the last probe."""
    card: Card | None = None
    """Its card at the last probe. A claim, not evidence."""

    def refusal(self, origin: PromptOrigin) -> str | None:
        """Return why a prompt of this origin may not be sent to the client; ``None`` where it may."""
        if (refusal := self.asks.refusal(origin)) is not None:
            return f"{NOT_SENT}by its rule: {refusal}"
        wish = self.card.asks if self.card is not None else None
        if wish is not None and (refusal := wish.refusal(origin)) is not None:
            return f"{NOT_SENT}by the wish on its card: {refusal}"
        return None


class _WithSecret(Documented):
    @field_serializer("token", when_used="json", check_fields=False)
    def _reveal(self, token: SecretStr | None) -> str | None:
        """Serialise the secret in the clear for the router; ``repr`` and logs hide it."""
        return None if token is None else token.get_secret_value()


class Enrolment(_WithSecret):
    """Body of ``POST /v1/clients``."""

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
    """Topics that the model can judge, as free text; if empty, taken from the client's card."""
    token: Secret
    """Bearer token that the router must send to the reward service."""
    page_token_sha256: Sha256 | None = None
    """SHA-256 of the token with which the client will read its own page; the token itself is not sent. If null, the
    router creates a token and returns it."""
    asks: Asks = Asks()
    """Prompts that it may be sent, from the first one on."""
    state: Literal["probation", "active"] = "probation"
    """``active`` gives the client weight at once if no gate is fitted; otherwise a fit on anchors gives it weight."""


class Enrolled(Documented):
    """Response of ``POST /v1/clients``."""

    client: Client
    token: str | None = Field(repr=False)
    """Token with which the client reads its own page on the router. Shown once; only its hash is stored. Null if the
    client supplied its own."""
    trial: str
    """Result of a small trial group."""


class PageToken(Documented):
    """Holder of a page token."""

    client: str
    sha256: Sha256


class Change(Documented):
    """Body of ``PATCH /v1/clients/{name}``; omitted fields stay unchanged."""

    state: Literal["probation", "active", "paused", "resumed"] | None = None
    """``resumed`` gives a paused client the state that it had before the pause."""
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None
    """Reason, for people; stored with ``paused``."""
    url: Annotated[str, StringConstraints(max_length=2000)] | None = None
    """New base address; tested before use."""
    domains: Annotated[str, StringConstraints(max_length=2000)] | None = None
    asks: Asks | None = None
    """Prompts that it may be sent from now on, instead of the former rule; ``{}`` allows all."""


class Rotation(_WithSecret):
    """Body of ``POST /v1/clients/{name}/rotate``."""

    token: Secret | None = None
    """New token to send to the reward service; tested before use. If null, the current token stays in use."""
    inbound: bool = False
    """True creates a new token for the client's own page; the old one becomes invalid at once."""


class Rotated(Documented):
    """Response of ``POST /v1/clients/{name}/rotate``."""

    client: Client
    token: str | None = Field(repr=False)
    """New token of the client's own page, shown once."""


class ClientStatus(Documented):
    """Registration and health of a client."""

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
    """State of the circuit breaker: ``open``, without requests, after too many failures in a row."""
    last_error: Annotated[str | None, hidden_from(Scope.viewer)]
    """Reason why the last call or probe failed; null if it succeeded, and for a viewer."""


class ObjectiveInfluence(Documented):
    """Effect of a client's scores on the latest rewards of one objective."""

    objective: str
    """Name; for a blend all names, largest share first, joined by ``+``; ``(none)`` if none was named or known."""
    groups: int
    """Number of rewarded groups."""
    counted: int
    """Number of them in which the client's scores counted."""
    mean_weight: float
    """Mean weight over all groups, 0 for groups in which it did not count."""
    variance_share: float | None
    """Its share of the within-group variance of the mixture; null if no group has variance."""
    left_out: dict[str, int]
    """Status of its response -> number of groups in which it did not count."""


class Influence(Documented):
    """Effect of a client's scores on recent rewards, by objective."""

    client: str
    since: float | None
    """Unix time, in seconds, of the oldest counted group; at most 2,000 groups are counted."""
    objectives: tuple[ObjectiveInfluence, ...]
