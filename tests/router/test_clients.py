"""Enrolment, the registry over restarts, rotation, revocation, and the rights of each scope."""

from __future__ import annotations

import json
import re

import pytest
from cryptography.fernet import Fernet
from mor_core.auth import hash_token
from mor_router.config import RouterSettings
from mor_router.store import CLIENTS
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.conftest import Valkey
from tests.router.conftest import KEY, TOKENS, Api, Start
from tests.router.endpoints import TOKEN, Endpoints, html

pytestmark = pytest.mark.anyio


async def test_enrolment_reads_the_card_and_probes_with_an_image(api: Api, endpoints: Endpoints) -> None:
    endpoint = endpoints.endpoint("clinic")
    enrolled = await api.enrol(endpoint, state="probation")
    assert enrolled["client"]["model"] == {"name": "clinic", "version": "1"}
    assert enrolled["client"]["source"] == "loopback"
    assert enrolled["client"]["state"] == "probation"
    assert re.fullmatch(r"ok, a test picture scores \S+ and \S+ \(any size will do\)", enrolled["trial"])
    assert len(endpoint.images) == 1  # hashes first, bytes when requested
    listed = await api.ok("GET", "/v1/clients", token=TOKENS["viewer"])
    assert [client["name"] for client in listed] == ["clinic"]
    assert not any("secret" in field or "inbound" in field for field in listed[0])


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda e: setattr(e, "token", "another"), "does not accept the token"),
        (lambda e: setattr(e, "broken", html), "answered with text/html; application/json is wanted"),
        (lambda e: setattr(e, "mangle", lambda items: [{**i, "scores": [float("nan"), 1]} for i in items]), "nan"),
        (lambda e: setattr(e, "url", e.url + "/nowhere"), "answered 404"),
        (
            lambda e: setattr(e, "url", "http://127.0.0.1:1"),
            "at http://127.0.0.1:1: its reward service cannot be reached",
        ),
        (lambda e: e.limits.update(items=0), "/v1/card is not a card of the contract: limits.items: Input should be"),
    ],
)
async def test_an_endpoint_that_fails_the_probe_is_refused_with_the_reason(
    api: Api, endpoints: Endpoints, break_it: object, expected: str
) -> None:
    endpoint = endpoints.endpoint("clinic")
    assert callable(break_it)
    break_it(endpoint)
    body = {"name": "clinic", "url": endpoint.url, "token": TOKEN}
    answer = await api.call("POST", "/v1/clients", body)
    assert answer.status_code == 422
    assert expected in answer.json()["detail"]
    assert TOKEN not in answer.text
    assert await api.ok("GET", "/v1/clients") == []


async def test_a_taken_name_an_unknown_field_and_a_bad_name_are_refused(api: Api, endpoints: Endpoints) -> None:
    endpoint = endpoints.endpoint("clinic")
    await api.enrol(endpoint)
    body = {"name": "clinic", "url": endpoint.url, "token": TOKEN}
    again = await api.call("POST", "/v1/clients", body)
    assert again.status_code == 409
    assert "enrolled already" in again.json()["detail"]
    misspelt = await api.call("POST", "/v1/clients", {**body, "domain": "MRI"})
    assert "body.domain: unknown field; did you mean 'domains'?" in misspelt.json()["detail"]
    named = await api.call("POST", "/v1/clients", {**body, "name": "St Mary"})
    assert "body.name" in named.json()["detail"]


async def test_the_registry_survives_restarts_of_router_and_server(
    start: Start, endpoints: Endpoints, valkey: Valkey
) -> None:
    url = SecretStr(valkey.url)
    endpoint = endpoints.endpoint("clinic")
    async with start(redis_url=url) as api:
        enrolled = await api.enrol(endpoint)
    valkey.write_out()
    valkey.kill()
    valkey.start()
    async with start(redis_url=url) as api:
        found = await api.ok("GET", "/v1/clients/clinic", token=enrolled["token"])
        assert found["client"] == enrolled["client"]
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"


async def test_secrets_are_encrypted_at_rest_and_keys_rotate(
    start: Start, endpoints: Endpoints, redis: Redis, settings: RouterSettings
) -> None:
    endpoint = endpoints.endpoint("clinic")
    async with start() as api:
        await api.enrol(endpoint)
    stored = b"".join((await redis.hgetall(CLIENTS)).values())
    assert TOKEN.encode() not in stored
    newer = Fernet.generate_key().decode()
    async with start(secret_key=SecretStr(f"{newer},{KEY}")) as api:
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
    async with start(secret_key=SecretStr(newer)) as api:
        found = await api.ok("GET", "/v1/clients/clinic")
        assert "encrypted with another key" in found["last_error"]
        lost = await api.reward("answer 1", "answer 2")
        assert lost["rewards"] is None
        assert "encrypted with another key" in lost["detail"]


async def test_rotation_tries_the_new_token_first(api: Api, endpoints: Endpoints) -> None:
    endpoint = endpoints.endpoint("clinic")
    await api.enrol(endpoint)
    newer = "a-newer-token-of-the-service"
    early = await api.call("POST", "/v1/clients/clinic/rotate", {"token": newer})
    assert "does not accept the token" in early.json()["detail"]
    assert newer not in early.text
    assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
    endpoint.token = newer
    await api.ok("POST", "/v1/clients/clinic/rotate", {"token": newer})
    assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"


async def test_a_client_sees_its_own_page_until_its_token_is_rotated(api: Api, endpoints: Endpoints) -> None:
    own = (await api.enrol(endpoints.endpoint("clinic")))["token"]
    await api.enrol(endpoints.endpoint("bank"))
    assert (await api.ok("GET", "/v1/clients/clinic", token=own))["client"]["name"] == "clinic"
    other = await api.call("GET", "/v1/clients/bank", token=own)
    assert other.status_code == 403
    rotated = await api.ok("POST", "/v1/clients/clinic/rotate", {"inbound": True})
    assert (await api.call("GET", "/v1/clients/clinic", token=own)).status_code == 401
    assert (await api.call("GET", "/v1/clients/clinic", token=rotated["token"])).status_code == 200


async def test_a_revoked_client_is_not_called_again_and_its_token_ends(api: Api, endpoints: Endpoints) -> None:
    endpoint, other = endpoints.endpoint("clinic"), endpoints.endpoint("bank")
    own = (await api.enrol(endpoint))["token"]
    await api.enrol(other)
    await api.ok("DELETE", "/v1/clients/clinic")
    endpoint.calls.clear()
    assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
    assert endpoint.calls == []
    assert (await api.call("GET", "/v1/clients/clinic", token=own)).status_code == 401
    assert (await api.call("DELETE", "/v1/clients/clinic")).status_code == 404


async def test_a_paused_client_is_left_out_with_the_reason(api: Api, endpoints: Endpoints) -> None:
    endpoint = endpoints.endpoint("clinic")
    await api.enrol(endpoint)
    await api.enrol(endpoints.endpoint("bank"))
    await api.ok("PATCH", "/v1/clients/clinic", {"state": "paused", "reason": "maintenance"})
    endpoint.calls.clear()
    found = await api.reward("answer 1", "answer 2")
    line = next(score for score in found["clients"] if score["client"] == "clinic")
    assert (line["status"], line["detail"], line["weight"]) == ("not_asked", "paused: maintenance", 0)
    assert endpoint.calls == []
    await api.ok("PATCH", "/v1/clients/clinic", {"state": "paused", "reason": "longer"})
    assert (await api.ok("PATCH", "/v1/clients/clinic", {"state": "resumed"}))["state"] == "active"
    found = await api.reward("answer 1", "answer 2")
    assert {score["client"]: score["weight"] for score in found["clients"]} == {"bank": 0.5, "clinic": 0.5}


@pytest.mark.parametrize("state", ["probation", "active", "quarantined"])
async def test_a_pause_ends_in_the_state_before_it(api: Api, endpoints: Endpoints, state: str) -> None:
    await api.enrol(endpoints.endpoint("clinic"))
    registry = api.router.clients.registry
    before = {"state": state, "reason": "as found", "distrusted_at": 5.0, "unreliable_at": 7.0}
    await registry.update("clinic", lambda record: record.model_copy(update=before))
    await api.ok("PATCH", "/v1/clients/clinic", {"state": "paused", "reason": "maintenance"})
    paused = await registry.get("clinic")
    assert (paused.state, paused.distrusted_at, paused.unreliable_at) == ("paused", None, None)
    assert (await api.ok("PATCH", "/v1/clients/clinic", {"state": "resumed"}))["reason"] == "as found"
    found = (await registry.get("clinic")).model_dump()
    assert {name: found[name] for name in before} == before
    assert found["before_pause"] is None
    refused = await api.call("PATCH", "/v1/clients/clinic", {"state": "resumed"})
    assert refused.status_code == 409 and state in refused.json()["detail"]


async def test_a_client_that_an_earlier_release_paused_resumes_on_probation(api: Api, endpoints: Endpoints) -> None:
    await api.enrol(endpoints.endpoint("clinic"))
    await api.router.clients.registry.update("clinic", lambda record: record.model_copy(update={"state": "paused"}))
    assert (await api.ok("PATCH", "/v1/clients/clinic", {"state": "resumed"}))["state"] == "probation"


async def test_the_audit_log_has_an_admins_changes_without_secrets(
    api: Api, endpoints: Endpoints, settings: RouterSettings
) -> None:
    await api.enrol(endpoints.endpoint("clinic"))
    await api.ok("PATCH", "/v1/clients/clinic", {"state": "paused"})
    await api.ok("POST", "/v1/clients/clinic/rotate", {"inbound": True})
    await api.ok("DELETE", "/v1/clients/clinic")
    assert settings.audit_log is not None
    lines = [json.loads(line) for line in settings.audit_log.read_text().splitlines()]
    assert [(line["action"], line["subject"], line["by"]) for line in lines] == [
        (action, "clinic", "admin") for action in ("enrol", "change", "rotate", "revoke")
    ]
    assert TOKEN not in settings.audit_log.read_text()


async def test_a_router_without_clients_is_ready_to_enrol_them(api: Api) -> None:
    assert (await api.http.get("/readyz")).status_code == 200


async def test_a_client_enrols_with_its_own_page_token_and_revokes_itself_only(
    start: Start, endpoints: Endpoints, settings: RouterSettings
) -> None:
    assert settings.tokens_file is not None
    rows = json.loads(settings.tokens_file.read_text())
    rows.append({"name": "onboarding", "scope": "enrolment", "sha256": hash_token("enrolment-token")})
    settings.tokens_file.write_text(json.dumps(rows))
    async with start() as api:
        bodies = {
            name: {
                "name": name,
                "url": endpoints.endpoint(name).url,
                "token": TOKEN,
                "page_token_sha256": hash_token(f"page of {name}"),
            }
            for name in ("clinic", "bank")
        }
        eager = await api.call("POST", "/v1/clients", bodies["bank"] | {"state": "active"}, token="enrolment-token")
        assert eager.status_code == 403
        for body in bodies.values():
            assert (await api.ok("POST", "/v1/clients", body, token="enrolment-token"))["token"] is None
        assert (await api.call("GET", "/v1/clients", token="enrolment-token")).status_code == 403
        assert (await api.call("DELETE", "/v1/clients/clinic", token="page of bank")).status_code == 403
        await api.ok("DELETE", "/v1/clients/clinic", token="page of clinic")
        assert [client["name"] for client in await api.ok("GET", "/v1/clients")] == ["bank"]
        assert (await api.call("GET", "/v1/clients/clinic", token="page of clinic")).status_code == 401
