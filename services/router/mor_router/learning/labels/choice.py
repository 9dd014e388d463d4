"""The definitions of labellers, as an objective's API takes them and as they are stored."""

from __future__ import annotations

from typing import Annotated, Literal

from mor_core.clients import Source
from mor_core.wire import Documented
from pydantic import Field, SecretStr, StringConstraints

Url = Annotated[str, StringConstraints(max_length=2000)]
Secret = Annotated[SecretStr, Field(min_length=16, max_length=4096)]


class CheckerEndpoint(Documented):
    """Scores responses by what is known to be true, over HTTP."""

    kind: Literal["checker"] = "checker"
    url: Url
    """Base address of a service that keeps the reward contract (``mor.reward/1``), such as
    ``mor-reward serve --function``: the response with the higher score is the better one."""
    token: Secret
    """The bearer token that it wants."""


class CheckerFunction(Documented):
    """The same as a Python function that is installed beside the router."""

    kind: Literal["function"] = "function"
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """Name of an entry point in the group ``mor_router.checkers``: ``f(messages, responses, images) -> scores``, with
    messages in the OpenAI chat shape, images as bytes by SHA-256, and one score for each response or ``None`` where it
    cannot tell."""


class Judge(Documented):
    """A model that is shown two responses and says which one serves the objective better."""

    kind: Literal["judge"] = "judge"
    url: Url
    """Base address of an OpenAI-compatible service, without ``/v1/chat/completions``."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    token: Secret
    """Its API key."""


LabellerChoice = Annotated[CheckerEndpoint | CheckerFunction | Judge, Field(discriminator="kind")]


class StoredLabeller(Documented):
    """A labeller as it is kept and shown; the secret stays with the router, encrypted."""

    kind: Literal["checker", "function", "judge"]
    name: str
    """The address, or the name of the function."""
    model: str | None = None
    source: Source | None = None
    """How its address was let in."""
