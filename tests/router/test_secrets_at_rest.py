"""A stored secret is sent to the address that it was given for, whatever stands in Redis."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.auth import hash_token
from mor_core.errors import Invalid
from mor_router.clients.registry import ClientRegistry
from mor_router.clients.secret_store import SecretOwner, SecretStore
from mor_router.rekeying import rekey_all
from mor_router.store import CLIENTS, LABELLERS
from pydantic import SecretStr
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tests.router.conftest import KEY, Api, Start
from tests.router.endpoints import TOKEN, Endpoints

OWNER = SecretOwner("client", "clinic", "https://clinic.example", "api", "f" * 64, 7)
STORE = SecretStore(SecretStr(KEY))
CHANGES = [
    {"kind": "labeller"},
    {"name": "bank"},
    {"url": "https://attacker.example"},
    {"source": "kubernetes"},
    {"page_token_sha256": "0" * 64},
    {"generation": 8},
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


def test_secrets_that_were_bound_to_the_address_alone_are_read_only_to_bind_them() -> None:
    with pytest.raises(Invalid, match="MOR_BIND_SECRETS=true"):
        STORE.decrypt(partly_bound(OWNER), OWNER)
    reader = SecretStore(SecretStr(KEY), reads_unbound=True)
    assert reader.decrypt(partly_bound(OWNER), OWNER).get_secret_value() == TOKEN
    with pytest.raises(Invalid, match="another name or address"):
        reader.decrypt(partly_bound(OWNER), replace(OWNER, url="https://attacker.example"))


def partly_bound(owner: SecretOwner) -> str:
    """Encrypt the token as the version before generations did."""
    data = json.dumps(["client", owner.name, owner.url, owner.source]).encode()
    key = HKDF(SHA256(), 32, None, b"mor.secret/2").derive(base64.urlsafe_b64decode(KEY))
    return (
        "mor.secret/2:"
        + base64.urlsafe_b64encode(bytes(12) + AESGCM(key).encrypt(bytes(12), TOKEN.encode(), data)).decode()
    )


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
async def test_a_page_token_of_ones_own_in_a_victims_record_opens_no_page(
    start: Start, endpoints: Endpoints, redis: Redis
) -> None:
    mine = "page-token-of-the-intruder"
    async with start() as api:
        theirs = (await api.enrol(endpoints.endpoint("clinic")))["token"]
        await api.enrol(endpoints.endpoint("bank"))
        kept = json.loads(await redis.hget(CLIENTS, "clinic"))  # type: ignore[misc,arg-type]
        await rewritten(redis, "clinic", inbound_sha256=hash_token(mine))
        await api.router.clients.pool.refresh()
        assert (await api.call("GET", "/v1/clients/clinic", token=mine)).status_code == 401
        assert (await api.call("DELETE", "/v1/clients/clinic", token=mine)).status_code == 401
        assert "page token" in (await api.ok("GET", "/v1/clients/clinic"))["last_error"]
        await redis.hset(CLIENTS, "clinic", json.dumps(kept))  # type: ignore[misc]
        await api.router.clients.pool.refresh()
        assert (await api.ok("GET", "/v1/clients/clinic", token=theirs))["last_error"] is None


@pytest.mark.anyio
@pytest.mark.parametrize("rotation", [{"inbound": True}, {"token": TOKEN + "-new"}])
async def test_a_record_from_before_a_rotation_does_not_bring_its_tokens_back(
    start: Start, endpoints: Endpoints, redis: Redis, rotation: dict[str, Any]
) -> None:
    endpoint = endpoints.endpoint("clinic")
    async with start() as api:
        leaked = (await api.enrol(endpoint))["token"]
        kept = await redis.hget(CLIENTS, "clinic")  # type: ignore[misc]
        endpoint.token = rotation.get("token", TOKEN)
        rotated = await api.ok("POST", "/v1/clients/clinic/rotate", rotation)
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        await redis.hset(CLIENTS, "clinic", kept)  # type: ignore[misc]
        await api.router.clients.pool.refresh()
        endpoint.headers.clear()
        if "inbound" in rotation:
            assert rotated["token"] != leaked
        assert (await api.call("GET", "/v1/clients/clinic", token=leaked)).status_code == 401
        assert (
            "is older than one that this router has read" in (await api.ok("GET", "/v1/clients/clinic"))["last_error"]
        )
        await api.reward("answer 1", "answer 2")
        assert endpoint.headers == [], "the earlier secret is sent nowhere"
        await api.ok("DELETE", "/v1/clients/clinic")
        endpoint.token = TOKEN
        fresh = (await api.enrol(endpoint))["token"]
        assert (await api.call("GET", "/v1/clients/clinic", token=fresh)).status_code == 200
        await redis.hset(CLIENTS, "clinic", kept)  # type: ignore[misc]
        await api.router.clients.pool.refresh()
        assert (await api.call("GET", "/v1/clients/clinic", token=leaked)).status_code == 401


@pytest.mark.anyio
async def test_a_rotation_of_the_page_token_and_a_new_key_keep_the_connection(
    start: Start, endpoints: Endpoints
) -> None:
    async with start() as api:
        await api.enrol(endpoints.endpoint("clinic"))
        before = api.router.clients.pool.client("clinic")
        await api.ok("POST", "/v1/clients/clinic/rotate", {"inbound": True})
        await rekey_all(api.router.resources.redis, STORE)
        await api.router.clients.pool.refresh()
        assert api.router.clients.pool.client("clinic") is before


@pytest.mark.anyio
async def test_an_upgraded_router_binds_the_secrets_once(start: Start, endpoints: Endpoints, redis: Redis) -> None:
    async with start() as api:
        clinic = endpoints.endpoint("clinic")
        await api.enrol(clinic)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
        judge = {"kind": "judge", "url": clinic.url, "model": "wise", "token": TOKEN}
        await api.ok("PUT", "/v1/objectives/helpful/labeller", judge)
    old = Fernet(KEY).encrypt(TOKEN.encode()).decode()
    await rewritten(redis, "clinic", secret=old, generation=0)
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


@pytest.mark.anyio
async def test_a_rotated_key_is_read_without_a_restart(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that has the new key encrypts with it; another one calls the client once it has the key too."""
    file = tmp_path / "mor_secret_key"
    file.write_text(KEY)
    newer = Fernet.generate_key().decode()
    monkeypatch.setenv("MOR_SECRETS_DIR", str(tmp_path))
    monkeypatch.delenv("MOR_SECRET_KEY", raising=False)
    async with start() as api:
        await api.enrol(endpoints.endpoint("clinic"))
        pool = api.router.clients.pool
        await rekey_all(redis, SecretStore(SecretStr(f"{newer},{KEY}")))
        await pool.refresh()
        assert "another key" in str(pool.last_error("clinic"))
        file.write_text("half a ")
        await pool.refresh()
        file.write_text(f"{newer},{KEY}\n")
        await pool.refresh()
        assert pool.last_error("clinic") is None
        await api.enrol(endpoints.endpoint("bank"))
        sealed = await ClientRegistry(redis).get("bank")
        assert SecretStore(SecretStr(newer)).decrypt(sealed.secret, sealed.owner)


@pytest.mark.anyio
async def test_a_labeller_that_is_replaced_during_the_encryption_stays(redis: Redis, redis_url: str) -> None:
    def record(name: str) -> str:
        secret = STORE.encrypt(SecretStr(TOKEN), SecretOwner("labeller", "helpful", f"checker {name}", "api"))
        return json.dumps({"shown": {"kind": "checker", "name": name, "source": "api"}, "secret": secret})

    class Beside(SecretStore):
        puts = 1

        def encrypt(self, secret: SecretStr, owner: SecretOwner) -> str:
            if self.puts:
                self.puts -= 1
                with SyncRedis.from_url(redis_url) as other:
                    other.hset(LABELLERS, "helpful", record("https://new.example"))
            return super().encrypt(secret, owner)

    await redis.hset(LABELLERS, "helpful", record("https://old.example"))
    done = await rekey_all(redis, Beside(SecretStr(KEY)))
    assert (done.labellers, done.problems) == (1, ())
    assert json.loads(await redis.hget(LABELLERS, "helpful"))["shown"]["name"] == "https://new.example"
