"""Enrolling a reward service at a router."""

from __future__ import annotations

import httpx
import stamina
from mor_core.errors import Invalid, MorError, Unauthorized, Unavailable
from pydantic import BaseModel, ConfigDict, ValidationError

_ATTEMPTS = 5
_TIMEOUT_S = 30.0
_CURES = {
    401: "the enrolment token is unknown there; ask the platform team for a new one",
    403: "the enrolment token may not enrol clients; ask the platform team for one that may",
    404: "that address is no MoR router; check --router",
    409: "a client of that name is enrolled; choose another --name, or have it removed first",
}


class RouterUnavailable(Unavailable):
    """The router cannot be reached or asks to come back later."""


class Enrolled(BaseModel):
    """What the router says of a new client."""

    model_config = ConfigDict(extra="ignore")

    token: str
    """Token of the client's own page on the router."""
    trial: str = ""
    """What the service made of the router's trial call."""


def register(
    router: str,
    enrolment_token: str,
    *,
    name: str,
    url: str,
    domains: str,
    secret: str,
    attempts: int = _ATTEMPTS,
) -> Enrolled:
    """Enrol the reward service at ``url`` as client ``name``; ``secret`` is the token it wants from the router.

    Lost connections and answers 429, 502, 503 and 504 are tried again, at most ``attempts`` times in all, with jitter.

    Raises:
        RouterUnavailable: no answer in all attempts.
        Unauthorized: the enrolment token was refused.
        Invalid: the router refused the client; the message says why and what to do.
    """
    body = {"name": name, "url": url, "domains": domains, "token": secret}
    headers = {"Authorization": f"Bearer {enrolment_token}"}
    with httpx.Client(base_url=router, timeout=_TIMEOUT_S) as http:
        for attempt in stamina.retry_context(
            on=RouterUnavailable, attempts=attempts, timeout=2 * _TIMEOUT_S, wait_initial=0.2, wait_max=5.0
        ):
            with attempt:
                return _enrol(http, body, headers)
    raise AssertionError("the retry context returns or raises")


def _enrol(http: httpx.Client, body: dict[str, str], headers: dict[str, str]) -> Enrolled:
    try:
        response = http.post("/v1/clients", json=body, headers=headers)
    except httpx.InvalidURL as error:
        raise Invalid(f"--router {http.base_url}: {error}") from error
    except httpx.UnsupportedProtocol as error:
        raise Invalid(f"--router {http.base_url}: write it as http://host:port or https://host") from error
    except httpx.TransportError as error:
        raise RouterUnavailable(
            f"no answer from the router at {http.base_url}: {error or type(error).__name__}; "
            "is it running, and reachable from here?"
        ) from error
    detail = _detail(response)
    if response.status_code in (429, 502, 503, 504):
        raise RouterUnavailable(
            f"the router at {http.base_url} answered {response.status_code}: {detail}; try again later"
        )
    if response.is_success:
        try:
            return Enrolled.model_validate_json(response.content)
        except ValidationError as error:
            raise Invalid(
                f"{http.base_url} is no MoR router: its answer is not an enrolment; check --router"
            ) from error
    cure = _CURES.get(response.status_code, "change what it names and try again")
    kind: type[MorError] = Unauthorized if response.status_code in (401, 403) else Invalid
    raise kind(f"the router refused the enrolment ({response.status_code}): {detail}; {cure}")


def _detail(response: httpx.Response) -> str:
    """The detail of a problem+json answer, or the beginning of whatever else came."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200] or response.reason_phrase
    return str(detail)
