"""Encryption of all stored secrets with the first key of ``MOR_SECRET_KEY``, bound to their owners, and its checks."""

from __future__ import annotations

from dataclasses import dataclass

from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from redis.asyncio import Redis

from mor_router.clients.registry import ClientRecord, ClientRegistry, parse_record
from mor_router.clients.secret_store import SecretStore
from mor_router.learning.labels.labeller_store import reencrypt_labellers, unusable_labellers
from mor_router.store import RouterSnapshot


@dataclass(frozen=True)
class RekeyResult:
    """Outcome for the secrets of the store."""

    clients: int
    """Secrets of clients that are encrypted with the first key now."""
    labellers: int
    problems: tuple[str, ...]
    """Reasons why others are not."""


async def rekey_all(redis: Redis, secret_store: SecretStore) -> RekeyResult:
    """Encrypt the secrets of all clients and labellers again."""
    registry, count = ClientRegistry(redis), 0
    labellers, problems = await reencrypt_labellers(redis, secret_store)

    def change(known: ClientRecord) -> ClientRecord:
        secret = secret_store.decrypt(known.secret, known.owner)
        return known.model_copy(update={"secret": secret_store.encrypt(secret, known.owner)})

    for record in await registry.all():
        try:
            await registry.update(record.name, change)
            count += 1
        except Invalid as error:
            problems.append(str(error))
    return RekeyResult(count, labellers, tuple(problems))


async def unusable_secrets(redis: Redis, secret_store: SecretStore) -> list[str]:
    """Return why stored secrets cannot be used as they are, a line for each."""
    problems = await unusable_labellers(redis, secret_store)
    for record in await ClientRegistry(redis).all():
        try:
            secret_store.decrypt(record.secret, record.owner)
        except Invalid as error:
            problems.append(str(error))
    return problems


def wrong_key(snapshot: RouterSnapshot, secret_store: SecretStore) -> str | None:
    """Return why the key is not that of a snapshot, if so: it decrypts no client's secret there, and there are some.

    One secret that cannot be decrypted concerns its client alone.
    """
    problems = []
    for name, value in snapshot.hashes.get("clients", {}).items():
        try:
            record = parse_record(name, value.encode())
            secret_store.decrypt(record.secret, record.owner)
        except ValueError as error:
            problems.append(describe_failure(error))
        else:
            return None
    if not problems:
        return None
    return (
        f"MOR_SECRET_KEY decrypts none of the {len(problems)} clients' secrets in the snapshot; set the key that "
        f"encrypted them (in the chart: the Secret mor-auth). The first: {problems[0]}"
    )
