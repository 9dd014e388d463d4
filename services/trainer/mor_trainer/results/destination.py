"""Destination of a push: a repository of a Hugging Face hub, or a tag in an OCI registry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mor_core.errors import Forbidden, Invalid
from mor_core.loopback import is_loopback
from mor_core.run_storage import DESTINATION_FORMS

_HUB = re.compile(DESTINATION_FORMS["hub"])
_OCI = re.compile(DESTINATION_FORMS["oci"])


@dataclass(frozen=True)
class HubRepository:
    """Repository of a model on a hub, as ``owner/name``."""

    name: str


@dataclass(frozen=True)
class RegistryTag:
    """Tag of a repository in an OCI registry."""

    host: str
    """Host, with a port where it has one."""
    repository: str
    tag: str

    @property
    def url(self) -> str:
        """Address of the registry: HTTPS, and plain HTTP on this machine only, as with other clients."""
        return f"{'http' if is_loopback(_without_port(self.host)) else 'https'}://{self.host}"


def parse_destination(given: str) -> HubRepository | RegistryTag:
    """Return the destination that a person wrote.

    Raises:
        Invalid: it has neither form.
    """
    if found := _HUB.fullmatch(given):
        return HubRepository(found["name"])
    if found := _OCI.fullmatch(given):
        return RegistryTag(found["host"], found["repository"], found["tag"])
    raise Invalid(f"got the destination {given[:80]!r}; give hf://OWNER/NAME or oci://HOST/NAME:TAG")


def check_allowed(destination: str, allowed: Iterable[str]) -> None:
    """Check that a destination is one of those that run control's operator allows.

    Raises:
        Forbidden: it is not.
    """
    places = [place.rstrip("/") for place in allowed]
    if not any(_begins(destination, place) for place in places):
        listed = f"allows {', '.join(places)}" if places else "is empty"
        raise Forbidden(
            f"run control does not push to {destination}: MOR_PUSH_DESTINATIONS {listed}; add the destination or the "
            "first part of it there, or run 'mor-trainer push' where the files are"
        )


def _begins(destination: str, place: str) -> bool:
    """Return whether a destination is at a place, or below it. After a host alone, a colon begins a port."""
    ends = ("/", ":") if "/" in place.partition("://")[2] else ("/",)
    return destination == place or destination.startswith(tuple(place + end for end in ends))


def _without_port(host: str) -> str:
    return host.rpartition(":")[0] or host
