"""Errors of the SDK: a service refused, failed or did not respond; a group has no reward."""

from __future__ import annotations

import httpx
from mor_core.errors import MorError
from mor_core.failures import describe_failure
from mor_core.service_addresses import FORM_OF_ADDRESS, is_address

_CURES = {
    401: "set MOR_TOKEN_FILE, or token_file in the configuration, to a file with a token that the service knows",
    403: "use a token with the named scope",
    404: "check the name; 'list' shows all names",
    409: "inspect the current state with 'show'",
    413: "send less in one request",
    422: "correct the named field and try again",
    429: "the service is busy; try again later",
    503: "the service is not ready; run 'mor doctor' for the reason",
}
_FAILED = "read the service's log for the reason, or run 'mor doctor'"
_SHOWN_CHARACTERS = 500
"""Length up to which a message quotes a response that is not problem+json, in characters."""


class ServiceError(MorError):
    """Failed call of a service. ``str()`` has the reason and the cure in one line."""

    def __init__(
        self,
        service: str,
        detail: str,
        cure: str,
        *,
        status: int | None = None,
        title: str = "No answer",
        retry_after_s: float | None = None,
    ) -> None:
        separator = "" if cure in detail else f"; {cure}"
        super().__init__(f"{service}: {detail}{separator}")
        self.service = service
        self.status_code = status
        """HTTP status; ``None`` without a response."""
        self.title = title
        self.detail = detail
        self.cure = cure
        self.retry_after_s = retry_after_s
        """Seconds to wait before a retry, as requested by the service."""

    @property
    def lost(self) -> bool:
        """True if the connection was lost, or the service is not ready: another attempt may succeed."""
        return isinstance(self.__cause__, httpx.TransportError) or self.status_code in (429, 502, 503, 504)

    @property
    def reason(self) -> str:
        """The detail without the cure, where it ends with that."""
        return self.detail.removesuffix(self.cure).rstrip("; ")


class WrongService(ServiceError):
    """Answer of another service of MoR: the configured address is that one's."""


class NoReward(MorError):
    """A group has no reward, because too few clients scored it. A missing reward is never 0."""


def from_response(service: str, response: httpx.Response) -> ServiceError:
    """Make the error for a failed response, which must have been read."""
    status = response.status_code
    try:
        problem = response.json()
        detail, title = str(problem["detail"]), str(problem.get("title", response.reason_phrase))
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = response.text[:_SHOWN_CHARACTERS] or response.reason_phrase
        return ServiceError(
            service,
            f"{response.request.url} answered {status}: {detail}",
            "check the address of this service in the configuration",
            status=status,
            title=response.reason_phrase,
        )
    _, semicolon, own_cure = detail.rpartition(";")  # the service's own cure is more specific
    cure = own_cure.strip() if semicolon else _CURES.get(status, _FAILED)
    return ServiceError(service, detail, cure, status=status, title=title, retry_after_s=_retry_after(response))


def check_address(service: str, url: str) -> None:
    """Check what a person gave as the address of a service.

    Raises:
        ServiceError: no service can have this address.
    """
    if not is_address(url):
        raise ServiceError(service, f"{url!r} is not a valid address", f"write it as {FORM_OF_ADDRESS}")


def from_transport(service: str, url: str, error: httpx.TransportError, limit: str = "MOR_TIMEOUT_S") -> ServiceError:
    """Make the error for a call without a response. ``limit``: setting of the time to wait for one."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return ServiceError(service, f"no answer from {url} in time", f"try again, or increase {limit}")
    return ServiceError(
        service,
        f"no answer from {url} ({describe_failure(error)})",
        "check that it is running and reachable, and its address",
    )


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
