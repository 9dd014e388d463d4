"""A reward endpoint as a router sees it: bounded in time and bytes, and everything it answers may be wrong."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import httpx
from mor_core.errors import Unavailable
from mor_core.images import sha256
from mor_core.problems import describe
from mor_core.wire import Card, ImagePart, ItemScores, Message, ScoreItem, ScoreRequest, ScoreResponse, TextPart
from PIL import Image
from pydantic import ValidationError

_MOST_BYTES = 1 << 20
_SIDE = 48
_SHOWN = 200


class Broken(Exception):
    """A clause is not kept; ``str()`` says what was got and what is wanted."""


class Skipped(Exception):
    """A clause that cannot be tried at this endpoint."""


class Answer:
    """Status, headers and at most 1 MB of body."""

    def __init__(self, status: int, headers: httpx.Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def expect(self, *statuses: int) -> Answer:
        """
        Raises:
            Broken: it is another status.
        """
        if self.status not in statuses:
            wanted = " or ".join(map(str, statuses))
            raise Broken(f"answered {self.status}, {wanted} is wanted: {self.body[:_SHOWN].decode(errors='replace')}")
        return self

    def expect_problem(self, *statuses: int) -> None:
        """
        Raises:
            Broken: it is another status, or an error that is no problem+json.
        """
        self.expect(*statuses)
        kind = self.headers.get("content-type", "").partition(";")[0]
        if kind != "application/problem+json":
            raise Broken(f"the error {self.status} is {kind or 'without a type'}; application/problem+json is wanted")

    def json(self) -> Any:
        """
        Raises:
            Broken: the body is no JSON.
        """
        try:
            return httpx.Response(200, content=self.body).json()
        except ValueError as error:
            raise Broken(f"the answer is not JSON: {self.body[:_SHOWN].decode(errors='replace')}") from error


class Endpoint:
    """The service at ``url``. Every call ends within ``timeout_s`` seconds of silence."""

    def __init__(self, url: str, token: str, *, timeout_s: float, transport: httpx.BaseTransport | None = None) -> None:
        self.token = token
        self._http = httpx.Client(base_url=url.rstrip("/"), timeout=timeout_s, transport=transport)
        self.url = url
        self.timeout_s = timeout_s

    def close(self) -> None:
        self._http.close()

    def reach(self) -> None:
        """
        Raises:
            Unavailable: nobody answers at this address.
        """
        try:
            self._http.get("/healthz")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"{self.url} does not answer ({error or type(error).__name__}); is the service running there?"
            ) from error

    def call(
        self, method: str, path: str, *, token: str | None = None, content: bytes | None = None, **headers: str
    ) -> Answer:
        """One call with the endpoint's token, or with ``token``, or with none where that is empty.

        Raises:
            Broken: the connection failed, or the answer is too large or too late.
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
                    if len(body) > _MOST_BYTES:
                        raise Broken(f"{path} answers with more than {_MOST_BYTES} bytes")
                return Answer(response.status_code, response.headers, body)
        except httpx.TimeoutException as error:
            raise Broken(f"{path} gave no answer in {self.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise Broken(f"{path}: {error or type(error).__name__}") from error

    @cached_property
    def card(self) -> Card:
        """
        Raises:
            Broken: it is not to be had, or no card of the contract.
        """
        answer = self.call("GET", "/v1/card").expect(200)
        try:
            return Card.model_validate_json(answer.body)
        except ValidationError as error:
            raise Broken(f"/v1/card is no card: {describe(error)}") from error

    def post(self, body: bytes, **headers: str) -> Answer:
        """``POST /v1/score`` as it is."""
        return self.call("POST", "/v1/score", content=body, **headers)

    def score(self, items: Sequence[ScoreItem], pictures: Mapping[str, bytes]) -> list[ItemScores]:
        """What the service says of each item, in their order; bytes of pictures go where they are missing.

        Raises:
            Broken: the answer is no ``ScoreResponse`` about these items.
        """
        answer = self.post(encoded(items))
        if answer.status == 409:
            answer = self.post(encoded(items, pictures))
        try:
            found = ScoreResponse.model_validate_json(answer.expect(200).body)
        except ValidationError as error:
            raise Broken(f"the answer is no ScoreResponse: {describe(error)}") from error
        by_id = {entry.item_id: entry for entry in found.items}
        if len(found.items) != len(items) or set(by_id) != {item.item_id for item in items}:
            raise Broken(f"asked about {len(items)} items, got {len(found.items)} with ids {sorted(by_id)[:3]}")
        return [by_id[item.item_id] for item in items]

    def scores(self, items: Sequence[ScoreItem], pictures: Mapping[str, bytes]) -> list[tuple[float, ...]]:
        """The scores of each item.

        Raises:
            Broken: an item is an error or has a wrong number of scores.
            Skipped: this client cannot judge the items that conformance asks about.
        """
        found: list[tuple[float, ...]] = []
        for item, entry in zip(items, self.score(items, pictures), strict=True):
            if entry.status == "unscorable":
                raise Skipped(f"the client cannot judge the example: {entry.detail or 'no reason given'}")
            if entry.scores is None:
                raise Broken(f"the item is an error: {entry.detail or 'no reason given'}")
            if len(entry.scores) != len(item.responses):
                raise Broken(f"{len(entry.scores)} scores for {len(item.responses)} responses")
            found.append(entry.scores)
        return found


def encoded(items: Sequence[ScoreItem], pictures: Mapping[str, bytes] | None = None) -> bytes:
    """A score request as bytes of JSON."""
    return ScoreRequest.model_construct(items=tuple(items), images=dict(pictures or {})).model_dump_json().encode()


def new_picture() -> tuple[str, bytes]:
    """Hash and bytes of a picture that nobody has seen: noise."""
    content = io.BytesIO()
    Image.frombytes("RGB", (_SIDE, _SIDE), os.urandom(3 * _SIDE**2)).save(content, "PNG")
    return sha256(content.getvalue()), content.getvalue()


def example(name: str, picture: str, *responses: str) -> ScoreItem:
    """A question about a picture with a group of responses."""
    message = Message(role="user", content=(ImagePart.of(picture), TextPart(text="What does the picture show?")))
    return ScoreItem(item_id=name, messages=(message,), responses=responses or RESPONSES)


RESPONSES = ("Coloured noise without any shape.", "A dog on a beach.", "I cannot tell.")
