"""Connections to the clients of the registry, and the tokens that the router accepts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Collection, Mapping

import structlog
from mor_core.auth import Principal, Scope, TokenFile
from mor_core.clients import State
from mor_core.errors import Invalid, MorError, NotFound, Unavailable
from mor_core.failures import describe_failure
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import Limits, PromptOrigin
from pydantic import SecretStr
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.clients.change_limit import ChangeLimit
from mor_router.clients.circuit import Circuit, CircuitLimits, CircuitState
from mor_router.clients.client import RewardClient, tls_context
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.clients.responses import ClientFailure
from mor_router.clients.secret_store import SecretOwner, SecretStore
from mor_router.config import RouterSettings
from mor_router.state_mark import read_whole

_REFRESH_S = 1.0
"""Seconds between reads of the registry: a change by another replica takes effect within them."""
_PROBE_TIMEOUT_S = 5.0
"""Seconds for the card of a running client: a third of the default ``probe_interval_s``, so probes do not pile up."""
_AWAY_PROBE_S = 2.0
"""Mean seconds between probes of a client whose circuit is not closed: the run goes on that soon after it returns."""
_MOST_CARD_CHANGES = 8
"""Changes of a client's card that are logged within an hour."""

log = structlog.get_logger(__name__)


class ClientPool:
    """Connections, one ``RewardClient`` for each enrolled client, refreshed while the registry changes."""

    def __init__(
        self, registry: ClientRegistry, secret_store: SecretStore, settings: RouterSettings, egress: EgressPolicy
    ) -> None:
        self._registry = registry
        self._secret_store = secret_store
        self._settings = settings
        self._egress = egress
        self._tls = tls_context(settings)
        self._clients: dict[str, RewardClient] = {}
        self._identity: dict[str, tuple[str, Limits | None]] = {}
        self._seals: dict[str, tuple[SecretOwner, str, int]] = {}
        """Client -> owner and ciphertext that were found to belong together, with the keys at that time."""
        self._generations: dict[str, int] = {}
        """Client -> the latest generation of its credentials that was seen, also of a client that was removed."""
        self._broken: dict[str, str] = {}
        self._circuits: dict[str, tuple[str, Circuit]] = {}
        """Client -> revision and circuit. A circuit outlives the reconnection after a change of the card, so that a
        client cannot reset it by new limits there."""
        self._card_changes = ChangeLimit(_MOST_CARD_CHANGES, 3600)
        self._removed: dict[str, float] = {}
        """Client that was removed lately -> time."""
        self._refreshing = asyncio.Lock()
        self.records: dict[str, ClientRecord] = {}
        self.page_tokens: dict[str, str] = {}
        """SHA-256 of a page token -> the client whose page it opens."""
        self._shared_page_tokens: list[list[str]] = []
        self.problem: str | None = "the registry of clients has not been read yet"
        """Reason why the present state of the registry is not known, if any; for ``/readyz``."""

    def names_in_state(self, *states: State) -> list[str]:
        """Return the names of the clients in one of ``states``."""
        return [name for name, record in self.records.items() if record.state in states]

    def refusal(self, name: str, origin: PromptOrigin) -> str | None:
        """Return why a client may not be sent a prompt of this origin; ``None`` where it may."""
        record = self.records.get(name)
        return f"no client {name!r} is known" if record is None else record.refusal(origin)

    def withdrawal(self, name: str, origin: PromptOrigin) -> str | None:
        """Return why a prompt that waits for a client may not leave any more; ``None`` where it may."""
        record = self.records.get(name)
        paused = record is not None and record.state == "paused"
        return "it was paused meanwhile" if paused else self.refusal(name, origin)

    def unasked(self, origin: PromptOrigin) -> dict[str, str]:
        """Map the clients that may not be sent a prompt of this origin to the reason."""
        refusals = {name: self.refusal(name, origin) for name in self.records}
        return {name: reason for name, reason in refusals.items() if reason is not None}

    def client(self, name: str) -> RewardClient:
        """Return the connection to a client.

        Raises:
            NotFound: not enrolled.
            ClientFailure: its secret cannot be decrypted.
        """
        if name in self._broken:
            raise ClientFailure("secret", self._broken[name])
        if name not in self._clients:
            raise NotFound(f"no client {name!r}; 'mor client list' shows all")
        return self._clients[name]

    def last_error(self, name: str) -> str | None:
        """Return why the last call to a client failed; ``None`` where it did not."""
        return self._broken.get(name) or self._clients[name].last_error

    def is_reliable(self, name: str) -> bool:
        """Return whether the latest calls to a client show that it answers."""
        return name in self._circuits and self._circuits[name][1].reliable

    def has_answered_since(self, name: str, at: float) -> bool:
        """Return whether a client has answered a call of runs after ``at``, in monotonic time."""
        return name in self._clients and self._clients[name].answered_at > at

    def circuit_state(self, name: str) -> CircuitState:
        """Return the state of a client's circuit; ``closed`` where it is not enrolled."""
        return self._circuits[name][1].state if name in self._circuits else "closed"

    def connect(self, record: ClientRecord, egress: EgressPolicy | None = None) -> RewardClient:
        """Open a connection to a client that need not be enrolled yet; the caller closes it.

        ``egress``: policy in place of the router's.

        Raises:
            Invalid: its secret cannot be decrypted.
        """
        return self.open(record, self._secret_store.decrypt(record.secret, record.owner), egress)

    def open(self, record: ClientRecord, secret: SecretStr, egress: EgressPolicy | None = None) -> RewardClient:
        """Open a connection with a secret that is not the record's; the caller closes it."""
        revision, circuit = self._circuits.get(record.name, ("", None))
        if circuit is None or revision != record.revision:
            circuit = self._new_circuit()
        return RewardClient(record, secret, self._settings, egress or self._egress, self._tls, circuit=circuit)

    def _new_circuit(self) -> Circuit:
        settings = self._settings
        return Circuit(
            CircuitLimits(
                calls=settings.circuit_calls,
                window_s=settings.circuit_window_s,
                least_calls=settings.circuit_least_calls,
                failure_share=settings.circuit_failure_share,
                open_s=settings.circuit_open_s,
                longest_open_s=settings.circuit_longest_open_s,
                trials=settings.circuit_trials,
            )
        )

    async def refresh(self) -> None:
        """Read the registry, then connect, reconnect and disconnect the clients that changed.

        Raises:
            Unavailable: the queue server lost the registry; connections and circuits stay until it is restored.
        """
        async with self._refreshing:
            self._secret_store.refresh()
            found = await read_whole(self._registry.redis, self._registry.all)
            records = {record.name: record for record in found}
            for record in records.values():
                await self._follow(record)
            for name in set(self._identity) - set(records):
                await self._drop(name)
                self._circuits.pop(name, None)
                self._removed[name] = time.monotonic()
            self._remove_series(records)
            for name, record in records.items():
                metrics.QUARANTINED.labels(name).set(record.state == "quarantined")
                metrics.DISTRUSTED.labels(name).set(record.distrusted_at is not None)
                metrics.UNRELIABLE.labels(name).set(record.unreliable_at is not None)
            self.records = records
            metrics.ACTIVE_CLIENTS.set(len(self.names_in_state("active")))
            self._index_page_tokens(records)
            self.problem = None

    async def _follow(self, record: ClientRecord) -> None:
        """Check a record that changed, and connect anew where the change concerns the connection."""
        name, identity = record.name, (record.revision, record.card.limits if record.card else None)
        seal = record.owner, record.secret, self._secret_store.rotations
        if self._identity.get(name) == identity and self._seals.get(name) == seal:
            return
        try:
            secret = self._secret_store.decrypt(record.secret, record.owner)
            self._check_generation(record)
            if self._identity.get(name) != identity or name not in self._clients:
                await self._drop(name)
                self._clients[name] = client = self.open(record, secret)
                self._circuits[name] = record.revision, client.circuit
        except Exception as error:  # whatever a record provokes, it concerns its client alone
            await self._drop(name)
            self._broken[name] = describe_failure(error)
            log.error("a client cannot be called", client=name, reason=self._broken[name])
        self._identity[name], self._seals[name] = identity, seal

    def _check_generation(self, record: ClientRecord) -> None:
        """Check that nobody put an earlier record of the client back, whose tokens were replaced since.

        Raises:
            Invalid: it is an earlier one.
        """
        latest = self._generations.get(record.name, 0)
        if record.generation < latest:
            raise Invalid(
                f"the stored record of client {record.name!r} is older than one that this router has read "
                f"(generation {record.generation}, then {latest}); rotate its tokens, or restart the routers if you "
                "imported an earlier state"
            )
        self._generations[record.name] = record.generation

    def _index_page_tokens(self, records: Mapping[str, ClientRecord]) -> None:
        """Index the clients by their page tokens. One that several clients have opens no page, nor does one of a record
        that was rewritten."""
        holders: dict[str, list[str]] = {}
        for name, record in records.items():
            if name in self._broken:
                continue
            holders.setdefault(record.inbound_sha256, []).append(name)
        self.page_tokens = {digest: names[0] for digest, names in holders.items() if len(names) == 1}
        shared = [names for names in holders.values() if len(names) > 1]
        if shared != self._shared_page_tokens:
            self._shared_page_tokens = shared
            log.error("clients share a page token, which opens no page; rotate the tokens", clients=shared)

    def _remove_series(self, enrolled: Collection[str]) -> None:
        """Remove the metrics of removed clients, again while calls in flight may still add to them."""
        for name, at in list(self._removed.items()):
            if name not in enrolled:
                metrics.remove_client(name)
            if name in enrolled or time.monotonic() - at > 2 * self._settings.deadline_s:
                del self._removed[name]

    async def _drop(self, name: str) -> None:
        self._identity.pop(name, None)
        self._seals.pop(name, None)
        self._broken.pop(name, None)
        client = self._clients.pop(name, None)
        if client is not None:
            await client.close()

    async def close(self) -> None:
        for name in list(self._identity):
            await self._drop(name)

    async def keep_refreshed(self) -> None:
        """Refresh every second until cancelled, and the queue server's clock too: records have its times."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            with contextlib.suppress(RedisError):  # the refresh reports it
                await SERVER_CLOCK.read(self._registry.redis)
            await self.try_refresh()

    async def try_refresh(self) -> None:
        """Refresh; keep the present connections while the registry cannot be read."""
        try:
            await self.refresh()
        except (RedisError, Unavailable) as error:
            reason = describe_failure(error)
            self.problem = f"the registry of clients cannot be read, its last state is in use: {reason}"
            log.warning("the registry cannot be read; its last state stays in use", error=reason)

    async def keep_probing(self) -> None:
        """Request every client's card at ``probe_interval_s`` and store it, until cancelled.

        Clients whose circuits are not closed are probed more often, so that runs that wait for them go on soon.
        """
        mean = self._settings.probe_interval_s
        all_at = time.monotonic() + random.uniform(0.7, 1.3) * mean
        while True:
            away_s = min(mean, _AWAY_PROBE_S)
            await asyncio.sleep(random.uniform(0.7, 1.3) * away_s)
            if time.monotonic() >= all_at:
                await asyncio.gather(*(self._probe(name, mean) for name in list(self._clients)))
                all_at = time.monotonic() + random.uniform(0.7, 1.3) * mean
            else:
                away = [name for name in self._clients if self.circuit_state(name) != "closed"]
                await asyncio.gather(*(self._probe(name, away_s) for name in away))

    async def _probe(self, name: str, interval_s: float) -> None:
        await asyncio.sleep(random.uniform(0, 0.2) * interval_s)
        client = self._clients.get(name)
        if client is None:
            return
        try:
            card = await client.probe(_PROBE_TIMEOUT_S)
            known = self.records.get(name)
            if known is not None and known.card != card and self._card_changes.take(name) != "drop":
                log.info("a client serves another card", client=name, model=card.model.name, version=card.model.version)
            with contextlib.suppress(NotFound):
                await self._registry.record_probe(name, card)
        except ClientFailure as failure:
            client.last_error = str(failure)
            client.log_failure(failure)
        except (RedisError, MorError) as error:
            log.warning("a probe could not be stored", client=name, error=describe_failure(error))


class RouterTokens(TokenFile):
    """Tokens that the router accepts: those of the tokens file, and the clients' own from the registry."""

    def __init__(self, file: TokenFile, pool: ClientPool) -> None:
        self._file = file
        self._pool = pool

    def holder(self, digest: str) -> Principal | None:
        found, client = self._file.holder(digest), self._pool.page_tokens.get(digest)
        if found is not None or client is None:
            return found  # the file comes first: no client takes over a token that is added there later
        return Principal(name=client, scope=Scope.client)
