"""Definitions of labellers: as the objectives API accepts them and as they are stored."""

from __future__ import annotations

from typing import Annotated, Literal

from mor_core.clients import Secret, Source
from mor_core.wire import Documented
from pydantic import Field, StringConstraints

Url = Annotated[str, StringConstraints(max_length=2000)]


class CheckerEndpoint(Documented):
    """A service that scores responses by known facts, over HTTP."""

    kind: Literal["checker"] = "checker"
    url: Url
    """Base address of a service that implements the reward contract (``mor.reward/1``), such as
    ``mor-reward serve --function``: the response with the higher score is the better one."""
    token: Secret
    """Bearer token of the service."""


class CheckerFunction(Documented):
    """A Python function, installed with the router, that scores responses by known facts."""

    kind: Literal["function"] = "function"
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """Name of an entry point in the group ``mor_router.checkers``: ``f(messages, responses, images) -> scores``, with
    messages in the OpenAI chat shape, images as bytes by SHA-256, and one score for each response, or ``None`` for a
    response that it cannot score."""


class Judge(Documented):
    """A model that compares two responses and chooses the one that serves the objective better."""

    kind: Literal["judge"] = "judge"
    url: Url
    """Base address of an OpenAI-compatible service, without ``/v1/chat/completions``."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    token: Secret
    """Its API key."""


LabellerChoice = Annotated[CheckerEndpoint | CheckerFunction | Judge, Field(discriminator="kind")]


class StoredLabeller(Documented):
    """A labeller without its secret, which stays with the router, encrypted."""

    kind: Literal["checker", "function", "judge"]
    name: str
    """Address of the service, or name of the function."""
    model: str | None = None
    source: Source | None = None
    """Source of the address, which decides the hosts that it may have."""
