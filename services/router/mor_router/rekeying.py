"""Encryption of all stored secrets with the first key of ``MOR_SECRET_KEY``, bound to their owners."""

from __future__ import annotations

from dataclasses import dataclass

from mor_core.errors import Invalid
from redis.asyncio import Redis

from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.clients.secret_store import SecretStore
from mor_router.learning.labels.labeller_store import reencrypt_labellers, unusable_labellers


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
