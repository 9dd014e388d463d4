"""Enrolling a reward service at a router."""

from __future__ import annotations

import httpx
import stamina
from mor_core.auth import hash_token
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

    token: str | None
    """Token of the client's own page on the router; null where the client brought its own."""
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
    page_token: str | None = None,
    attempts: int = _ATTEMPTS,
) -> Enrolled:
    """Enrol the reward service at ``url`` as client ``name``; ``secret`` is the token it wants from the router.

    With ``page_token``, that one opens the client's own page (the router gets its hash only), and a client that is
    enrolled with it at the same address already is left as it is. Lost connections and answers 429, 502, 503 and 504
    are tried again, at most ``attempts`` times in all, with jitter.

    Raises:
        RouterUnavailable: no answer in all attempts.
        Unauthorized: the enrolment token was refused.
        Invalid: the router refused the client; the message says why and what to do.
    """
    body = {"name": name, "url": url, "domains": domains, "token": secret}
    if page_token is not None:
        body["page_token_sha256"] = hash_token(page_token)
        known = _ask(router, page_token, "GET", f"/v1/clients/{name}", attempts=attempts)
        if known.is_success:
            return _unchanged(known, name, url)
    response = _ask(router, enrolment_token, "POST", "/v1/clients", body, attempts=attempts)
    if response.is_success:
        try:
            return Enrolled.model_validate_json(response.content)
        except ValidationError as error:
            raise Invalid(f"{router} is no MoR router: its answer is not an enrolment; check --router") from error
    raise _refusal("enrolment", response)


def deregister(router: str, page_token: str, *, name: str, attempts: int = _ATTEMPTS) -> bool:
    """Have the router forget client ``name``; returns whether it knew it.

    Raises:
        RouterUnavailable: no answer in all attempts.
        Unauthorized: the token is another client's.
    """
    response = _ask(router, page_token, "DELETE", f"/v1/clients/{name}", attempts=attempts)
    if response.status_code in (401, 404):  # the token ends with the client
        return False
    if not response.is_success:
        raise _refusal("deregistration", response)
    return True


def _unchanged(known: httpx.Response, name: str, url: str) -> Enrolled:
    try:
        at = str(known.json()["client"]["url"])
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{known.url} did not answer with a client; is --router a MoR router?") from error
    if at != url.rstrip("/"):
        raise Invalid(f"client {name!r} is enrolled at {at}; 'mor-reward deregister' it, or have it moved to {url}")
    return Enrolled(token=None, trial="enrolled already")


def _ask(
    router: str, token: str, method: str, path: str, body: dict[str, str] | None = None, *, attempts: int
) -> httpx.Response:
    with httpx.Client(base_url=router, timeout=_TIMEOUT_S, headers={"Authorization": f"Bearer {token}"}) as http:
        for attempt in stamina.retry_context(
            on=RouterUnavailable, attempts=attempts, timeout=2 * _TIMEOUT_S, wait_initial=0.2, wait_max=5.0
        ):
            with attempt:
                return _ask_once(http, method, path, body)
    raise AssertionError("the retry context returns or raises")


def _ask_once(http: httpx.Client, method: str, path: str, body: dict[str, str] | None) -> httpx.Response:
    try:
        response = http.request(method, path, json=body)
    except httpx.InvalidURL as error:
        raise Invalid(f"--router {http.base_url}: {error}") from error
    except httpx.UnsupportedProtocol as error:
        raise Invalid(f"--router {http.base_url}: write it as http://host:port or https://host") from error
    except httpx.TransportError as error:
        raise RouterUnavailable(
            f"no answer from the router at {http.base_url}: {error or type(error).__name__}; "
            "is it running, and reachable from here?"
        ) from error
    if response.status_code in (429, 502, 503, 504):
        raise RouterUnavailable(
            f"the router at {http.base_url} answered {response.status_code}: {_detail(response)}; try again later"
        )
    return response


def _refusal(what: str, response: httpx.Response) -> MorError:
    cure = _CURES.get(response.status_code, "change what it names and try again")
    kind: type[MorError] = Unauthorized if response.status_code in (401, 403) else Invalid
    return kind(f"the router refused the {what} ({response.status_code}): {_detail(response)}; {cure}")


def _detail(response: httpx.Response) -> str:
    """The detail of a problem+json answer, or the beginning of whatever else came."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200] or response.reason_phrase
    return str(detail)
