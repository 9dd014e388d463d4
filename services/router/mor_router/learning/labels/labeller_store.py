"""Store of the objectives' labellers, which opens them for use."""

from __future__ import annotations

from typing import Any

from mor_core.errors import Conflict, Invalid
from mor_core.stored import StoredEntries
from mor_core.wire import Wire
from pydantic import Field, TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import WatchError

from mor_router.clients.client import tls_context
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.http import BoundedHttpClient, bearer_client
from mor_router.clients.outbound import outbound_transport
from mor_router.clients.pool import ClientPool
from mor_router.clients.registry import ClientRecord, new_revision
from mor_router.clients.secret_store import SecretOwner, SecretStore
from mor_router.config import RouterSettings
from mor_router.learning.labels.checker_labeller import CheckerLabeller
from mor_router.learning.labels.function_labeller import FunctionLabeller, load_checker
from mor_router.learning.labels.judge_labeller import JudgeLabeller
from mor_router.learning.labels.labeller import Labeller
from mor_router.learning.labels.labeller_choice import CheckerFunction, Judge, LabellerChoice, StoredLabeller
from mor_router.state_mark import count_removal
from mor_router.store import LABELLERS

_MOST_UPDATE_ATTEMPTS = 20
"""Tries of a change beside others: labellers are changed by hand."""
_NO_TOKEN = "0" * 64
"""Hash of no token: a checker has no page on the router."""


class _Record(Wire):
    shown: StoredLabeller
    secret: str | None = Field(repr=False)
    """Encrypted."""


_RECORD = TypeAdapter(_Record)
_LABELLERS = StoredEntries("labellers")


def _owner(objective: str, shown: StoredLabeller) -> SecretOwner:
    """Return what the labeller's secret is bound to."""
    return SecretOwner("labeller", objective, f"{shown.kind} {shown.name}", shown.source or "")


def _parse_record(value: bytes) -> _Record:
    return _RECORD.validate_json(value, extra="ignore")


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
            record = _Record(shown=shown, secret=self._secret_store.encrypt(choice.token, _owner(objective, shown)))
        await self._redis.hset(LABELLERS, objective, record.model_dump_json())
        return record.shown

    async def get(self, objective: str) -> StoredLabeller | None:
        """Return an objective's labeller without its secret; ``None`` where it has none.

        Raises:
            Conflict: it cannot be read.
        """
        record = await self._get(objective)
        return record.shown if record is not None else None

    async def remove(self, objective: str) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(LABELLERS, objective)
            count_removal(pipe)
            await pipe.execute()

    async def _get(self, objective: str) -> _Record | None:
        value = await _LABELLERS.fetch(self._redis, "HGET", LABELLERS, objective)
        record = _LABELLERS.parse(objective, value, _parse_record)
        if record is None and value is not None:
            raise Conflict(
                f"the stored labeller of objective {objective!r} cannot be read (the log has the reason); "
                f"PUT or DELETE /v1/objectives/{objective}/labeller"
            )
        return record

    async def open(self, objective: str) -> Labeller | None:
        """Open the objective's labeller, which the caller closes; ``None`` where it has none.

        Raises:
            Conflict: it was stored without a secret, or cannot be read.
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
        secret = self._secret_store.decrypt(record.secret, _owner(objective, shown))
        if shown.kind == "checker":
            return CheckerLabeller(self._pool.open(_as_client(objective, shown), secret))
        transport = outbound_transport(self._egress, shown.source, self._settings, tls_context(self._settings))
        return JudgeLabeller(BoundedHttpClient(bearer_client(transport, secret), shown.name, secret), shown.model or "")


async def reencrypt_labellers(redis: Redis, secret_store: SecretStore) -> tuple[int, list[str]]:
    """Encrypt the secrets of all labellers with the first key; return their number, and why others are not.

    Raises:
        Conflict: other requests keep changing the labellers.
    """
    for _ in range(_MOST_UPDATE_ATTEMPTS):
        async with redis.pipeline(transaction=True) as pipe:
            await pipe.watch(LABELLERS)
            records, problems = await _reencrypted(redis, secret_store)
            pipe.multi()  # type: ignore[no-untyped-call]
            if records:
                pipe.hset(LABELLERS, mapping=records)
            try:
                await pipe.execute()
            except WatchError:
                continue
            return len(records), problems
    raise Conflict("the labellers are being changed by other requests; try again")


async def _reencrypted(redis: Redis, secret_store: SecretStore) -> tuple[dict[Any, Any], list[str]]:
    """Return the records with their secrets encrypted anew by field, and why others are not."""
    stored: Any = await _LABELLERS.fetch_hash(redis, LABELLERS)
    records: dict[Any, Any] = {}
    problems = []
    for field, record in _LABELLERS.parse_all(stored, lambda _, value: _parse_record(value)).items():
        if record.secret is None:
            continue
        owner = _owner(field.decode(errors="replace"), record.shown)
        try:
            sealed = secret_store.encrypt(secret_store.decrypt(record.secret, owner), owner)
        except Invalid as error:
            problems.append(str(error))
            continue
        records[field] = record.model_copy(update={"secret": sealed}).model_dump_json()
    return records, problems


async def unusable_labellers(redis: Redis, secret_store: SecretStore) -> list[str]:
    """Return why stored secrets of labellers cannot be used as they are, a line for each."""
    stored = await _LABELLERS.fetch_hash(redis, LABELLERS)
    problems = []
    for field, record in _LABELLERS.parse_all(stored, lambda _, value: _parse_record(value)).items():
        try:
            if record.secret is not None:
                secret_store.decrypt(record.secret, _owner(field.decode(errors="replace"), record.shown))
        except Invalid as error:
            problems.append(str(error))
    return problems


def _as_client(objective: str, shown: StoredLabeller) -> ClientRecord:
    """Describe a checker as a client record, so that it is called like a client; it is in no registry."""
    assert shown.source is not None
    return ClientRecord(
        name=f"{objective[:50]}.checker",
        url=shown.name,
        domains="",
        source=shown.source,
        state="paused",
        enrolled_at=0.0,
        secret="",
        inbound_sha256=_NO_TOKEN,
        revision=new_revision(),
    )
