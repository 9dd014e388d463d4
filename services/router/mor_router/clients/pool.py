"""The clients of the registry as live connections, kept current while the registry changes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import random

import structlog
from mor_core.auth import Principal, Scope, TokenFile, hash_token
from mor_core.clients import State
from mor_core.errors import MorError, NotFound
from mor_core.wire import Limits
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.clients.client import RewardClient, tls_context
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.registry import ClientRecord, Registry
from mor_router.clients.responses import ClientFailure
from mor_router.clients.secret_store import Vault
from mor_router.config import RouterSettings

_REFRESH_S = 1.0
_PROBE_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class Pool:
    """One ``RewardClient`` for each enrolled client."""

    def __init__(self, registry: Registry, vault: Vault, settings: RouterSettings, policy: EgressPolicy) -> None:
        self._registry = registry
        self._vault = vault
        self._settings = settings
        self._policy = policy
        self._tls = tls_context(settings)
        self._clients: dict[str, RewardClient] = {}
        self._identity: dict[str, tuple[str, Limits | None]] = {}
        self._broken: dict[str, str] = {}
        self._refreshing = asyncio.Lock()
        self.records: dict[str, ClientRecord] = {}
        self.known = False
        """Whether the registry was read since the start."""

    def named(self, *states: State) -> list[str]:
        """Names of the clients in one of ``states``."""
        return [name for name, record in self.records.items() if record.state in states]

    def client(self, name: str) -> RewardClient:
        """
        Raises:
            NotFound: not enrolled.
            ClientFailure: its secret cannot be decrypted.
        """
        if name in self._broken:
            raise ClientFailure("secret", self._broken[name])
        if name not in self._clients:
            raise NotFound(f"no client {name!r}; GET /v1/clients lists them")
        return self._clients[name]

    def problem(self, name: str) -> str | None:
        """Why the last call to a client failed, if it did."""
        return self._broken.get(name) or self._clients[name].last_error

    async def circuit(self, name: str) -> str:
        return "closed" if name in self._broken else await self._clients[name].circuit()

    def connect(self, record: ClientRecord) -> RewardClient:
        """A connection to a client that need not be enrolled yet; the caller closes it.

        Raises:
            Invalid: its secret cannot be decrypted.
        """
        secret = self._vault.decrypt(record.secret, record.name)
        return RewardClient(record, secret, self._settings, self._policy, self._tls)

    async def refresh(self) -> None:
        """Read the registry; connect, reconnect and disconnect what changed."""
        async with self._refreshing:
            records = {record.name: record for record in await self._registry.all()}
            for name, record in records.items():
                identity = (record.revision, record.card.limits if record.card else None)
                if self._identity.get(name) != identity:
                    await self._drop(name)
                    self._identity[name] = identity
                    try:
                        self._clients[name] = self.connect(record)
                    except MorError as error:
                        self._broken[name] = str(error)
                        log.error("a client cannot be asked", client=name, reason=str(error))
            for name in set(self._identity) - set(records):
                await self._drop(name)
                metrics.forget(name)
            for name, record in records.items():
                metrics.QUARANTINED.labels(name).set(record.state == "quarantined")
                metrics.DISTRUSTED.labels(name).set(record.distrusted_at is not None)
            self.records = records
            self.known = True

    async def _drop(self, name: str) -> None:
        self._identity.pop(name, None)
        self._broken.pop(name, None)
        client = self._clients.pop(name, None)
        if client is not None:
            await client.close()

    async def close(self) -> None:
        for name in list(self._identity):
            await self._drop(name)

    async def follow(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            await self.try_refresh()

    async def try_refresh(self) -> None:
        """Refresh, or keep the clients that are known while the registry cannot be read."""
        try:
            await self.refresh()
        except RedisError as error:
            log.warning("the registry cannot be read; the last one known stays in use", error=str(error))

    async def probe(self) -> None:
        """Ask every client for its card now and then, until cancelled, and note what it says."""
        while True:
            mean = self._settings.probe_interval_s
            await asyncio.sleep(random.uniform(0.7, 1.3) * mean)
            await asyncio.gather(*(self._probe(name) for name in list(self._clients)))

    async def _probe(self, name: str) -> None:
        await asyncio.sleep(random.uniform(0, 0.2) * self._settings.probe_interval_s)
        client = self._clients.get(name)
        if client is None:
            return
        try:
            card = await client.probe(_PROBE_TIMEOUT_S)
            known = self.records.get(name)
            if known is not None and known.card != card:
                log.info("a client serves another card", client=name, model=card.model.name, version=card.model.version)
            with contextlib.suppress(NotFound):
                await self._registry.probed(name, card)
        except ClientFailure as failure:
            client.last_error = str(failure)
            log.warning("a probe failed", client=name, reason=failure.reason, detail=str(failure))
        except (RedisError, MorError) as error:
            log.warning("a probe could not be noted", client=name, error=str(error))


class Tokens(TokenFile):
    """The tokens file, and the clients' own tokens from the registry."""

    def __init__(self, file: TokenFile, pool: Pool) -> None:
        self._file = file
        self._pool = pool

    def authenticate(self, token: str) -> Principal:
        digest = hash_token(token)
        found = [
            record.name for record in self._pool.records.values() if hmac.compare_digest(record.inbound_sha256, digest)
        ]
        return Principal(name=found[0], scope=Scope.client) if found else self._file.authenticate(token)
