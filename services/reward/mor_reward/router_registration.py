"""Registration of a reward service at a router: enrol and deregister over HTTP."""

from __future__ import annotations

import httpx
import pydantic_core
import stamina
from mor_core.auth import hash_token
from mor_core.errors import Invalid, MorError, Unauthorized, Unavailable
from mor_core.failures import describe_failure, quote_failure
from mor_core.service_addresses import ROUTER, other_service
from pydantic import BaseModel, ConfigDict, ValidationError

from mor_reward.server_connection import TIMEOUT_S, connection, exchange

_ATTEMPTS = 5
"""Attempts of one call; with the pauses of at most 5 s enough for a router that restarts."""
_DETAIL_CHARACTERS = 2000
"""Characters of a refusal's reason that are shown."""
_CURES = {
    401: "the router does not know the enrolment token; request a new one from the platform team",
    403: "the enrolment token may not enrol clients; request another one from the platform team",
    404: "the address is not a MoR router; check --router",
    409: "a client of that name is enrolled; choose another --name, or have that client removed first",
}


class RouterUnavailable(Unavailable):
    """The router cannot be reached or requests a later retry."""


class EnrolmentReceipt(BaseModel):
    """Response of the router to an enrolment."""

    model_config = ConfigDict(extra="ignore")

    token: str | None
    """Token of the client's own page on the router; null if the client supplied one."""
    trial: str = ""
    """Result of the router's trial call."""


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
    proxy: str | None = None,
) -> EnrolmentReceipt:
    """Enrol the reward service at ``url`` as client ``name``; ``secret`` is the token that the router must send.

    With ``page_token``, that one opens the client's own page (the router gets its hash only), and a client that is
    enrolled with it at the same address already is left as it is. Lost connections and answers 429, 502, 503 and 504
    are tried again, at most ``attempts`` times in all, with jitter. ``proxy``: address of a proxy for these calls.

    Raises:
        RouterUnavailable: no answer in all attempts.
        Unauthorized: the router refused the enrolment token.
        Invalid: the router refused the client; the message has the reason and the cure.
    """
    body = {"name": name, "url": url, "domains": domains, "token": secret}
    if page_token is not None:
        body["page_token_sha256"] = hash_token(page_token)
        known = _request(router, page_token, "GET", f"/v1/clients/{name}", attempts=attempts, proxy=proxy)
        if known.is_success:
            return _unchanged(known, name, url)
    response = _request(router, enrolment_token, "POST", "/v1/clients", body, attempts=attempts, proxy=proxy)
    if response.is_success:
        try:
            return EnrolmentReceipt.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            raise Invalid(f"{router} is not a MoR router: its response is not an enrolment; check --router") from error
    raise _refusal("enrolment", response)


def deregister(router: str, page_token: str, *, name: str, attempts: int = _ATTEMPTS, proxy: str | None = None) -> bool:
    """Deregister client ``name`` and return whether the router knew it.

    Raises:
        RouterUnavailable: no answer in all attempts.
        Unauthorized: the token belongs to another client.
    """
    response = _request(router, page_token, "DELETE", f"/v1/clients/{name}", attempts=attempts, proxy=proxy)
    if response.status_code in (401, 404):  # the token ends with the client
        return False
    if not response.is_success:
        raise _refusal("deregistration", response)
    return True


def _unchanged(known: httpx.Response, name: str, url: str) -> EnrolmentReceipt:
    try:
        at = str(pydantic_core.from_json(known.content)["client"]["url"])
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{known.url} did not return a client; check that --router is a MoR router") from error
    if at != url.rstrip("/"):
        raise Invalid(f"client {name!r} is enrolled at {at}; run 'mor-reward deregister', or have it moved to {url}")
    return EnrolmentReceipt(token=None, trial="already enrolled")


def _request(
    router: str,
    token: str,
    method: str,
    path: str,
    body: dict[str, str] | None = None,
    *,
    attempts: int,
    proxy: str | None,
) -> httpx.Response:
    with connection("--router", router, token, proxy) as http:
        for attempt in stamina.retry_context(
            on=RouterUnavailable, attempts=attempts, timeout=2 * TIMEOUT_S, wait_initial=0.2, wait_max=5.0
        ):
            with attempt:
                return _request_once(http, method, path, body)
    raise AssertionError("the retry context returns or raises")


def _request_once(http: httpx.Client, method: str, path: str, body: dict[str, str] | None) -> httpx.Response:
    try:
        response = exchange(http, method, path, json=body)
    except httpx.InvalidURL as error:
        raise Invalid(f"--name: {quote_failure(error)}; give the name of a client") from error
    except httpx.TransportError as error:
        raise RouterUnavailable(
            f"no answer from the router at {http.base_url}: {describe_failure(error)}; "
            "check that it is running and reachable from here"
        ) from error
    if (other := other_service(response.headers, ROUTER)) is not None:
        raise Invalid(f"--router {http.base_url}: {other}; give the router's address")
    if response.status_code in (429, 502, 503, 504):
        raise RouterUnavailable(
            f"the router at {http.base_url} answered {response.status_code}: {_detail(response)}; try again later"
        )
    return response


def _refusal(action: str, response: httpx.Response) -> MorError:
    cure = _CURES.get(response.status_code, "correct the named field and try again")
    kind: type[MorError] = Unauthorized if response.status_code in (401, 403) else Invalid
    return kind(f"the router refused the {action} ({response.status_code}): {_detail(response)}; {cure}")


def _detail(response: httpx.Response) -> str:
    """Return the detail of a problem+json response, or the beginning of any other body."""
    try:
        detail = pydantic_core.from_json(response.content)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200] or response.reason_phrase
    return str(detail)[:_DETAIL_CHARACTERS]
