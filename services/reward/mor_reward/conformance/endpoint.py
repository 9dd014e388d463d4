"""Reward endpoint under test: calls bounded in time and bytes, no trust in its responses."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import httpx
from mor_core.errors import Invalid, Unauthorized, Unavailable
from mor_core.failures import describe, quote_failure
from mor_core.images import sha256
from mor_core.service_addresses import FORM_OF_ADDRESS, REWARD, is_address, other_service
from mor_core.wire import Card, ImagePart, ItemScores, Message, ScoreItem, ScoreRequest, ScoreResponse, TextPart
from PIL import Image
from pydantic import ValidationError

_MAX_BYTES = 1 << 20
"""Largest response body that is read, in bytes; scores of a full request need far less."""
_SIDE = 48
"""Width and height of the test pictures in pixels: small to send, large enough for any encoder."""
_SHOWN = 200
"""Bytes of a response body that an error message quotes."""


class ClauseBroken(Exception):
    """Violation of a clause; ``str()`` names what was received and what is expected."""


class CheckSkipped(Exception):
    """Reason why a clause cannot be checked at this endpoint."""


class ProbeReply:
    """Response of an endpoint: status, headers and at most 1 MiB of body."""

    def __init__(self, status: int, headers: httpx.Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def expect(self, *statuses: int) -> ProbeReply:
        """Require one of ``statuses``.

        Raises:
            ClauseBroken: the status is another one.
        """
        if self.status not in statuses:
            expected = " or ".join(map(str, statuses))
            raise ClauseBroken(
                f"returned {self.status}, expected {expected}: {self.body[:_SHOWN].decode(errors='replace')}"
            )
        return self

    def expect_problem(self, *statuses: int) -> None:
        """Require one of ``statuses`` with a problem+json body.

        Raises:
            ClauseBroken: the status is another one, or the body is not problem+json.
        """
        self.expect(*statuses)
        kind = self.headers.get("content-type", "").partition(";")[0]
        if kind != "application/problem+json":
            raise ClauseBroken(
                f"the error {self.status} has content type {kind or 'none'}, expected application/problem+json"
            )

    def json(self) -> Any:
        """Parse the body.

        Raises:
            ClauseBroken: the body is not JSON.
        """
        try:
            return httpx.Response(200, content=self.body).json()
        except ValueError as error:
            raise ClauseBroken(f"the response is not JSON: {self.body[:_SHOWN].decode(errors='replace')}") from error


class Endpoint:
    """Client of the service at ``url``. A call fails after ``timeout_s`` seconds without data."""

    def __init__(self, url: str, token: str, *, timeout_s: float, transport: httpx.BaseTransport | None = None) -> None:
        """Make the client; it connects with the first call.

        Raises:
            Invalid: ``url`` is no address.
        """
        if not is_address(url):
            raise Invalid(f"{url!r} is no address of a service; write it as {FORM_OF_ADDRESS}")
        self.token = token
        self._http = httpx.Client(base_url=url.rstrip("/"), timeout=timeout_s, transport=transport, trust_env=False)
        self.url = url
        self.timeout_s = timeout_s

    def close(self) -> None:
        self._http.close()

    def check_reachable(self) -> None:
        """Check that the address can be reached, is not of another service, and takes the endpoint's token.

        Otherwise nearly every clause would be broken for one reason, which is none of the contract.

        Raises:
            Unavailable: the address cannot be reached.
            Invalid: another service of MoR stands there.
            Unauthorized: the service refuses the token.
        """
        try:
            reply = self._http.get("/v1/card", headers={"Authorization": f"Bearer {self.token}"} if self.token else {})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"{self.url} cannot be reached ({quote_failure(error)}); check that the service runs there"
            ) from error
        if (other := other_service(reply.headers, REWARD)) is not None:
            raise Invalid(f"{self.url}: {other}; give the address of the reward service")
        if reply.status_code in (401, 403):
            given = "refuses the token" if self.token else "needs a token, and none was given"
            raise Unauthorized(
                f"{self.url} {given} ({reply.status_code} for /v1/card); give --secret-file the file that "
                "'mor-reward token --secret-file' wrote for this service"
            )

    def call(
        self, method: str, path: str, *, token: str | None = None, content: bytes | None = None, **headers: str
    ) -> ProbeReply:
        """Make one call with the endpoint's token, or with ``token``; an empty ``token`` sends none.

        Raises:
            ClauseBroken: the connection failed, or the response is too large or too late.
        """
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token := self.token if token is None else token:
            sent["Authorization"] = f"Bearer {token}"
        if content is not None:
            sent["Content-Type"] = "application/json"
        try:
            with self._http.stream(method, path, content=content, headers=sent) as response:
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MAX_BYTES:
                        raise ClauseBroken(f"{path} returns more than {_MAX_BYTES} bytes")
                return ProbeReply(response.status_code, response.headers, body)
        except httpx.TimeoutException as error:
            raise ClauseBroken(f"{path} returned no data for {self.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise ClauseBroken(f"{path}: {quote_failure(error)}") from error

    @cached_property
    def card(self) -> Card:
        """Card of the endpoint.

        Raises:
            ClauseBroken: the call fails or returns no card of the contract.
        """
        answer = self.call("GET", "/v1/card").expect(200)
        try:
            return Card.model_validate_json(answer.body, extra="ignore")
        except ValidationError as error:
            raise ClauseBroken(f"/v1/card returns no card: {describe(error)}") from error

    def post(self, body: bytes, **headers: str) -> ProbeReply:
        """Send ``body`` to ``POST /v1/score``."""
        return self.call("POST", "/v1/score", content=body, **headers)

    def score(self, items: Sequence[ScoreItem], pictures: Mapping[str, bytes]) -> list[ItemScores]:
        """Score items and return the results in their order; send picture bytes if the service requests them.

        Raises:
            ClauseBroken: the response is no ``ScoreResponse`` for these items.
        """
        answer = self.post(encode_request(items))
        if answer.status == 409:
            answer = self.post(encode_request(items, pictures))
        try:
            found = ScoreResponse.model_validate_json(answer.expect(200).body, extra="ignore")
        except ValidationError as error:
            raise ClauseBroken(f"the response is no ScoreResponse: {describe(error)}") from error
        by_id = {entry.item_id: entry for entry in found.items}
        if len(found.items) != len(items) or set(by_id) != {item.item_id for item in items}:
            raise ClauseBroken(f"sent {len(items)} items, received {len(found.items)} with ids {sorted(by_id)[:3]}")
        return [by_id[item.item_id] for item in items]

    def scores(self, items: Sequence[ScoreItem], pictures: Mapping[str, bytes]) -> list[tuple[float, ...]]:
        """Score items and return the scores of each.

        Raises:
            ClauseBroken: an item is an error or has a wrong number of scores.
            CheckSkipped: the client cannot judge the example items.
        """
        found: list[tuple[float, ...]] = []
        for item, entry in zip(items, self.score(items, pictures), strict=True):
            if entry.status == "unscorable":
                raise CheckSkipped(f"the client cannot judge the example: {entry.detail or 'no reason given'}")
            if entry.scores is None:
                raise ClauseBroken(f"the item is an error: {entry.detail or 'no reason given'}")
            if len(entry.scores) != len(item.responses):
                raise ClauseBroken(f"{len(entry.scores)} scores for {len(item.responses)} responses")
            found.append(entry.scores)
        return found


def encode_request(items: Sequence[ScoreItem], pictures: Mapping[str, bytes] | None = None) -> bytes:
    """Encode a score request as JSON."""
    return ScoreRequest.model_construct(items=tuple(items), images=dict(pictures or {})).model_dump_json().encode()


def new_picture() -> tuple[str, bytes]:
    """Make a picture of noise, unknown to the service, and return its hash and bytes."""
    content = io.BytesIO()
    Image.frombytes("RGB", (_SIDE, _SIDE), os.urandom(3 * _SIDE**2)).save(content, "PNG")
    return sha256(content.getvalue()), content.getvalue()


def example(name: str, picture: str, *responses: str) -> ScoreItem:
    """Make an item: a question about a picture with a group of responses."""
    message = Message(role="user", content=(ImagePart.of(picture), TextPart(text="What does the picture show?")))
    return ScoreItem(item_id=name, messages=(message,), responses=responses or RESPONSES)


RESPONSES = ("Coloured noise without any shape.", "A dog on a beach.", "I cannot tell.")
