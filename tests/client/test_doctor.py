"""``mor doctor`` on a healthy installation and on faulty ones."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mor_client import doctor_checks
from mor_client.doctor_checks import ServiceReport
from mor_client.exit_codes import ExitCode
from mor_client.findings import Finding, Verdict
from mor_core.auth import Principal, Scope
from mor_core.run_status import WorkerStatus
from mor_core.service_info import Disk, HostInfo, QueueServer, ServiceInfo

from tests.client.installation import Installation

HEALTHY = QueueServer(
    server_id="a", version="9", eviction_policy="noeviction", append_only=True, used_bytes=1, max_bytes=None,
    round_trip_s=0.001,
)  # fmt: skip


def report(**changes: object) -> ServiceReport:
    """Make the report of a healthy service, with ``changes``."""
    now = time.time()
    about = ServiceInfo(
        service="MoR", version="1", now=now, started_at=now, caller=Principal(name="ops", scope=Scope.admin),
        facts=HostInfo(queue_server=HEALTHY), problem=None,
    )  # fmt: skip
    return ServiceReport(about.model_copy(update=changes), now, 0.01)


def verdicts(findings: list[Finding]) -> set[Verdict]:
    return {finding.verdict for finding in findings}


def test_a_healthy_installation_has_no_failed_check(mor: Installation) -> None:
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


def test_an_unreachable_service_fails_the_diagnosis(mor: Installation, tmp_path: Path) -> None:
    result = mor.mor("doctor", MOR_ROUTER_URL="http://127.0.0.1:9")
    assert result.exit_code == ExitCode.refused
    assert "✗ router: no answer from http://127.0.0.1:9" in result.stdout
    mor.use("viewer")
    assert "use a token of scope admin" in mor.mor("doctor").stdout
    wrong = tmp_path / "wrong"
    wrong.write_text("a-token-that-nobody-knows")
    assert "unknown bearer token" in mor.mor("doctor", MOR_TOKEN_FILE=str(wrong)).stdout
    assert "one token and nothing else" in mor.mor("doctor", MOR_TOKEN_FILE=str(mor.config)).stderr


def test_a_check_that_is_skipped_says_what_to_do_and_not_the_error_again(mor: Installation) -> None:
    mor.use("labeller")
    findings = json.loads(mor.mor("doctor", "--json").stdout)["findings"]
    skipped = {finding["check"]: finding for finding in findings if finding["verdict"] == "skipped"}
    assert {"training processes", "alerts", "clients"} <= set(skipped)
    for finding in findings:
        assert not finding["cure"] or finding["cure"] not in finding["detail"], finding
    assert skipped["clients"]["detail"] == "token 'labeller' has scope labeller"
    assert skipped["clients"]["cure"] == "use one of scope admin or service or viewer"


def test_clocks_versions_and_host_reports_are_checked() -> None:
    healthy = {"control": report(), "router": report()}
    for check in (doctor_checks.clocks, doctor_checks.token, doctor_checks.queue_servers, doctor_checks.facts):
        assert verdicts(list(check(healthy))) <= {Verdict.ok}, check
    assert verdicts(list(doctor_checks.versions(healthy, "1"))) == {Verdict.ok}
    assert verdicts(list(doctor_checks.versions(healthy, "2"))) == {Verdict.failed}
    late = {"router": report(now=time.time() - 5), "control": report(now=time.time() + 60)}
    assert [finding.verdict for finding in doctor_checks.clocks(late)] == [Verdict.warning, Verdict.failed]
    two = {
        "control": report(),
        "router": report(facts=HostInfo(queue_server=HEALTHY.model_copy(update={"server_id": "b"}))),
    }
    assert Verdict.failed in verdicts(list(doctor_checks.queue_servers(two)))
    broken = {"control": report(facts=None, problem="ConnectionError: refused")}
    assert verdicts(list(doctor_checks.facts(broken))) == {Verdict.failed}


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"eviction_policy": "allkeys-lru"}, "maxmemory-policy noeviction"),
        ({"append_only": False}, "appendonly yes"),
        ({"used_bytes": 90, "max_bytes": 100}, "MOR_BLOB_DIR"),
        ({"round_trip_s": 0.5}, "move it closer"),
    ],
)
def test_a_faulty_queue_server_gets_a_warning_with_the_cure(change: dict[str, object], cure: str) -> None:
    server = {"control": report(facts=HostInfo(queue_server=HEALTHY.model_copy(update=change)))}
    (finding,) = doctor_checks.queue_servers(server)
    assert (finding.verdict, cure in str(finding.cure)) == (Verdict.warning, True)


@pytest.mark.parametrize(("free_gib", "verdict"), [(0.5, Verdict.failed), (5, Verdict.warning), (50, Verdict.ok)])
def test_full_disks_are_found(free_gib: float, verdict: Verdict) -> None:
    disk = Disk(purpose="runs", path="/runs", free_bytes=int(free_gib * 2**30), total_bytes=200 << 30)
    (finding,) = doctor_checks.disks({"control": report(facts=HostInfo(disks=(disk,)))})
    assert finding.verdict is verdict


@pytest.mark.parametrize("scope", sorted(set(Scope) - {Scope.admin}))
def test_a_token_without_all_rights_gets_the_scope_that_it_lacks(scope: Scope) -> None:
    [finding] = doctor_checks.token({"control": report(caller=Principal(name="ops", scope=scope))})
    reads = scope in (Scope.viewer, Scope.service)
    assert (finding.verdict, "can only read" in str(finding.cure)) == (Verdict.warning, reads)
    assert ("viewer to read" in str(finding.cure)) is not reads


def test_workers_must_be_alive_and_of_the_same_version() -> None:
    def worker(seen_at: float, version: str) -> WorkerStatus:
        return WorkerStatus(name="w", version=version, device="cpu", seen_at=seen_at, run=None)

    assert verdicts(list(doctor_checks.workers([worker(95, "1")], [], 100, "1"))) == {Verdict.ok}
    assert verdicts(list(doctor_checks.workers([worker(95, "0")], [], 100, "1"))) == {Verdict.failed}
    assert verdicts(list(doctor_checks.workers([worker(9, "1")], [], 100, "1"))) == {Verdict.warning}
