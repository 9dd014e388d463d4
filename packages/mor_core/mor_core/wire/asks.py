"""Rules of which prompts a client is sent, by domain label and by whether the prompt is public."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field, StringConstraints

from mor_core.wire.base import Documented

DomainLabel = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""Label of a prompt's domain, as the column ``domain`` of data files has it."""


class PromptOrigin(NamedTuple):
    """Properties of a prompt by which a rule decides, known before anything is sent."""

    domain: str | None = None
    """Domain label; ``None`` where the prompt has none."""
    public: bool = False
    """True where the owner of the prompt has marked pictures and texts of its source as public."""


class Asks(Documented):
    """Rule of which prompts a client is sent. Both conditions must hold."""

    domains: Annotated[tuple[DomainLabel, ...], Field(max_length=100)] | None = None
    """Domain labels of the prompts that it is sent; a prompt without a label is not sent. Null: every domain."""
    public_only: bool = False
    """True: only prompts whose source is marked as public."""

    def within(self, other: Asks) -> Asks:
        """Return the rule that allows what both allow."""
        domains = other.domains if self.domains is None else self.domains
        if self.domains is not None and other.domains is not None:
            domains = tuple(label for label in self.domains if label in other.domains)
        return Asks(domains=domains, public_only=self.public_only or other.public_only)

    def refusal(self, origin: PromptOrigin) -> str | None:
        """Return why a prompt may not be sent; ``None`` where it may."""
        if self.public_only and not origin.public:
            return "its source is not marked as public"
        if self.domains is not None and origin.domain not in self.domains:
            return "it has no domain label" if origin.domain is None else f"its domain is {origin.domain[:80]!r}"
        return None
