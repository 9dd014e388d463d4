"""Command line of the router, as an operator uses it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from mor_core.errors import Invalid
from mor_router.cli import _report_renamed_variables, app
from mor_router.store import CLIENTS, RouterSnapshot, export, key, restore
from pydantic import ValidationError
from redis.asyncio import Redis
from structlog.testing import capture_logs
from typer.testing import CliRunner

from tests.router.conftest import KEY, Start
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.planted import jsonl, rows
from tests.router.test_objectives import upload

pytestmark = pytest.mark.anyio


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{f"MOR_{name.upper()}": value for name, value in variables.items()}}
    script = "from mor_router.cli import app; app()"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_state_moves_to_another_server_as_one_file(
    start: Start, endpoints: Endpoints, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    endpoint = endpoints.endpoint("clinic")
    async with start() as api:
        await api.enrol(endpoint)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
        await upload(api, jsonl(rows(12)))
        gate = await api.ok("POST", "/v1/objectives/helpful/fit")
        before = await api.reward("answer 1", "answer 2", objective="helpful")
    file = tmp_path / "router.json"
    done = run("export", str(file), redis_url=redis_url)
    assert "1 clients, 1 objectives" in done.stdout, done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not any(path.suffix == ".part" for path in files(tmp_path))
    refused = run("import", str(file), redis_url=redis_url)
    assert refused.returncode == 2
    assert "import with --replace" in refused.stderr
    await redis.flushall()
    imported = run("import", str(file), redis_url=redis_url, secret_key=KEY)
    assert (imported.returncode, imported.stderr) == (0, ""), "every secret can be used"
    unchecked = run("import", str(file), "--replace", redis_url=redis_url)
    assert "MOR_SECRET_KEY is not set here, so the secrets were not checked" in unchecked.stderr
    async with start() as api:
        after = await api.reward("answer 1", "answer 2", objective="helpful")
        assert (after["rewards"], after["gate_version"]) == (before["rewards"], gate["version"])
        calls = len(endpoint.calls)
        again = await api.ok("POST", "/v1/objectives/helpful/fit")
        assert again["version"] == gate["version"] + 1
        assert len(endpoint.calls) == calls  # the anchors' scores were exported too


async def test_rekey_encrypts_all_secrets_with_the_first_key(
    start: Start, endpoints: Endpoints, redis_url: str
) -> None:
    async with start() as api:
        clinic = endpoints.endpoint("clinic")
        await api.enrol(clinic)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
        judge = {"kind": "judge", "url": clinic.url, "model": "wise", "token": TOKEN}
        await api.ok("PUT", "/v1/objectives/helpful/labeller", judge)
    newer = run("key").stdout.strip()
    Fernet(newer)
    assert "2 secrets" in run("rekey", redis_url=redis_url, secret_key=f"{newer},{KEY}").stdout
    problems = run("rekey", redis_url=redis_url, secret_key=KEY).stderr.splitlines()
    assert [("encrypted with another key" in line, line[:12]) for line in problems] == [(True, "mor-router: ")] * 2
    assert "2 secrets" in run("rekey", redis_url=redis_url, secret_key=newer).stdout


async def test_an_import_names_the_secrets_of_an_earlier_version(
    start: Start, endpoints: Endpoints, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    async with start() as api:
        await api.enrol(endpoints.endpoint("clinic"))
        await api.enrol(endpoints.endpoint("bank"))
    record = json.loads(await redis.hget(CLIENTS, "clinic"))  # type: ignore[misc,arg-type]
    unbound = Fernet(KEY).encrypt(TOKEN.encode()).decode()
    await redis.hset(CLIENTS, "clinic", json.dumps({**record, "secret": unbound}))  # type: ignore[misc]
    run("export", str(tmp_path / "router.json"), redis_url=redis_url)
    done = run("import", str(tmp_path / "router.json"), "--replace", redis_url=redis_url, secret_key=KEY)
    [problem] = done.stderr.splitlines()
    assert (done.returncode, "client 'clinic'" in problem, "MOR_BIND_SECRETS=true" in problem) == (0, True, True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"versions": 10**30}, "versions"),
        ({"versions": -1}, "versions"),
        ({"hashes": {"leader:audits": {"x": "y"}}}, "'leader:audits' is no hash of an export"),
        ({"hashes": {"versions": {"x": "y"}}}, "'versions' is no hash of an export"),
        ({"hashes": {"gates:a:b": {"x": "y"}}}, "should match pattern"),
        ({"hashes": {"images:helpful": {"x": "%"}}}, "no base64"),
    ],
)
async def test_an_altered_export_changes_nothing(
    start: Start, endpoints: Endpoints, redis: Redis, change: Any, problem: str
) -> None:
    async with start() as api:
        await api.enrol(endpoints.endpoint("clinic"))
        document = (await export(redis)).model_dump(mode="json") | change
    with pytest.raises((ValidationError, Invalid), match=re.escape(problem)):
        await restore(redis, RouterSnapshot.model_validate_json(json.dumps(document)), replace=True)
    assert await redis.hkeys(CLIENTS) == [b"clinic"]  # type: ignore[misc]


async def test_an_import_leaves_nothing_of_the_clients_before(start: Start, endpoints: Endpoints, redis: Redis) -> None:
    async with start() as api:
        await api.enrol(endpoints.endpoint("clinic"))
        snapshot = await export(redis)
        await api.reward("answer 1", "answer 2")
    names = [key(kind, "clinic") for kind in ("influence", "recent")]
    assert await redis.exists(*names) == 2
    await redis.lpush(key("gates", "other"), "of another type")  # type: ignore[misc]
    more = snapshot.model_copy(update={"hashes": {**snapshot.hashes, "gates:other": {"1": "{}"}}})
    await restore(redis, more, replace=True)
    assert await redis.exists(*names) == 0
    assert await redis.hkeys(key("gates", "other")) == [b"1"]  # type: ignore[misc]


def test_bad_input_is_refused_with_the_remedy(tmp_path: Path) -> None:
    def error_of(*arguments: str, **variables: str) -> str:
        environment = {f"MOR_{name.upper()}": value for name, value in variables.items()}
        result = CliRunner().invoke(app, list(arguments), env=environment)
        assert result.exit_code == 2
        return result.stderr

    assert "make a key with 'mor-router key'" in error_of("serve", secret_key="")
    assert "MOR_SECRET_KEY" in error_of("serve", secret_key="abc")
    assert "MOR_QUORUM: got '2'; wanted: Input should be less than or equal to 1" in error_of(
        "serve", secret_key=KEY, quorum="2"
    )
    assert "MOR_FUSION" in error_of("serve", secret_key=KEY, fusion='{"kind": "best"}')
    (tmp_path / "x.json").write_text('{"clients": 1}')
    assert "not a file of 'mor-router export'" in error_of("import", str(tmp_path / "x.json"))
    assert "No such file" in error_of("import", str(tmp_path / "y.json"))


def test_a_renamed_variable_is_reported_until_the_present_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer has a variable of the former name, and both services may share an environment."""
    monkeypatch.setenv("MOR_GROUP_ATTEMPTS", "7")
    with capture_logs() as logged:
        _report_renamed_variables()
    assert [line["use"] for line in logged if line["log_level"] == "warning"] == ["MOR_QUORUM_ATTEMPTS"]
    monkeypatch.setenv("MOR_QUORUM_ATTEMPTS", "3")
    with capture_logs() as logged:
        _report_renamed_variables()
    assert [line for line in logged if line["log_level"] == "warning"] == []


def test_serve_logs_its_address_and_renamed_variables_and_stops_at_sigterm(redis_url: str, tmp_path: Path) -> None:
    port_file = tmp_path / "router.address"
    environment = {**os.environ, "MOR_SECRET_KEY": KEY, "MOR_REDIS_URL": redis_url, "MOR_GROUP_ATTEMPTS": "7"}
    script = "from mor_router.cli import app; app()"
    command = [sys.executable, "-c", script, "serve", "--port-file", str(port_file)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = port_file.read_text()
        for _ in range(100):
            if httpx.get(f"{address}/healthz").status_code == 200:
                break
            time.sleep(0.05)
        assert httpx.get(f"{address}/openapi.json").json()["info"]["title"] == "MoR router"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert "Application shutdown complete" in log
        renamed, tokens, listening = (json.loads(line) for line in log.splitlines()[:3])
        assert (renamed["level"], renamed["name"]) == ("warning", "MOR_GROUP_ATTEMPTS")
        assert "MOR_TOKENS_FILE is not set" in tokens["event"]
        assert renamed["use"] == "MOR_QUORUM_ATTEMPTS"
        assert listening["event"] == "listening"
