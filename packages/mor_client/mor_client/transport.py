"""HTTP transport to one service: time limits, safe retries, one error type."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO, TypeVar

import httpx
import stamina
from httpx_sse import EventSource, connect_sse
from mor_core.certificates import client_context
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.proxies import proxy_of
from mor_core.service_addresses import CONTROL, ROLLOUT, ROUTER, other_service
from pydantic import TypeAdapter, ValidationError

from mor_client import errors
from mor_client.config import ClientSettings
from mor_client.errors import ServiceError
from mor_client.given_arguments import NOT_IN_NAMES

T = TypeVar("T")

CONNECT_S = 5.0
"""Seconds for a connection; a reachable host needs far less."""
_MAX_PAUSE_S = 30.0
"""Most seconds to wait before a retry, whatever Retry-After demands: a command must end."""
_MAX_SILENCE_S = 60.0
"""Seconds without data after which an event stream is lost; services send a comment every 15 seconds."""
_CHUNK = 1 << 20
"""Bytes of a download in memory."""
_PAGE_ENTRIES = 1000
"""Entries of a page of the services' list routes."""
_TITLES = {"control": CONTROL, "router": ROUTER, "rollout": ROLLOUT}
"""Titles by which the services name themselves."""
_NOT_PROCESSED = (429, 503)
"""Statuses by which a service reports that it did not process the request."""
_GATEWAY = (502, 504)
"""Statuses of a proxy, which does not know whether the service processed the request."""


class Transport:
    """HTTP client of the service at ``url``."""

    def __init__(self, service: str, url: str | None, settings: ClientSettings) -> None:
        self.service = service
        self.url = url
        self._settings = settings
        self._http: httpx.Client | None = None

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def _client(self) -> httpx.Client:
        if self._http is None:
            self._http = httpx.Client(**self.http_options(), headers=self.authorization(), trust_env=False)
        return self._http

    def http_options(self) -> dict[str, Any]:
        """Return the arguments of an HTTP client for this service.

        Raises:
            ServiceError: its address is missing or invalid.
            Invalid: the file of certificate authorities cannot be used.
        """
        if self.url is None:
            cure = f"set MOR_{self.service.upper()}_URL, or {self.service}_url in the configuration file"
            raise ServiceError(self.service, "its address is not configured", cure)
        errors.check_address(self.service, self.url)
        return {
            "base_url": self.url,
            "timeout": httpx.Timeout(self._settings.timeout_s, connect=CONNECT_S),
            "verify": self._tls,
            "proxy": proxy_of(self._settings.proxy),
        }

    def authorization(self) -> dict[str, str]:
        """Return the header with the caller's token.

        Raises:
            Invalid: the token file cannot be used.
        """
        token = self._settings.bearer()
        return {"Authorization": f"Bearer {token}"} if token else {}

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """TLS context of all connections: making one takes some 20 ms, and it follows its files by itself."""
        return client_context("MOR_CA_FILE", self._settings.ca_file)

    def get(self, path: str, kind: Any, **params: Any) -> Any:
        """Send a GET and parse the response as ``kind``. Parameters that are ``None`` are omitted."""
        return self.call("GET", path, kind, params=params)

    def pages(self, path: str, kind: Any, identity: str, **params: Any) -> list[Any]:
        """Read all entries of a list route, page by page; ``identity`` is the attribute that names an entry."""
        found: list[Any] = []
        while True:
            after = str(getattr(found[-1], identity)) if found else None
            part = self.get(path, list[kind], after=after, **params)
            found += part
            if len(part) != _PAGE_ENTRIES:
                return found

    def call(
        self,
        method: str,
        path: str,
        kind: Any,
        *,
        idempotent: bool | None = None,
        timeout_s: float | None = None,
        params: dict[str, Any] | None = None,
        **request: Any,
    ) -> Any:
        """Send a request and parse the response as ``kind``, a type for ``TypeAdapter``, or ``None`` to ignore it.

        Fields unknown to this version are ignored, for compatibility with newer services. A call is repeated, with
        growing and jittered pauses, if the service did not process it (429, 503) or was not reached; and, if
        ``idempotent`` (by default every method but POST and PATCH), if the response was lost.

        Raises:
            ServiceError: the service refused, failed or did not respond; with the cure.
        """
        repeatable = method not in ("POST", "PATCH") if idempotent is None else idempotent
        sent = {name: value for name, value in (params or {}).items() if value is not None}
        if timeout_s is not None:
            request["timeout"] = httpx.Timeout(timeout_s, connect=CONNECT_S)
        for attempt in self.retries(repeatable=repeatable):
            with attempt:
                return self._once(method, path, kind, params=sent, **request)
        raise AssertionError("the retry context returns or raises")

    def retries(self, *, repeatable: bool) -> Any:
        """Return stamina's context of the attempts at one call; ``repeatable``: also if the response was lost."""
        return stamina.retry_context(
            on=lambda error: _retry_pause(error, repeatable),
            attempts=self._settings.attempts,
            timeout=None,
            wait_initial=0.2,
            wait_max=5.0,
        )

    def once(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request once and return the response, whatever its status.

        Raises:
            ServiceError: there was no response.
        """
        with self.errors():
            response = self._client().request(method, _checked(path), **request)
        self.check_service(response)
        return response

    def _once(self, method: str, path: str, kind: Any, **request: Any) -> Any:
        response = self.once(method, path, **request)
        if not response.is_success:
            raise errors.from_response(self.service, response)
        return None if kind is None else self.parse(response, kind)

    def parse(self, response: httpx.Response, kind: Any) -> Any:
        """Parse a response as ``kind``.

        Raises:
            ServiceError: it is something else.
        """
        try:
            return TypeAdapter(kind).validate_json(response.content, extra="ignore")
        except ValidationError as error:
            cure = "run 'mor doctor' to compare versions, and install the version of the services"
            raise ServiceError(
                self.service,
                f"{response.request.url} returned {error.error_count()} fields that this version cannot parse",
                cure,
                status=response.status_code,
                title="Not parsed",
            ) from error

    def parts(self, path: str) -> Iterator[bytes]:
        """Send a GET once and yield the parts of its response as they come.

        Raises:
            ServiceError: the service refused, or the connection was lost.
        """
        with self.errors(), self._client().stream("GET", _checked(path)) as response:
            self.check_service(response)
            if not response.is_success:
                response.read()
                raise errors.from_response(self.service, response)
            yield from response.iter_bytes()

    def download(self, address: str, file: BinaryIO, most: int, **params: str) -> None:
        """Append up to ``most`` bytes of a file to ``file``, from the position at which that ends.

        Raises:
            ServiceError: the service refused, or the connection was lost; what arrived before is in ``file``.
        """
        headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(_MAX_SILENCE_S, connect=CONNECT_S)
        with (
            self.errors(),
            self._client().stream("GET", address, params=params, headers=headers, timeout=timeout) as response,
        ):
            self.check_service(response)
            if not response.is_success:
                response.read()
                raise errors.from_response(self.service, response)
            if response.status_code != httpx.codes.PARTIAL_CONTENT:  # from the beginning
                most += file.tell()
                file.seek(0)
                file.truncate()
            for part in response.iter_bytes(_CHUNK):
                most -= file.write(part[:most])

    @contextmanager
    def events(self, path: str, last_event_id: str | None) -> Iterator[EventSource]:
        """Open a stream of server-sent events; silence ends it with an error.

        Raises:
            ServiceError: the service refused, or the connection was lost.
        """
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        timeout = httpx.Timeout(_MAX_SILENCE_S, connect=CONNECT_S)
        with (
            self.errors(),
            connect_sse(self._client(), "GET", _checked(path), headers=headers, timeout=timeout) as source,
        ):
            self.check_service(source.response)
            if not source.response.is_success:
                source.response.read()
                raise errors.from_response(self.service, source.response)
            yield source

    def check_service(self, response: httpx.Response) -> None:
        """Check that no other service of MoR answered.

        Raises:
            WrongService: one did.
        """
        other = other_service(response.headers, _TITLES[self.service])
        if other is not None:
            setting = f"MOR_{self.service.upper()}_URL, or {self.service}_url in the configuration file"
            raise errors.WrongService(self.service, f"{self.url}: {other}", f"correct {setting}", title="Wrong service")

    @contextmanager
    def errors(self, limit: str = "MOR_TIMEOUT_S") -> Iterator[None]:
        """Raise a ``ServiceError`` for a request in the body that gets no response. ``limit``: setting of its time."""
        try:
            yield
        except httpx.TransportError as error:
            raise errors.from_transport(self.service, self.url or "", error, limit) from error
        except httpx.InvalidURL as error:  # a name in the path that is too long, as the address was checked
            raise ServiceError(
                self.service, f"no such name ({quote_failure(error)})", "give a name as its list shows it"
            ) from error


def _checked(path: str) -> str:
    """Return a path, of which the names that a caller gave leave nothing out: '#' and '?' would end it, and the rest be
    the path of something else.

    Raises:
        Invalid: a name has a character that none can have, or is empty.
    """
    names = path.removeprefix("/").split("/")
    if not path.isprintable() or not NOT_IN_NAMES.isdisjoint("".join(names)) or not {"", ".", ".."}.isdisjoint(names):
        raise Invalid(f"{path[:200]!r} is made with what cannot be a name; give a name as its list shows it")
    return path


def _retry_pause(error: Exception, repeatable: bool) -> bool | float:
    """Return whether to retry, or after how many seconds."""
    if not isinstance(error, ServiceError):
        return False
    if error.status_code in _NOT_PROCESSED:
        requested_s = error.retry_after_s
        return True if requested_s is None else min(requested_s, _MAX_PAUSE_S)
    if error.status_code in _GATEWAY:
        return repeatable
    lost = error.__cause__
    if isinstance(lost, httpx.ConnectError | httpx.ConnectTimeout):
        return True
    return repeatable and isinstance(lost, httpx.TransportError)
