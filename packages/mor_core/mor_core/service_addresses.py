"""Mistakes in the address of a service that its answer shows: another service of MoR stands there.

Every answer of a service names it in a header, so that a caller tells a wrong address from a wrong path or token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

HEADER = "X-MoR-Service"
CONTROL, ROUTER, ROLLOUT, REWARD = "MoR trainer", "MoR router", "MoR rollout", "MoR reward service"
_WORDS = {CONTROL: "run control", ROUTER: "the router", ROLLOUT: "the rollout service", REWARD: "a reward service"}
"""Title of a service -> its name in a sentence."""
_VARIABLES = {CONTROL: "MOR_CONTROL_URL", ROUTER: "MOR_ROUTER_URL", ROLLOUT: "MOR_ROLLOUT_URL"}

FORM_OF_ADDRESS = "http://host:port or https://host"


def is_address(url: str) -> bool:
    """Return whether a service can have this address."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without their pair, or a port over 65535
        return False
    return valid and url.isprintable() and " " not in url


def _checked(url: str) -> str:
    if not is_address(url):
        raise ValueError(FORM_OF_ADDRESS)
    return url


ServiceAddress = Annotated[str, AfterValidator(_checked)]
"""Setting with the address of a service."""


def other_service(headers: Mapping[str, str], wanted: str) -> str | None:
    """Return what an address is of by the headers of an answer, where it is not ``wanted``'s, and the cure."""
    found = headers.get(HEADER, wanted)
    if found == wanted or found not in _WORDS:
        return None
    belongs = f"; this one belongs into {_VARIABLES[found]}" if found in _VARIABLES else ""
    return f"this is the address of {_WORDS[found]}, not of {_WORDS[wanted]}{belongs}"
