"""The one error of the SDK: a service refused, failed, or gave no answer."""

from __future__ import annotations

import httpx
from mor_core.errors import MorError

_CURES = {
    401: "set MOR_TOKEN_FILE, or token_file in the configuration, to a file with a token that the service knows",
    403: "use a token of the scope that is named",
    404: "check the name; 'list' shows what there is",
    409: "look at its present state with 'show'",
    413: "send less in one request",
    422: "change what is named and try again",
    429: "it is busy; try again later",
    503: "it is not ready; 'mor doctor' says why",
}
_FAILED = "the service's log has the reason; 'mor doctor' looks at the installation"
_SHOWN_CHARACTERS = 500


class ServiceError(MorError):
    """What went wrong, and the cure. ``str()`` says both in one line."""

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
        """HTTP status; ``None`` when there was no answer."""
        self.title = title
        self.detail = detail
        self.cure = cure
        self.retry_after_s = retry_after_s
        """Seconds that the service asks to wait."""


def of_response(service: str, response: httpx.Response) -> ServiceError:
    """The error that a response tells of; ``response`` must have been read."""
    status = response.status_code
    try:
        problem = response.json()
        detail, title = str(problem["detail"]), str(problem.get("title", response.reason_phrase))
    except (ValueError, KeyError, TypeError):
        detail = response.text[:_SHOWN_CHARACTERS] or response.reason_phrase
        return ServiceError(
            service,
            f"{response.request.url} answered {status}: {detail}",
            "is that the address of this service? Check it in the configuration",
            status=status,
            title=response.reason_phrase,
        )
    _, semicolon, own_cure = detail.rpartition(";")  # the service knows more than the status tells
    cure = own_cure.strip() if semicolon else _CURES.get(status, _FAILED)
    return ServiceError(service, detail, cure, status=status, title=title, retry_after_s=_retry_after(response))


def of_transport(service: str, url: str, error: httpx.TransportError) -> ServiceError:
    """The error of a call that got no answer."""
    if isinstance(error, httpx.UnsupportedProtocol):
        return ServiceError(service, f"{url!r} is no address", "write it as http://host:port or https://host")
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return ServiceError(service, f"no answer from {url} in time", "try again, or raise MOR_TIMEOUT_S")
    reason = str(error) or type(error).__name__
    return ServiceError(
        service, f"no answer from {url} ({reason})", "is it running, and reachable from here? Check its address"
    )


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
