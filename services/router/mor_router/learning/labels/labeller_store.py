"""Store of the objectives' labellers, which opens them for use."""

from __future__ import annotations

from typing import Any

import httpx
from mor_core.errors import Conflict
from mor_core.wire import Wire
from pydantic import Field, TypeAdapter
from redis.asyncio import Redis

from mor_router.clients.client import tls_context
from mor_router.clients.egress import EgressPolicy, PinnedTransport
from mor_router.clients.http import BoundedHttpClient, bearer_client
from mor_router.clients.pool import ClientPool
from mor_router.clients.registry import ClientRecord, new_revision
from mor_router.clients.secret_store import SecretStore
from mor_router.config import RouterSettings
from mor_router.learning.labels.checker_labeller import CheckerLabeller
from mor_router.learning.labels.function_labeller import FunctionLabeller, load_checker
from mor_router.learning.labels.judge_labeller import JudgeLabeller
from mor_router.learning.labels.labeller import Labeller
from mor_router.learning.labels.labeller_choice import CheckerFunction, Judge, LabellerChoice, StoredLabeller
from mor_router.store import LABELLERS

_NO_TOKEN = "0" * 64
"""Hash of no token: a checker has no page on the router."""


class _Record(Wire):
    shown: StoredLabeller
    secret: str | None = Field(repr=False)
    """Encrypted."""


_RECORD = TypeAdapter(_Record)


class LabellerStore:
    """Labellers by objective, in Redis."""

    def __init__(
        self, redis: Redis, secret_store: SecretStore, settings: RouterSettings, egress: EgressPolicy, pool: ClientPool
    ) -> None:
        self._redis = redis
        self._secret_store = secret_store
        self._settings = settings
        self._egress = egress
        self._pool = pool

    async def put(self, objective: str, choice: LabellerChoice) -> StoredLabeller:
        """Store an objective's labeller.

        Raises:
            Invalid: the egress policy refuses the address, or no such function is installed.
        """
        if isinstance(choice, CheckerFunction):
            load_checker(choice.name)
            record = _Record(shown=StoredLabeller(kind=choice.kind, name=choice.name), secret=None)
        else:
            shown = StoredLabeller(
                kind=choice.kind,
                name=choice.url.rstrip("/"),
                model=choice.model if isinstance(choice, Judge) else None,
                source=await self._egress.admit(choice.url),
            )
            record = _Record(shown=shown, secret=self._secret_store.encrypt(choice.token))
        await self._redis.hset(LABELLERS, objective, record.model_dump_json())
        return record.shown

    async def get(self, objective: str) -> StoredLabeller | None:
        record = await self._get(objective)
        return record.shown if record is not None else None

    async def remove(self, objective: str) -> None:
        await self._redis.hdel(LABELLERS, objective)

    async def _get(self, objective: str) -> _Record | None:
        value = await self._redis.hget(LABELLERS, objective)
        return _RECORD.validate_json(value) if value is not None else None

    async def open(self, objective: str) -> Labeller | None:
        """Open the objective's labeller, which the caller closes; ``None`` where it has none.

        Raises:
            Conflict: it was stored without a secret.
            Invalid: its secret cannot be decrypted, or its function is not installed here.
        """
        record = await self._get(objective)
        if record is None:
            return None
        shown = record.shown
        if shown.kind == "function":
            return FunctionLabeller(shown.name)
        if record.secret is None or shown.source is None:
            raise Conflict(f"the {shown.kind} of objective {objective!r} has no secret; define it again")
        if shown.kind == "checker":
            return CheckerLabeller(self._pool.connect(_as_client(objective, shown, record.secret)))
        secret = self._secret_store.decrypt(record.secret, f"labeller of {objective}")
        transport = PinnedTransport(
            self._egress, shown.source, httpx.AsyncHTTPTransport(verify=tls_context(self._settings), trust_env=False)
        )
        return JudgeLabeller(BoundedHttpClient(bearer_client(transport, secret), shown.name, secret), shown.model or "")


async def reencrypt(redis: Redis, secret_store: SecretStore) -> int:
    """Encrypt the secrets of all labellers with the first key; return their number.

    Raises:
        Invalid: no key of ``MOR_SECRET_KEY`` decrypts one of them.
    """
    stored: Any = await redis.hgetall(LABELLERS)
    count = 0
    for objective, value in stored.items():
        record = _RECORD.validate_json(value)
        if record.secret is not None:
            sealed = secret_store.reencrypt(record.secret, f"labeller of {objective.decode()}")
            await redis.hset(LABELLERS, objective, record.model_copy(update={"secret": sealed}).model_dump_json())
            count += 1
    return count


def _as_client(objective: str, shown: StoredLabeller, secret: str) -> ClientRecord:
    """Describe a checker as a client record, so that it is called like a client; it is in no registry."""
    assert shown.source is not None
    return ClientRecord(
        name=f"{objective[:50]}.checker",
        url=shown.name,
        domains="",
        source=shown.source,
        state="paused",
        enrolled_at=0.0,
        secret=secret,
        inbound_sha256=_NO_TOKEN,
        revision=new_revision(),
    )
