"""``mor doctor`` on an installation that is well, and on what can be wrong with one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mor_client import checks
from mor_client.checks import Told
from mor_client.exit_codes import Exit
from mor_client.findings import Finding, Verdict
from mor_core.auth import Principal, Scope
from mor_core.run_status import WorkerStatus
from mor_core.service_info import About, Disk, Facts, QueueServer

from tests.client.installation import Installation

WELL = QueueServer(
    server_id="a", version="9", eviction_policy="noeviction", append_only=True, used_bytes=1, max_bytes=None,
    round_trip_s=0.001,
)  # fmt: skip


def told(**changes: object) -> Told:
    """What a service that is well tells, with ``changes`` of its account."""
    now = time.time()
    about = About(
        service="MoR", version="1", now=now, started_at=now, caller=Principal(name="ops", scope=Scope.admin),
        facts=Facts(queue_server=WELL), problem=None,
    )  # fmt: skip
    return Told(about.model_copy(update=changes), now, 0.01)


def verdicts(findings: list[Finding]) -> set[Verdict]:
    return {finding.verdict for finding in findings}


def test_an_installation_that_is_well(mor: Installation) -> None:
    found = {finding["check"]: finding for finding in mor.json("doctor")["findings"]}
    assert found["control"]["verdict"] == found["router"]["verdict"] == "ok"
    assert found["rollout"]["verdict"] == "skipped"
    assert "MOR_ROLLOUT_URL" in found["rollout"]["cure"]
    assert found["token at control"]["detail"] == "token 'admin' has scope admin"
    assert found["queue server (by control)"]["verdict"] in ("ok", "warning")
    assert found["disk of control for runs"]["verdict"] in ("ok", "warning", "failed")
    assert found["training processes"]["verdict"] == "warning"
    assert "mor client enrol" in found["clients"]["cure"]
    assert {"versions", "clock of control", "clock of router", "alerts"} <= set(found)
    for finding in found.values():
        assert finding["verdict"] == "ok" or finding["cure"], finding


def test_a_service_that_is_away_fails_the_examination(mor: Installation, tmp_path: Path) -> None:
    result = mor.mor("doctor", MOR_ROUTER_URL="http://127.0.0.1:9")
    assert result.exit_code == Exit.refused
    assert "✗ router: no answer from http://127.0.0.1:9" in result.stdout
    mor.use("viewer")
    assert "use a token of scope admin" in mor.mor("doctor").stdout
    wrong = tmp_path / "wrong"
    wrong.write_text("a-token-that-nobody-knows")
    assert "unknown bearer token" in mor.mor("doctor", MOR_TOKEN_FILE=str(wrong)).stdout
    assert "one token and nothing else" in mor.mor("doctor", MOR_TOKEN_FILE=str(mor.config)).stderr


def test_facts_are_judged() -> None:
    well = {"control": told(), "router": told()}
    for judge in (checks.clocks, checks.token, checks.queue_servers, checks.facts):
        assert verdicts(list(judge(well))) <= {Verdict.ok}, judge
    assert verdicts(list(checks.versions(well, "1"))) == {Verdict.ok}
    assert verdicts(list(checks.versions(well, "2"))) == {Verdict.failed}
    late = {"router": told(now=time.time() - 5), "control": told(now=time.time() + 60)}
    assert [finding.verdict for finding in checks.clocks(late)] == [Verdict.warning, Verdict.failed]
    two = {"control": told(), "router": told(facts=Facts(queue_server=WELL.model_copy(update={"server_id": "b"})))}
    assert Verdict.failed in verdicts(list(checks.queue_servers(two)))
    broken = {"control": told(facts=None, problem="ConnectionError: refused")}
    assert verdicts(list(checks.facts(broken))) == {Verdict.failed}


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"eviction_policy": "allkeys-lru"}, "maxmemory-policy noeviction"),
        ({"append_only": False}, "appendonly yes"),
        ({"used_bytes": 90, "max_bytes": 100}, "MOR_BLOB_DIR"),
        ({"round_trip_s": 0.5}, "nearer"),
    ],
)
def test_a_queue_server_is_judged(change: dict[str, object], cure: str) -> None:
    server = {"control": told(facts=Facts(queue_server=WELL.model_copy(update=change)))}
    (finding,) = checks.queue_servers(server)
    assert (finding.verdict, cure in str(finding.cure)) == (Verdict.warning, True)


@pytest.mark.parametrize(("free_gib", "verdict"), [(0.5, Verdict.failed), (5, Verdict.warning), (50, Verdict.ok)])
def test_disks_are_judged(free_gib: float, verdict: Verdict) -> None:
    disk = Disk(purpose="runs", path="/runs", free_bytes=int(free_gib * 2**30), total_bytes=200 << 30)
    (finding,) = checks.disks({"control": told(facts=Facts(disks=(disk,)))})
    assert finding.verdict is verdict


def test_workers_are_judged() -> None:
    def worker(seen_at: float, version: str) -> WorkerStatus:
        return WorkerStatus(name="w", version=version, device="cpu", seen_at=seen_at, run=None)

    assert verdicts(list(checks.workers([worker(95, "1")], [], 100, "1"))) == {Verdict.ok}
    assert verdicts(list(checks.workers([worker(95, "0")], [], 100, "1"))) == {Verdict.failed}
    assert verdicts(list(checks.workers([worker(9, "1")], [], 100, "1"))) == {Verdict.warning}
