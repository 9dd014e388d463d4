"""A stored secret is sent to the address that it was given for, whatever stands in Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_router.clients.secret_store import SecretOwner, SecretStore
from mor_router.store import CLIENTS, LABELLERS
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.router.conftest import KEY, Api, Start
from tests.router.endpoints import TOKEN, Endpoints

OWNER = SecretOwner("client", "clinic", "https://clinic.example", "api")
STORE = SecretStore(SecretStr(KEY))
CHANGES = [
    {"kind": "labeller"},
    {"name": "bank"},
    {"url": "https://attacker.example"},
    {"source": "kubernetes"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_ciphertext_of_another_owner_is_refused(change: dict[str, Any]) -> None:
    sealed = STORE.encrypt(SecretStr(TOKEN), OWNER)
    assert STORE.decrypt(sealed, OWNER).get_secret_value() == TOKEN
    other = SecretOwner(**{**OWNER.__dict__, **change})
    with pytest.raises(Invalid, match="for another name or address"):
        STORE.decrypt(sealed, other)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_decrypts_by_accident(text: str) -> None:
    sealed = STORE.encrypt(SecretStr(TOKEN), OWNER)
    for forged in (text, f"mor.secret/2:{text}", sealed[:-4], sealed.lower()):
        with pytest.raises(Invalid) as error:
            STORE.decrypt(forged, OWNER)
        assert TOKEN not in str(error.value)


def test_secrets_of_an_earlier_version_are_read_only_to_bind_them() -> None:
    old = Fernet(KEY).encrypt(TOKEN.encode()).decode()
    with pytest.raises(Invalid, match="MOR_BIND_SECRETS=true"):
        STORE.decrypt(old, OWNER)
    assert SecretStore(SecretStr(KEY), reads_unbound=True).decrypt(old, OWNER).get_secret_value() == TOKEN


async def rewritten(redis: Redis, name: str, **changes: Any) -> None:
    """Rewrite a client's record, as somebody who can write to Redis."""
    record = json.loads(await redis.hget(CLIENTS, name))  # type: ignore[misc,arg-type]
    await redis.hset(CLIENTS, name, json.dumps({**record, **changes}))  # type: ignore[misc]


@pytest.mark.anyio
async def test_a_rewritten_record_sends_no_secret_elsewhere(start: Start, endpoints: Endpoints, redis: Redis) -> None:
    """Neither with another address, nor with the victim's ciphertext in a record of one's own, nor in the old form."""
    catcher = endpoints.endpoint("catcher")
    async with start() as api:
        await api.enrol(endpoints.endpoint("clinic"))
        await api.enrol(endpoints.endpoint("bank"))
        await api.enrol(catcher, state="probation")
        stolen = json.loads(await redis.hget(CLIENTS, "clinic"))["secret"]  # type: ignore[misc,arg-type]
        await rewritten(redis, "clinic", url=catcher.url, revision="x")
        await rewritten(redis, "catcher", secret=stolen, revision="x")
        catcher.headers.clear()
        await api.router.clients.pool.refresh()
        assert (await api.reward("answer 1", "answer 2", objective="any"))["status"] == "ok", "the others go on"
        found = await api.ok("GET", "/v1/clients/clinic")
        assert "for another name or address" in found["last_error"]
        old = Fernet(KEY).encrypt(TOKEN.encode()).decode()
        await rewritten(redis, "clinic", url=catcher.url, secret=old, revision="y")
        await api.router.clients.pool.refresh()
        await api.reward("answer 1", "answer 2")
        assert "MOR_BIND_SECRETS" in (await api.ok("GET", "/v1/clients/clinic"))["last_error"]
    assert not catcher.headers


@pytest.mark.anyio
async def test_an_upgraded_router_binds_the_secrets_once(start: Start, endpoints: Endpoints, redis: Redis) -> None:
    async with start() as api:
        clinic = endpoints.endpoint("clinic")
        await api.enrol(clinic)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
        judge = {"kind": "judge", "url": clinic.url, "model": "wise", "token": TOKEN}
        await api.ok("PUT", "/v1/objectives/helpful/labeller", judge)
    old = Fernet(KEY).encrypt(TOKEN.encode()).decode()
    await rewritten(redis, "clinic", secret=old)
    labeller = json.loads(await redis.hget(LABELLERS, "helpful"))  # type: ignore[misc,arg-type]
    await redis.hset(LABELLERS, "helpful", json.dumps({**labeller, "secret": old}))  # type: ignore[misc]
    async with start(bind_secrets=True) as api:
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
    async with start() as api:
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        opened = await api.router.learning.labellers.open("helpful")
        assert opened is not None
        await opened.close()
        await moved(api, endpoints)


async def moved(api: Api, endpoints: Endpoints) -> None:
    """A change of the address by an administrator binds the secret to the new one."""
    new = endpoints.endpoint("moved")
    await api.ok("PATCH", "/v1/clients/clinic", {"url": new.url})
    new.calls.clear()
    assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
    assert new.calls
