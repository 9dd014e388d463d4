"""Command line ``mor`` against real run control and router."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_client.commands import common
from mor_client.commands.common import complete
from mor_client.exit_codes import ExitCode
from mor_core.settings import StreamSettings
from mor_core.streams import Streams, connect
from mor_core.wire import EventRecord
from mor_trainer.event_log import event_id
from pydantic import SecretStr

from tests.client.installation import TOKENS, Installation
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.planted import jsonl, rows

SERVICE = {"Authorization": f"Bearer {TOKENS['service']}"}


SentEvent = tuple[str, int, dict[str, Any]]
"""Kind, step and data of an event."""


def create(mor: Installation, spec_file: Path) -> str:
    return mor.ok("run", "create", str(spec_file)).strip()


def work(mor: Installation, run: str, *events: SentEvent, end: str | None = None, pause_s: float = 0.0) -> None:
    """Act as a training process: claim ``run``, send ``events``, report the end."""
    about = httpx.get(f"{mor.control}/v1/runs/{run}", headers=SERVICE).json()
    with httpx.Client(base_url=mor.control, headers=SERVICE, timeout=20) as http:
        if about["state"] == "queued":
            claim = http.post("/v1/runs/claim", json={"worker": "w1", "version": "0.1.0", "device": "cpu"})
            assert claim.json()["run"] == run
            time.sleep(pause_s)
        for sequence, (kind, step, data) in enumerate(events, 1):
            asyncio.run(send_event(mor, run, sequence, kind, step, data))
        beat = {"attempt": 1, "state": "running"}
        seen = 0
        while seen < len(events):
            seen = http.post(f"/v1/runs/{run}/heartbeat", json=beat).json()["events_seen"]
        if end is not None:
            http.post(f"/v1/runs/{run}/heartbeat", json={"attempt": 1, "state": end, "final": "/models/aligned"})


async def send_event(mor: Installation, run: str, sequence: int, kind: Any, step: int, data: dict[str, Any]) -> None:
    redis = connect(StreamSettings(redis_url=SecretStr(mor.redis_url)))
    record = EventRecord(
        run=run, group_id=event_id(1, sequence), stamps={"trainer": 1e9}, kind=kind, step=step, data=data
    )
    await Streams(redis, run, 1000).publish("events", record, timeout_s=5)
    await redis.aclose()


def step(number: int, reward: float) -> SentEvent:
    clients = {"clinic": {"reward_mean": reward, "weight": 1.0, "failures": {}}}
    sources = {
        "warm-up": {"reward_mean": reward, "drawn": 3, "drawn_ratio": 0.75, "expected_ratio": 0.7, "epochs": 1.5}
    }
    return "step", number, {
        "reward_mean": reward, "step_seconds": 2.0, "seconds": {}, "clients": clients, "sources": sources,
    }  # fmt: skip


def test_a_reward_stands_beside_the_gate_version_that_scored_it(mor: Installation, spec_file: Path) -> None:
    run = create(mor, spec_file)
    evaluation = {"step": 1, "reward": 0.75, "gate_version": 1, "gate_versions": [1], "prompts": 4, "answered": 4}
    scored = [(kind, number, {**data, "gate_version": number}) for kind, number, data in (step(1, 0.1), step(2, 0.2))]
    work(mor, run, scored[0], ("evaluation", 1, evaluation), scored[1], end="finished")
    assert mor.json("run", "show", run)["gate_version"] == 2
    shown = " ".join(mor.ok("run", "show", run).split())
    assert "evaluation 0.75 after step 1 (gate 1, not comparable with reward_mean)" in shown
    assert "warning the run has no evaluation" in shown
    assert "gate" in mor.ok("run", "list").splitlines()[0]
    reply = httpx.get(f"{mor.control}/v1/runs/{run}/metrics", headers=SERVICE).json()
    assert reply["gate_changes"] == [{"step": 2, "before": 1, "after": 2}]
    assert [point["gate_version"] for point in reply["points"]] == [1, 2]
    of_client = httpx.get(f"{mor.control}/v1/runs/{run}/clients/clinic", headers=SERVICE).json()
    assert [point["gate_version"] for point in of_client["points"]] == [1, 2]


def test_a_run_from_creation_to_its_end(mor: Installation, spec_file: Path) -> None:
    run = create(mor, spec_file)
    assert run in mor.ok("run", "list")
    assert mor.json("run", "show", run)["state"] == "queued"
    assert mor.json("run", "pause", run)["state"] == "paused"
    assert mor.json("run", "resume", run)["state"] == "queued"

    def trained() -> None:  # heartbeats of the event stream come in between
        work(mor, run, step(1, 0.25), step(2, 0.5), end="finished", pause_s=2.5)

    threading.Timer(0.5, trained).start()
    snapshots = [json.loads(line) for line in mor.ok("run", "watch", run, "--json").splitlines()]
    assert snapshots[0]["state"] in ("queued", "running")  # a busy machine begins to watch late
    assert snapshots[-1]["state"] == "finished"
    assert snapshots[-1]["step"] == 2
    shown = mor.ok("run", "show", run)
    assert "2 of 2" in shown and "/models/aligned" in shown and "clinic" in shown
    assert "warm-up" in shown and "0.75" in shown and "0.7 " in shown and "1.5" in shown
    assert mor.ok("run", "watch", run).strip() == "/models/aligned"
    stopped = mor.mor("run", "stop", run)
    assert stopped.exit_code == ExitCode.conflict


def test_fields_of_a_run_on_the_command_line(mor: Installation, spec_file: Path) -> None:
    made = mor.json("run", "create", str(spec_file), "--set", "optimiser.lr=4e-5", "--set", "name=second")
    spec = httpx.get(f"{mor.control}/v1/runs/{made['id']}/spec", headers=SERVICE).json()
    assert (spec["name"], spec["optimiser"]["lr"], spec["steps"]) == ("second", 4e-5, 2)
    mor.ok("run", "stop", made["id"])
    watched = mor.mor("run", "watch", made["id"])
    assert watched.exit_code == ExitCode.run_failed


def test_clients_and_objectives(mor: Installation, endpoints: Endpoints, tmp_path: Path) -> None:
    endpoint = endpoints.endpoint("clinic")
    secret, page, anchors = tmp_path / "secret", tmp_path / "page", tmp_path / "anchors.jsonl"
    secret.write_text(TOKEN + "\n")
    enrolled = mor.ok("client", "enrol", "clinic", "--url", endpoint.url, "--secret-file", str(secret),
                      "--page-token-file", str(page))  # fmt: skip
    assert page.read_text() not in enrolled
    assert enrolled.splitlines()[-1] == f"token of its own page: {page}"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert mor.json("client", "list")[0]["state"] == "probation"
    mor.ok("objective", "create", "helpful", "Answer what was asked.", "--paraphrase", "Be of help.")
    long = "brief-answers-of-radiologists"
    assert (
        f"created {long}; set anchors with: mor objective anchors {long} FILE\n"
        in mor.mor("objective", "create", long, "Be brief.").stderr
    )  # one line, though it is longer than 80 characters
    mor.ok("objective", "delete", long, "--yes")
    anchors.write_bytes(jsonl(rows(24)))
    assert mor.json("objective", "anchors", "helpful", str(anchors))["anchors"] == 24
    assert mor.json("objective", "anchors", "helpful", str(anchors), "--public")["anchors"] == 24
    rule = mor.json("client", "asks", "clinic", "--ask-domain", "chart", "--ask-domain", "medical", "--ask-public-only")
    assert rule["asks"] == {"domains": ["chart", "medical"], "public_only": True}
    assert "is sent public prompts of chart, medical" in " ".join(mor.ok("client", "show", "clinic").split())
    assert mor.json("client", "asks", "clinic")["asks"] == rule["asks"], "a look changes nothing"
    assert mor.json("client", "asks", "clinic", "--ask-all")["asks"] == {"domains": None, "public_only": False}
    first = mor.json("objective", "fit", "helpful")
    assert "clinic" in mor.ok("objective", "fit", "helpful")
    listed = mor.ok("objective", "versions", "helpful")
    assert [version["version"] for version in mor.json("objective", "versions", "helpful")] == [
        first["version"], first["version"] + 1,
    ]  # fmt: skip
    assert "active" in listed
    assert mor.json("objective", "rollback", "helpful")["active"] == first["version"]
    refused = mor.mor("objective", "rollback", "helpful")
    assert refused.exit_code == ExitCode.conflict and "--to-uniform" in refused.stderr
    assert mor.json("objective", "rollback", "helpful", "--to-uniform")["active"] == 0
    assert mor.json("objective", "activate", "helpful", str(first["version"]))["active"] == first["version"]
    assert mor.json("objective", "show", "helpful")["paraphrases"] == ["Be of help."]
    changed = mor.json("objective", "change", "helpful", "--audit-share", "0.25", "--audited-by", "people")
    assert (changed["audit_share"], changed["audited_by"], changed["paraphrases"]) == (0.25, "people", ["Be of help."])
    audits = mor.json("objective", "audits", "helpful")
    assert (audits["share"], audits["labelled_by"], audits["waiting"]) == (0.25, "people", 0)
    assert "waiting for a label" in mor.ok("objective", "audits", "helpful")
    assert mor.json("objective", "change", "helpful", "--default-audit-share")["audit_share"] is None
    shown = mor.json("client", "show", "clinic")
    assert shown["audits"] == {"client": "clinic", "objectives": []}
    assert (shown["client"]["state"], shown["circuit"]) == ("active", "closed")
    assert mor.json("client", "pause", "clinic", "--reason", "maintenance")["reason"] == "maintenance"
    assert mor.json("client", "resume", "clinic")["state"] == "active", "a pause does not cost it its weight"
    assert mor.mor("client", "resume", "clinic").exit_code == ExitCode.conflict
    assert mor.json("client", "resume", "clinic", "--probation")["state"] == "probation"
    assert mor.json("client", "resume", "clinic", "--active")["state"] == "active"
    endpoint.token = "another-token-of-the-service"
    secret.write_text(endpoint.token)
    mor.ok("client", "rotate", "clinic", "--secret-file", str(secret), "--page-token-file", str(page))
    own = {"Authorization": f"Bearer {page.read_text()}"}
    assert httpx.get(f"{mor.router}/v1/clients/clinic", headers=own).status_code == 200
    deadline = time.monotonic() + 20
    while httpx.get(f"{mor.control}/v1/runs", headers=own).status_code != 200:
        assert time.monotonic() < deadline, "run control fetches the tokens of the router's clients"
        time.sleep(0.2)
    assert mor.mor("client", "remove", "clinic").exit_code == 1, "it needs confirmation"
    mor.ok("client", "remove", "clinic", "--yes")
    assert mor.json("client", "list") == []
    asked = mor.json("objective", "delete", "helpful", "--dry-run")
    assert (asked["anchors"], asked["gate_versions"], asked["dry_run"]) == (24, 2, True) and asked["bytes"] > 1000
    assert mor.mor("objective", "delete", "helpful").exit_code == 1, "it needs confirmation"
    assert mor.json("objective", "delete", "helpful", "--yes")["bytes"] == asked["bytes"]
    assert mor.mor("objective", "show", "helpful").exit_code == ExitCode.not_found


def test_dead_letters_and_alerts(mor: Installation, spec_file: Path) -> None:
    run = create(mor, spec_file)
    letter = {"stage": "router", "stream": "rollouts", "attempts": 3, "record": "{}"}
    lost = {"name": "group_dropped", "reason": "no quorum", "group_id": "g1", "letter": letter}
    work(mor, run, ("alert", 1, lost), ("alert", 1, {**lost, "group_id": "g2", "reason": "still none"}))
    found = mor.json("dead", "list", run)
    assert [(d["group_id"], d["stage"], d["replay"]) for d in found] == [("g2", "router", "no"), ("g1", "router", "no")]
    (alert,) = mor.json("alert", "list", "--run", run)
    assert (alert["count"], alert["reason"], alert["webhook"]) == (2, "still none", "off")
    assert mor.json("alert", "acknowledge", str(alert["id"]), "--note", "gone")["acknowledged_by"] == "admin"
    assert mor.json("alert", "list", "--run", run) == []
    assert mor.mor("dead", "replay", run).exit_code == ExitCode.usage
    (replayed,) = mor.json("dead", "replay", run, str(found[0]["id"]))
    assert replayed["replay"] == "asked"
    assert len(mor.json("dead", "replay", run, "--all")) == 1
    beat = {"attempt": 1, "state": "running"}
    reply = httpx.post(f"{mor.control}/v1/runs/{run}/heartbeat", json=beat, headers=SERVICE).json()
    assert set(reply["replay"].values()) == {"g1", "g2"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("run", "show", "nope"), ExitCode.not_found, "no run 'nope'; 'mor run list' shows all"),
        (("run", "create", "/nowhere.toml"), ExitCode.usage, "/nowhere.toml: No such file"),
        (("run", "create", "--set", "name"), ExitCode.usage, "write it as name=value"),
        (("run", "create", "--set", "name=x"), ExitCode.usage, "model: Field required"),
        (
            ("run", "create", "--set", "name=x", "--set", "model=/m", "--set", "prompts=/p"),
            ExitCode.refused,
            "no folder",
        ),
        (("client", "enrol", "x", "--url", "http://x", "--secret-file", "/none"), ExitCode.usage, "creates one"),
        (("objective", "fit", "nope"), ExitCode.not_found, "'mor objective create' makes one"),
        (("objective", "anchors", "nope", "/none.jsonl"), ExitCode.usage, "/none.jsonl"),
        (("dead", "list", "nope"), ExitCode.not_found, "no run"),
        (("alert", "acknowledge", "999"), ExitCode.not_found, "no alert 999"),
    ],
)
def test_errors_have_a_cure_and_an_exit_status(
    mor: Installation, arguments: tuple[str, ...], status: ExitCode, message: str
) -> None:
    result = mor.mor(*arguments)
    assert (result.exit_code, message in result.stderr.replace("\n", " ")) == (status, True), result.output
    as_json = mor.mor(*arguments, "--json")
    assert as_json.exit_code == status
    assert message in json.loads(as_json.stderr)["error"]["detail"]


def test_invalid_tokens_and_addresses_are_errors(mor: Installation) -> None:
    mor.use("viewer")
    assert mor.mor("run", "list").exit_code == 0
    refused = mor.mor("run", "stop", "x")
    assert refused.exit_code == ExitCode.not_allowed
    assert "has scope viewer" in refused.stderr
    assert mor.mor("run", "list", MOR_TOKEN_FILE="/none").exit_code == ExitCode.usage
    away = mor.mor("run", "list", MOR_CONTROL_URL="http://127.0.0.1:9")
    assert (away.exit_code, "check that it is running" in away.stderr) == (ExitCode.no_answer, True)
    nowhere = {"MOR_CONTROL_URL": "http://127.0.0.1:9", "MOR_ATTEMPTS": "2"}
    assert "trying again in" in mor.mor("run", "list", **nowhere).stderr
    as_json = mor.mor("run", "list", "--json", **nowhere)
    assert (as_json.stdout, json.loads(as_json.stderr)["error"]["status"]) == ("", None)
    mor.config.write_text('contrl_url = "http://x"\n')
    assert "contrl_url" in mor.mor("run", "list").stderr


def test_the_address_of_another_service_is_named(mor: Installation) -> None:
    for arguments, setting, address, words in (
        (("client", "list"), "MOR_ROUTER_URL", mor.control, "the address of run control, not of the router"),
        (("objective", "fit", "x"), "MOR_ROUTER_URL", mor.control, "this one belongs into MOR_CONTROL_URL"),
        (("run", "list"), "MOR_CONTROL_URL", mor.router, "the address of the router, not of run control"),
        (("run", "watch", "x"), "MOR_CONTROL_URL", mor.router, "correct MOR_CONTROL_URL, or control_url in the"),
    ):
        result = mor.mor(*arguments, **{setting: address})
        assert (result.exit_code, words in result.stderr) == (ExitCode.usage, True), result.stderr
    found = mor.mor("doctor", MOR_ROLLOUT_URL=mor.router)
    assert "the address of the router, not of the rollout service" in found.stdout
    scheme = mor.mor("run", "list", MOR_CONTROL_URL=mor.control.replace("http:", "https:"))
    assert "the other end speaks plain HTTP: write http:// in its address" in scheme.stderr


def test_json_stands_anywhere_and_a_pipe_gets_whole_rows(mor: Installation, spec_file: Path) -> None:
    run = create(mor, spec_file)
    rows = [line for line in mor.ok("run", "list").splitlines() if run in line]
    assert [re.split(r" {2,}", row)[:2] for row in rows] == [[run, "queued"]]
    narrow = mor.mor("run", "list", COLUMNS="20").stdout
    assert rows[0] in narrow.splitlines()
    for arguments in (("--json", "run", "list"), ("run", "--json", "list"), ("run", "list", "--json")):
        assert run in [found["id"] for found in json.loads(mor.ok(*arguments))]
    assert json.loads(mor.mor("--json", "run", "show", "nope").stderr)["error"]["status"] == 404


def test_a_watched_list_is_shown_at_each_change_until_it_is_interrupted() -> None:
    answers, shown = iter([1, 1, 2, 2, 3]), []

    def read() -> int:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(common, "_WATCH_S", 0.0)
        common.show(read, shown.append, as_json=False, watch=True)
    assert shown == [1, 2, 3]


def test_a_misspelt_variable_is_named(mor: Installation) -> None:
    done = mor.mor("run", "list", MOR_CONTROL_ULR="http://x")
    assert done.exit_code == 0
    assert "nothing reads the variable MOR_CONTROL_ULR; did you mean MOR_CONTROL_URL?" in done.stderr
    assert "MOR_CONTROL_ULR" not in mor.mor("run", "list", "--json", MOR_CONTROL_ULR="http://x").stderr


def test_files_of_another_encoding_and_places_that_cannot_be_written(
    mor: Installation, endpoints: Endpoints, tmp_path: Path
) -> None:
    spec, secret, binary = tmp_path / "run.toml", tmp_path / "secret", tmp_path / "binary"
    spec.write_bytes('name = "café"\n'.encode("latin-1"))
    secret.write_text(TOKEN)
    binary.write_bytes(b"\xff\xfe")
    assert "save it as UTF-8, as by: iconv -f LATIN1" in mor.mor("run", "create", str(spec)).stderr
    spec.write_bytes('prompt = "café"\n'.encode("utf-8-sig"))
    assert "prompt: unknown field" in mor.mor("run", "create", str(spec)).stderr, "a byte order mark is no statement"
    spec.write_text("[" * 100_000)
    assert (
        "nested too deeply; write the fields"
        in mor.mor("run", "create", str(spec.rename(tmp_path / "run.json"))).stderr
    )
    anchors = tmp_path / "anchors.csv"
    anchors.write_text("prompt,chosen,rejected\na,b,c\n")
    assert "a table in text (CSV); save it as JSON lines" in mor.mor("objective", "anchors", "x", str(anchors)).stderr
    enrol = ("client", "enrol", "late", "--url", endpoints.endpoint("late").url, "--secret-file")
    assert "holds no token but other bytes" in mor.mor(*enrol, str(binary)).stderr
    refused = mor.mor(*enrol, str(secret), "--page-token-file", "/proc/nowhere/page")
    assert (refused.exit_code, "--page-token-file /proc/nowhere/page cannot" in refused.stderr) == (2, True)
    assert "late" not in [client["name"] for client in mor.json("client", "list")], "no client whose token is lost"
    assert mor.mor("run", "list", MOR_TOKEN_FILE=str(binary)).exit_code == ExitCode.usage


def test_arguments_are_completed_by_existing_names(
    mor: Installation, spec_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(mor, spec_file)
    monkeypatch.setenv("MOR_CONFIG", str(mor.config))
    names = complete(lambda services: [found.id for found in services.runs.list()])
    assert run in names("fir")
    assert names("zzz") == []
    monkeypatch.setenv("MOR_CONTROL_URL", "http://127.0.0.1:9")
    assert names("fir") == []
