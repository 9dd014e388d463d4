"""Calls to one client's reward service, bounded in time, bytes and attempts. Nothing in its answers is trusted."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import httpx
import stamina
import structlog
from mor_core.certificates import client_context
from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.missing_images import MOST_ROUNDS, ImageRounds
from mor_core.request_batching import split_requests
from mor_core.service_addresses import REWARD
from mor_core.wire import Card, ScoreItem, ScoreRequest, image_hashes
from pydantic import SecretStr, ValidationError

from mor_router import metrics
from mor_router.clients.call_limit import CallLimit
from mor_router.clients.caller import RUNS, Caller
from mor_router.clients.circuit import CallOutcome, Circuit, CircuitOpen, CircuitState
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.http import BoundedHttpClient, bearer_client
from mor_router.clients.outbound import outbound_transport
from mor_router.clients.probe_item import PROBE_IMAGES, PROBE_ITEM
from mor_router.clients.registry import ClientRecord
from mor_router.clients.responses import (
    ClientFailure,
    ClientResponse,
    ResponseStatus,
    parse_response,
    private,
    response_size_limit,
)
from mor_router.config import RouterSettings

_CARD_BYTES = 64 << 10
"""Largest card that is read; a card of the contract has a few hundred bytes."""
_RETRY_FIRST_S = 0.05
"""Seconds before the first retry: short compared with the scoring of a group."""
_RETRY_MOST_S = 2.0
"""Longest seconds between retries, so that several fit in a deadline of 30 s."""
_NO_LIMIT = 1 << 10
"""Limits of a client whose card is not known: above any ``client_concurrency`` and ``items_per_request`` in use."""
_DEADLINE_STEP_MS = 250
"""Step of the deadline that a client gets. Milliseconds of work before a live call would tell it from a honeypot."""
_CIRCUIT_VALUES: dict[CircuitState, int] = {"closed": 0, "half_open": 1, "open": 2}
_MOST_CALLERS = 64
"""Callers with a circuit of their own; an older one's circuit is forgotten, and begins closed."""
_NOT_CALLED = "failed too often and is not called for a while; "
_LOG_EVERY_S = 30.0
"""Seconds between log lines about one client's failures: each call may fail, and a line for each would fill the log."""

Withdrawal = Callable[[str], str | None]
"""Function from an item's id to the reason why it may not leave any more; ``None`` where it may."""

log = structlog.get_logger(__name__)


def tls_context(settings: RouterSettings) -> ssl.SSLContext:
    """Return a TLS context that verifies certificates against ``ca_file`` or the system's authorities."""
    names = "MOR_CA_FILE, MOR_CLIENT_CERT_FILE, MOR_CLIENT_KEY_FILE"
    return client_context(names, settings.ca_file, settings.client_cert_file, settings.client_key_file)


@dataclass(frozen=True)
class _ScoreCall:
    """Call with some items, through all its attempts."""

    items: Sequence[ScoreItem]
    images: Mapping[str, bytes]
    deadline: float
    """Time of the event loop, seconds."""
    caller: Caller = RUNS
    patient: bool = True
    """True where the deadline is not earlier than the settings grant."""
    withdrawal: Withdrawal = lambda item_id: None

    def withdrawn(self) -> dict[str, ClientResponse]:
        """Return the answers for the items that may not leave any more."""
        reasons = {item.item_id: self.withdrawal(item.item_id) for item in self.items}
        return {
            name: ClientResponse("not_asked", detail=reason, of_call=True) for name, reason in reasons.items() if reason
        }


class RewardClient:
    """Connection to one client. A call returns a response for every item, whatever the client does."""

    def __init__(
        self,
        record: ClientRecord,
        secret: SecretStr,
        settings: RouterSettings,
        egress: EgressPolicy,
        tls: ssl.SSLContext,
        *,
        circuit: Circuit,
    ) -> None:
        self.record = record
        self.circuit = circuit
        """Circuit of the runs."""
        self._callers_circuits: dict[Caller, Circuit] = {}
        """Caller -> its circuit, so that what one caller provokes keeps no client from the runs."""
        self.last_error: str | None = None
        self._settings = settings
        self._limits = record.card.limits if record.card is not None else None
        concurrency = min(settings.client_concurrency, self._limits.concurrency if self._limits else _NO_LIMIT)
        self._slots = CallLimit(concurrency)
        self.answered_at = -math.inf
        """Monotonic time at which it last answered a call of runs."""
        self._unreachable = False
        """True after a call that found no connection, or a card that did not come."""
        self._logged_at = -math.inf
        self._unlogged = 0
        """Failures since the last log line."""
        limits = httpx.Limits(max_connections=concurrency + 1, keepalive_expiry=30)
        http = bearer_client(outbound_transport(egress, record.source, settings, tls, limits), secret)
        self._http = BoundedHttpClient(http, record.url, secret, REWARD)

    async def close(self) -> None:
        await self._http.close()

    async def card(self, timeout_s: float) -> Card:
        """Request the client's card.

        Raises:
            ClientFailure: no card in time, or not a card of the contract.
        """
        with self._boundary(f"no card within {timeout_s:g} s"):
            async with asyncio.timeout(timeout_s):
                body = await self._http.get("/v1/card", _CARD_BYTES, timeout_s)
            try:
                return Card.model_validate_json(body, extra="ignore")
            except ValidationError as error:
                raise ClientFailure("schema", f"/v1/card is not a card of the contract: {describe(error)}") from error

    @contextmanager
    def _boundary(self, late: str) -> Iterator[None]:
        """Turn whatever the client provokes in the body into a ``ClientFailure``, so that it harms nobody else.

        ``late``: message for a deadline that passed.
        """
        try:
            yield
        except ClientFailure:
            raise
        except TimeoutError as error:
            raise ClientFailure("timeout", late) from error
        except Exception as error:
            kind = type(error).__name__
            log.error("a client's answer could not be processed", client=self.record.name, exc_info=error)
            raise ClientFailure("unexpected", f"its answer could not be processed ({kind})") from error

    async def score(
        self,
        items: Sequence[ScoreItem],
        images: Mapping[str, bytes],
        deadline_s: float,
        caller: Caller = RUNS,
        withdrawal: Withdrawal = lambda item_id: None,
    ) -> dict[str, ClientResponse]:
        """Return a response for each of ``items`` within ``deadline_s`` seconds.

        ``withdrawal`` is asked before each attempt, and before pictures follow their hashes.

        A call that ran out of time counts against the client only if it had the time that the settings grant: a caller
        with a short deadline of its own must not make the router stop calling the client.
        """
        deadline = asyncio.get_running_loop().time() + deadline_s
        patient = deadline_s >= self._settings.deadline_s
        oversized = self._reject_oversized(items, images, caller)
        sent = [item for item in items if item.item_id not in oversized]
        requests = split_requests(
            sent,
            images,
            most_items=min(self._settings.items_per_request, self._limits.items if self._limits else _NO_LIMIT),
            most_bytes=self._limits.request_bytes if self._limits else None,
        )
        calls = [_ScoreCall(request, images, deadline, caller, patient, withdrawal) for request in requests]
        answers = await asyncio.gather(*map(self._score, calls))
        return oversized | {name: answer for part in answers for name, answer in part.items()}

    def _reject_oversized(
        self, items: Sequence[ScoreItem], images: Mapping[str, bytes], caller: Caller
    ) -> dict[str, ClientResponse]:
        """Return responses for items with more responses, or a larger image, than the card allows.

        They are not sent: the client would refuse the whole request for the responses, and the item for the image.
        """
        if self._limits is None:
            return {}
        most, most_bytes = self._limits.responses, self._limits.image_bytes
        oversized: dict[str, ClientResponse] = {}
        for item in items:
            largest = max((len(images[digest]) for digest in image_hashes(item.messages)), default=0)
            if len(item.responses) > most:
                detail = f"{len(item.responses)} responses; its card takes {most} per item"
                oversized[item.item_id] = ClientResponse("error", detail=detail)
            elif most_bytes is not None and largest > most_bytes:
                detail = f"an image of {largest} bytes; its card takes {most_bytes} per image"
                oversized[item.item_id] = ClientResponse("unscorable", detail=detail)
        if caller == RUNS:
            metrics.CLIENT_FAILURES.labels(self.record.name, "item").inc(len(oversized))
        return oversized

    async def _score(self, call: _ScoreCall) -> dict[str, ClientResponse]:
        started = time.perf_counter()
        name = self.record.name
        status: ResponseStatus = "error"
        try:
            answers = await self._call_guarded(call)
        except ClientFailure as failure:
            status = "timeout" if failure.reason == "timeout" else "error"
            status = "circuit_open" if failure.reason == "circuit_open" else status
            if call.caller == RUNS:
                self.last_error = str(failure)
                metrics.CLIENT_FAILURES.labels(name, failure.reason).inc()
                self._unreachable = self._unreachable or failure.reason == "connect"
                if failure.reason != "circuit_open":
                    self.log_failure(failure)
            seconds = time.perf_counter() - started
            failed = ClientResponse(status, detail=str(failure), seconds=seconds, of_call=True)
            return {item.item_id: failed for item in call.items} | call.withdrawn()
        seconds = time.perf_counter() - started
        answered = [answer for answer in answers.values() if answer.status != "not_asked"]
        if call.caller == RUNS and answered:
            metrics.CLIENT_SECONDS.labels(name).observe(seconds)
            broken = [answer for answer in answered if answer.status != "ok"]
            metrics.CLIENT_FAILURES.labels(name, "item").inc(len(broken))
            self.last_error = broken[0].detail if broken else None
            if any(answer.status != "error" for answer in answered):
                self.answered_at = time.monotonic()
        return {item_id: replace(answer, seconds=seconds) for item_id, answer in answers.items()}

    def log_failure(self, failure: ClientFailure) -> None:
        """Log a failed call, or count it for the next line."""
        now = time.monotonic()
        if now - self._logged_at < _LOG_EVERY_S:
            self._unlogged += 1
            return
        log.warning(
            "a client failed",
            client=self.record.name,
            reason=failure.reason,
            detail=str(failure),
            failures_since_last_line=self._unlogged,
        )
        self._logged_at, self._unlogged = now, 0

    async def _call_guarded(self, call: _ScoreCall) -> dict[str, ClientResponse]:
        """Call the client once, under the concurrency limit, the caller's circuit breaker and the deadline."""
        async with self._slots.hold(call.caller, call.deadline):
            circuit = self._circuit_for(call.caller)
            try:
                with circuit.call() as outcome:
                    return await self._call_observed(call, outcome)
            except CircuitOpen as refusal:
                reason = f"{_NOT_CALLED}{self._last_error_for(call.caller)}"
                raise ClientFailure("circuit_open", reason) from refusal
            finally:
                if call.caller == RUNS:
                    metrics.CIRCUIT.labels(self.record.name).set(_CIRCUIT_VALUES[circuit.state])

    def _last_error_for(self, caller: Caller) -> str:
        """Return why a caller's circuit is open. Other callers do not learn what the calls of runs met."""
        if caller != RUNS:
            return "your earlier calls to it failed"
        return (self.last_error or "no reason given").removeprefix(_NOT_CALLED)

    def _circuit_for(self, caller: Caller) -> Circuit:
        """Return the circuit that a caller's calls count for."""
        if caller == RUNS:
            return self.circuit
        if caller not in self._callers_circuits:
            while len(self._callers_circuits) >= _MOST_CALLERS:
                del self._callers_circuits[next(iter(self._callers_circuits))]
            self._callers_circuits[caller] = self.circuit.sibling()
        return self._callers_circuits[caller]

    async def _call_observed(self, call: _ScoreCall, outcome: CallOutcome) -> dict[str, ClientResponse]:
        """Call the client and state in ``outcome`` what the call shows about it."""
        try:
            with self._boundary("no answer within the deadline"):
                async with asyncio.timeout_at(call.deadline):
                    answers = await self._call_retried(call)
        except ClientFailure as failure:
            outcome.failure = 1.0 if call.patient or failure.reason != "timeout" else None
            raise
        answered = [answer for answer in answers.values() if answer.status != "not_asked"]
        if answered:
            outcome.failure = sum(answer.status == "error" for answer in answered) / len(answered)
        return answers

    async def _call_retried(self, call: _ScoreCall) -> dict[str, ClientResponse]:
        def should_retry(error: Exception) -> bool | float:
            if not isinstance(error, ClientFailure) or not error.retry:
                return False
            left = call.deadline - asyncio.get_running_loop().time()
            if error.retry_after_s is not None and error.retry_after_s >= left:
                return False
            if call.caller == RUNS:
                metrics.CLIENT_RETRIES.labels(self.record.name).inc()
            return True if error.retry_after_s is None else error.retry_after_s + random.uniform(0, _RETRY_FIRST_S)

        async for attempt in stamina.retry_context(
            on=should_retry,
            attempts=self._settings.client_attempts,
            timeout=None,
            wait_initial=_RETRY_FIRST_S,
            wait_max=_RETRY_MOST_S,
            wait_jitter=_RETRY_FIRST_S * 4,
        ):
            with attempt:
                return await self._request_scores(call)
        raise AssertionError("stamina re-raises the last failure")

    async def _request_scores(self, call: _ScoreCall) -> dict[str, ClientResponse]:
        """Send the items with images by hash, and again with the bytes of the images that the client misses."""
        rounds = ImageRounds(
            {digest: call.images[digest] for item in call.items for digest in image_hashes(item.messages)}
        )
        for _ in range(MOST_ROUNDS):
            withdrawn = call.withdrawn()
            items = [item for item in call.items if item.item_id not in withdrawn]
            if not items:
                return withdrawn
            named = {digest for item in items for digest in image_hashes(item.messages)}
            sent = {digest: content for digest, content in rounds.sent.items() if digest in named}
            content = ScoreRequest.model_construct(items=tuple(items), images=sent).model_dump_json().encode()
            if self._limits is not None and len(items) == 1 and len(content) > self._limits.request_bytes:
                detail = f"a request of {len(content)} bytes; its card takes {self._limits.request_bytes}"
                return withdrawn | {items[0].item_id: ClientResponse("unscorable", detail=detail)}
            left_ms = _left_ms(call.deadline - asyncio.get_running_loop().time())
            with private(content):
                status, answer = await self._http.post("/v1/score", content, response_size_limit(items), left_ms)
                metrics.CLIENT_BYTES.labels(self.record.name, "sent").inc(len(content))
                metrics.CLIENT_BYTES.labels(self.record.name, "received").inc(len(answer))
                if status != 409:
                    return withdrawn | parse_response(answer, items)
            try:
                rounds.take(answer)
            except Invalid as error:
                raise ClientFailure("images", str(error)) from error
        raise ClientFailure("images", "keeps requesting images that it was sent; is its image cache too small?")

    async def probe(self, timeout_s: float) -> Card:
        """Request the card; while the client is on trial, send the probe item, which may close the circuit.

        A client that could not be reached before is on trial at once.

        Raises:
            ClientFailure: no card in time.
        """
        try:
            card = await self.card(timeout_s)
        except ClientFailure:
            self._unreachable = True
            raise
        if self._unreachable:
            self._unreachable = False
            self.circuit.begin_trial()
        deadline = asyncio.get_running_loop().time() + timeout_s
        with suppress(ClientFailure):
            while self.circuit.state == "half_open":
                await self._call_guarded(_ScoreCall([PROBE_ITEM], PROBE_IMAGES, deadline))
        return card


def _left_ms(left_s: float) -> int:
    """Round the time that is left down to a step where it has several, in milliseconds; at least 1."""
    left_ms = math.floor(1000 * left_s)
    stepped = left_ms // _DEADLINE_STEP_MS * _DEADLINE_STEP_MS
    return max(1, stepped if stepped > _DEADLINE_STEP_MS else left_ms)
