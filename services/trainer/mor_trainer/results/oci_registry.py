"""Push to an OCI registry, by the distribution specification 1.1: each file is a blob, and the manifest comes last.

The artifact has the form that ``oras pull`` writes back as files: a layer for each file, with the file's name as
``org.opencontainers.image.title``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

import httpx
import stamina
from mor_core.certificates import client_context
from mor_core.errors import Invalid, MorError, Unavailable
from mor_core.failures import describe_failure
from mor_core.hidden_secrets import remember
from mor_core.patterns import matching
from mor_core.printable import visible
from mor_core.run_storage import ExportedFile
from pydantic import BaseModel, ValidationError

from mor_trainer import __version__
from mor_trainer.results.destination import RegistryTag

_TIMEOUT = httpx.Timeout(60.0, read=300.0)
"""Seconds without a byte; a registry hashes a blob of gigabytes before it answers."""
_ATTEMPTS = 6
_LONGEST_PAUSE_S = 30.0
"""Attempts for a blob, and the longest mean pause between them: about a minute, a restart of a registry."""
_CHUNK = 4 << 20
_LARGEST_ANSWER = 1 << 20
"""Bytes; a token has a few thousand."""
_LONGEST_TOKEN = 64 << 10
"""Characters; servers take headers of less."""
_QUOTED = 300
"""Characters of a refusal that are quoted."""
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARTIFACT = "application/vnd.mor.model"
_LAYER = "application/vnd.mor.model.file"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_EMPTY = b"{}"
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_TEMPORARY = (408, 429, 500, 502, 503, 504)
_PRESENT = (200, 302, 307)
"""Statuses of a blob that is there; registries whose storage is another server redirect to it."""

Body = Callable[[], Iterator[bytes]]


_TokenText = Annotated[str, matching(r"^[\x21-\x7e]*$", "printable ASCII, as a header carries it", _LONGEST_TOKEN)]


class _Failed(MorError):
    """Failure of the other end that may pass."""


class _Token(BaseModel, hide_input_in_errors=True):
    token: _TokenText = ""
    access_token: _TokenText = ""
    """The same, in OAuth 2's words."""


class Registry:
    """Client of one repository of an OCI registry."""

    def __init__(self, place: RegistryTag, credentials: tuple[str, str] | None, *, proxy: str | None = None) -> None:
        """``credentials``: user and password."""
        self._place, self._credentials = place, credentials
        self._base = f"{place.url}/v2/{place.repository}"
        self._authorization: str | None = None
        self._http = httpx.Client(
            timeout=_TIMEOUT,
            verify=client_context("SSL_CERT_FILE", None),
            proxy=proxy,
            trust_env=False,
            headers={"User-Agent": f"mor-trainer/{__version__}", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def push(self, folder: Path, files: Sequence[ExportedFile]) -> str:
        """Push files as an artifact under the tag, and return its address with the digest.

        Raises:
            Invalid: the registry does not take the credentials, the repository or the artifact.
            Unavailable: it could not be reached, or failed, at every attempt.
        """
        for file in files:
            self._retried(lambda file=file: self._put_blob(file.sha256, file.bytes, _reader(folder / file.name)))  # type: ignore[misc]
        empty = hashlib.sha256(_EMPTY).hexdigest()
        self._retried(lambda: self._put_blob(empty, len(_EMPTY), lambda: iter([_EMPTY])))
        manifest = json.dumps(_manifest(files, empty)).encode()
        url = f"{self._base}/manifests/{self._place.tag}"
        headers = {"Content-Type": _MANIFEST, "Content-Length": str(len(manifest))}
        self._retried(lambda: self._call("PUT", url, (201,), headers=headers, body=lambda: iter([manifest])))
        digest = hashlib.sha256(manifest).hexdigest()
        return f"{self._place.host}/{self._place.repository}@sha256:{digest}"

    def _retried(self, work: Callable[[], object]) -> None:
        try:
            for attempt in stamina.retry_context(
                on=(_Failed, httpx.RequestError), attempts=_ATTEMPTS, timeout=None, wait_max=_LONGEST_PAUSE_S
            ):
                with attempt:
                    work()
        except (_Failed, httpx.RequestError) as error:
            raise Unavailable(
                f"{self._place.url}: {describe_failure(error)}; push again later, what is there is not sent again"
            ) from error

    def _put_blob(self, sha256: str, size: int, body: Body) -> None:
        """Upload a blob, unless the registry has it."""
        digest = f"sha256:{sha256}"
        if self._call("HEAD", f"{self._base}/blobs/{digest}", (*_PRESENT, 404)).status_code in _PRESENT:
            return
        begun = self._call("POST", f"{self._base}/blobs/uploads/", (202,), headers={"Content-Length": "0"})
        place = self._upload_address(begun).copy_merge_params({"digest": digest})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._call("PUT", str(place), (201,), headers=headers, body=body)

    def _upload_address(self, begun: httpx.Response) -> httpx.URL:
        """Return the address that a registry gives for an upload.

        Raises:
            Invalid: it is another server's, which would receive the credentials.
        """
        place = _address(begun.headers.get("Location", ""), begun.url)
        if (place.scheme, place.netloc) != (begun.url.scheme, begun.url.netloc):
            raise Invalid(f"{self._place.url} sends the upload on to {place.host}; name the registry that stores blobs")
        return place

    def _call(
        self,
        method: str,
        url: str,
        wanted: Sequence[int],
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> httpx.Response:
        """Call the registry, and log in when it asks for that.

        Raises:
            Invalid: it refused.
            _Failed: it failed.
        """
        reply = self._send(method, url, headers or {}, body)
        if reply.status_code == 401:
            self._authorization = self._log_in(reply.headers.get("WWW-Authenticate", ""))
            reply = self._send(method, url, headers or {}, body)
        if reply.status_code in wanted:
            return reply
        said = f"{method} {visible(httpx.URL(url).path)} was answered with {reply.status_code}"
        if reply.status_code in _TEMPORARY:
            raise _Failed(said)
        if reply.status_code in (401, 403):
            raise Invalid(
                f"{self._place.url}: {said}; log in to {self._place.host} as a user who may push to "
                f"{self._place.repository} (docker login or oras login), and name the file by REGISTRY_AUTH_FILE"
            )
        raise Invalid(f"{self._place.url}: {said}: {visible(reply.text)[:_QUOTED]}; correct the destination")

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: Body | None) -> httpx.Response:
        authorization = {} if self._authorization is None else {"Authorization": self._authorization}
        content = None if body is None else body()
        with self._http.stream(method, url, headers={**headers, **authorization}, content=content) as reply:
            return _read(reply)

    def _log_in(self, challenge: str) -> str:
        """Return the ``Authorization`` that a challenge asks for.

        Raises:
            Invalid: there are no credentials for it, or they are refused.
            _Failed: the server of tokens failed.
        """
        scheme, _, rest = challenge.partition(" ")
        basic = None
        if self._credentials is not None:
            basic = f"Basic {base64.b64encode(':'.join(self._credentials).encode()).decode()}"
        if scheme.lower() != "bearer":
            if basic is None:
                raise Invalid(
                    f"{self._place.url} wants a user and a password; log in to {self._place.host} (docker login or "
                    "oras login), and name the file by REGISTRY_AUTH_FILE"
                )
            return basic
        parameters = dict(_PARAMETER.findall(rest))
        realm = _address(parameters.get("realm", ""), httpx.URL(self._place.url))
        if realm.scheme != "https" and self._place.url.startswith("https"):
            raise Invalid(f"{self._place.url} names a server of tokens without HTTPS; tell its operator")
        query = {"service": parameters.get("service", ""), "scope": f"repository:{self._place.repository}:pull,push"}
        headers = {} if basic is None else {"Authorization": basic}
        with self._http.stream("GET", realm.copy_merge_params(query), headers=headers) as reply:
            answer = _read(reply)
        if answer.status_code in _TEMPORARY:
            raise _Failed(f"the server of tokens, {realm.host}, answered with {answer.status_code}")
        if answer.status_code != 200:
            raise Invalid(
                f"{realm.host} gives no token for {self._place.repository} ({answer.status_code}); log in again "
                "(docker login or oras login), as a user who may push there"
            )
        try:
            found = _Token.model_validate_json(answer.content, extra="ignore")
        except ValidationError as error:
            raise _Failed(f"{realm.host} answered with no token ({describe_failure(error)})") from error
        token = found.token or found.access_token
        remember(token)
        return f"Bearer {token}"


def _read(reply: httpx.Response) -> httpx.Response:
    """Read an answer, up to its bound.

    Raises:
        _Failed: it is longer.
    """
    content = b""
    for part in reply.iter_raw():  # a compressed answer, which nobody asked for, could expand a thousandfold
        content += part
        if len(content) > _LARGEST_ANSWER:
            raise _Failed(f"an answer of over {_LARGEST_ANSWER} bytes came")
    return httpx.Response(reply.status_code, headers=_plain(reply.headers), content=content, request=reply.request)


def _plain(headers: httpx.Headers) -> dict[str, str]:
    """Return the headers without those that describe how the content was sent."""
    sent = ("content-encoding", "content-length", "transfer-encoding")
    return {name: value for name, value in headers.items() if name not in sent}


def _address(given: str, base: httpx.URL) -> httpx.URL:
    """Return an address in a registry's header.

    Raises:
        Invalid: it is none.
    """
    try:
        return base.join(given)
    except httpx.InvalidURL as error:
        raise Invalid(f"{base.host} names {visible(given)[:_QUOTED]!r} as an address; is it a registry?") from error


def _reader(path: Path) -> Body:
    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                yield part

    return read


def _manifest(files: Sequence[ExportedFile], empty: str) -> dict[str, object]:
    return {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": _ARTIFACT,
        "config": {"mediaType": _EMPTY_TYPE, "digest": f"sha256:{empty}", "size": len(_EMPTY)},
        "layers": [
            {
                "mediaType": _LAYER,
                "digest": f"sha256:{file.sha256}",
                "size": file.bytes,
                "annotations": {"org.opencontainers.image.title": file.name},
            }
            for file in files
        ],
    }
