"""Generated secrets over any sequence of rotations, retirements, releases and manifests that come back."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.auth import Scope, hash_token
from mor_core.cluster_secrets import ClusterSecrets
from mor_core.errors import Invalid
from mor_core.generated_secrets import GeneratedSecret, WantedSecret, WantedToken, check_names

OPERATOR = WantedToken(name="operator", scope=Scope.admin, key="admin-token")
OWN = WantedToken(name="mor", scope=Scope.service, key="service-token")
WALL = WantedToken(name="wall", scope=Scope.viewer, key="wall-token")
WANTED = WantedSecret(secret="auth", tokens=(OPERATOR, OWN, WALL), key_ring="secret-key", users=("router",))
WITHOUT_WALL = WANTED.model_copy(update={"tokens": (OPERATOR, OWN)})
MANIFEST = ("admin-token", "service-token", "wall-token", "secret-key", "tokens.json", "router-password")

Data = dict[str, str]


def valid(data: Data) -> set[str]:
    """Hashes that a service with this tokens file accepts: those of the highest epoch of each name."""
    rows = json.loads(data["tokens.json"])
    highest = {row["name"]: max(each.get("epoch", 0) for each in rows if each["name"] == row["name"]) for row in rows}
    return {row["sha256"] for row in rows if row.get("epoch", 0) == highest[row["name"]]}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(["rotate all", "rotate admin-token", "retire all", "upgrade", "without", "old manifest"]),
        max_size=10,
    )
)
def test_a_revoked_token_is_never_valid_again_and_no_key_is_lost(steps: list[str]) -> None:
    data = GeneratedSecret(WANTED, {}).data
    first = {key: data[key] for key in MANIFEST}
    keys: set[str] = set()
    revoked: set[str] = set()
    for step in steps:
        known = valid(data)
        keys |= set(data["secret-key"].split(","))
        if step == "old manifest":  # a former chart's manifest writes its values, then the next release settles them
            data = data | first
        action, _, names = step.partition(" ")
        secret = GeneratedSecret(WITHOUT_WALL if step == "without" else WANTED, data)
        if action == "rotate":
            secret.rotate([names])
        elif action == "retire":
            secret.retire([names])
        data = secret.data
        revoked |= known - valid(data)
        assert not revoked & valid(data)
        assert keys <= set(data["secret-key"].split(","))
        for token in (OPERATOR, OWN):
            assert hash_token(data[token.key or ""]) in valid(data)
        assert data["router-password"] in data["router-url"]
        assert GeneratedSecret(WITHOUT_WALL if step == "without" else WANTED, data).data == data, "settled"
        values = [value for key, value in data.items() if not key.endswith((".json", "-url"))]
        assert not [value for value in values if value in " ".join(secret.notes)], "notes go to the log"


def test_what_running_processes_hold_is_valid_until_it_is_retired_however_often_it_is_rotated() -> None:
    """A Job that is tried again, because its node was lost after the first change, rotates twice."""
    secret = GeneratedSecret(WANTED, {})
    held, passwords = [secret.data["service-token"]], [secret.data["router-password"]]
    for _ in range(3):
        secret.rotate(["service-token", "router-password"])
        secret = GeneratedSecret(WANTED, secret.data)
        held.append(secret.data["service-token"])
        passwords.append(secret.data["router-password"])
    assert {hash_token(token) for token in held} <= valid(secret.data)
    assert secret.data["router-password-previous"].splitlines() == passwords[-2::-1]
    secret.retire(["all"])
    assert {hash_token(token) for token in held} & valid(secret.data) == {hash_token(held[-1])}
    assert "router-password-previous" not in secret.data
    back = GeneratedSecret(WANTED, secret.data | {"router-password": passwords[0], "service-token": held[0]}).data
    assert back["router-password"] != passwords[0] and hash_token(held[0]) not in valid(back)


def test_a_retired_key_that_comes_back_only_decrypts() -> None:
    former = GeneratedSecret(WANTED, {}).data
    secret = GeneratedSecret(WANTED, former)
    secret.rotate(["secret-key"])
    secret.retire(["secret-key"])
    data = GeneratedSecret(WANTED, secret.data | {"secret-key": former["secret-key"]}).data
    assert data["secret-key"].split(",") == [secret.data["secret-key"], former["secret-key"]]


def test_a_value_that_a_person_wrote_is_taken() -> None:
    data = GeneratedSecret(WANTED, {}).data
    edited = GeneratedSecret(WANTED, data | {"admin-token": "of a person", "secret-key": "k" * 44}).data
    assert hash_token("of a person") in valid(edited) and hash_token(data["admin-token"]) not in valid(edited)
    assert edited["secret-key"].split(",") == ["k" * 44, data["secret-key"]]


@pytest.mark.parametrize("key", ["ledger.json", "tokens.json"])
def test_a_damaged_part_is_refused_without_its_content(key: str) -> None:
    with pytest.raises(Invalid, match=f"{key} of Secret auth cannot be read") as error:
        GeneratedSecret(WANTED, GeneratedSecret(WANTED, {}).data | {key: '["s3cret"]'})
    assert "s3cret" not in str(error.value)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(Invalid, match="got nothing-here; name some of admin-token, router-password, secret-key"):
        check_names([WANTED], ["nothing-here", "admin-token"])


def test_of_two_writers_the_second_reads_again() -> None:
    """And an answer of the API server is not quoted: it may hold the Secret."""
    answers = [
        httpx.Response(200, json={"metadata": {"resourceVersion": "1"}, "data": {}}),
        httpx.Response(409, text="s3cret"),
        httpx.Response(200, json={"metadata": {"resourceVersion": "2"}, "data": {"theirs": "eA=="}}),
        httpx.Response(200, json={}),
        httpx.Response(403, text="s3cret"),
    ]
    calls = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return answers[len(calls) - 1]

    with httpx.Client(base_url="http://api", transport=httpx.MockTransport(answer)) as http:
        cluster = ClusterSecrets(http, "mor")
        assert cluster.change("auth", lambda data: data | {"own": "y"}) == ["own"]
        assert json.loads(calls[3].content) == {"metadata": {"resourceVersion": "2"}, "data": {"own": "eQ=="}}
        with pytest.raises(Invalid, match="the job's Role must permit") as error:
            cluster.change("auth", lambda data: data)
    assert "s3cret" not in str(error.value)
