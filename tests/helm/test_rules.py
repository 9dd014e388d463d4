"""Prometheus alerts: each fires when it should and not otherwise, by promtool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import charts

RULES = charts.CHARTS / "mor" / "files" / "rules.yaml"
FETCHED = charts.TOOLS / "promtool"
PROMTOOL = shutil.which("promtool") or (str(FETCHED) if FETCHED.exists() else None)
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool: `make test-helm` fetches it")

RUN, ROUTER = 'run="r"', 'client="c",instance="router"'
CASES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "MorServiceDown": ({'up{instance="a"}': "0x60"}, {'up{instance="a"}': "1x60"}, "10m"),
    "MorTrainingStalled": (
        {f"mor_trainer_last_step_timestamp_seconds{{{RUN}}}": "0x90", f"mor_trainer_run_paused{{{RUN}}}": "0x90"},
        {f"mor_trainer_last_step_timestamp_seconds{{{RUN}}}": "0x90", f"mor_trainer_run_paused{{{RUN}}}": "1x90"},
        "40m",
    ),
    "MorStreamStuck": (
        {f'mor_trainer_stream_oldest_seconds{{{RUN},stream="prompts"}}': "1000x60"},
        {f'mor_trainer_stream_oldest_seconds{{{RUN},stream="dead"}}': "1000x60"},
        "10m",
    ),
    "MorDeadLetters": (
        {'mor_router_groups_total{outcome="dead",instance="router"}': "_x5 1x60"},
        {'mor_router_groups_total{outcome="dead",instance="router"}': "3x60"},
        "15m",
    ),
    "MorWeightSwapFailing": (
        {'mor_rollout_swaps_total{outcome="failed",instance="rollout"}': "0x5 1x60"},
        {'mor_rollout_swaps_total{outcome="done",instance="rollout"}': "0+1x60"},
        "10m",
    ),
    "MorStalenessAtBound": (
        {f"mor_trainer_staleness_updates{{{RUN}}}": "4x60", f"mor_trainer_staleness_bound_updates{{{RUN}}}": "4x60"},
        {f"mor_trainer_staleness_updates{{{RUN}}}": "1x60", f"mor_trainer_staleness_bound_updates{{{RUN}}}": "1x60"},
        "40m",
    ),
    "MorRewardCollapse": (
        {f"mor_trainer_reward_mean_logits{{{RUN}}}": "0+0.1x30 0x60"},
        {f"mor_trainer_reward_mean_logits{{{RUN}}}": "0+0.1x90"},
        "75m",
    ),
    "MorNothingToLearn": (
        {f"mor_trainer_zero_variance_group_ratio{{{RUN}}}": "0.9x90"},
        {f"mor_trainer_zero_variance_group_ratio{{{RUN}}}": "0.5x90"},
        "60m",
    ),
    "MorPromptsBeyondAnchors": (
        {
            "mor_router_ood_score_ratio_sum": "0+7x90",
            "mor_router_ood_score_ratio_count": "0+10x90",
        },
        {
            "mor_router_ood_score_ratio_sum": "0+1x90",
            "mor_router_ood_score_ratio_count": "0+10x90",
        },
        "60m",
    ),
    "MorKlRunaway": ({f"mor_trainer_kl_nats{{{RUN}}}": "0.7x60"}, {f"mor_trainer_kl_nats{{{RUN}}}": "0.1x60"}, "20m"),
    "MorTruncation": (
        {f"mor_trainer_truncation_ratio{{{RUN}}}": "0.6x60"},
        {f"mor_trainer_truncation_ratio{{{RUN}}}": "0.2x60"},
        "30m",
    ),
    "MorTrainerAlert": (
        {f'mor_trainer_alerts_total{{{RUN},name="non_finite"}}': "_x5 1x60"},
        {f'mor_trainer_alerts_total{{{RUN},name="non_finite"}}': "2x60"},
        "15m",
    ),
    "MorNoActiveClient": (
        {'mor_router_active_clients{instance="a"}': "0x60", 'mor_router_active_clients{instance="b"}': "0x60"},
        {'mor_router_active_clients{instance="a"}': "0x60", 'mor_router_active_clients{instance="b"}': "1x60"},
        "10m",
    ),
    "MorRouterState": (
        {'mor_router_state_problem{instance="a"}': "1x60"},
        {'mor_router_state_problem{instance="a"}': "0x60"},
        "10m",
    ),
    "MorClientDown": (
        {f"mor_router_circuit_state{{{ROUTER}}}": "2x60"},
        {f"mor_router_circuit_state{{{ROUTER}}}": "2x4 0x60"},
        "15m",
    ),
    "MorClientUnreliable": (
        {f"mor_router_unreliable{{{ROUTER}}}": "1x60"},
        {f"mor_router_unreliable{{{ROUTER}}}": "0x60"},
        "5m",
    ),
    "MorClientQuarantined": (
        {f"mor_router_quarantined{{{ROUTER}}}": "1x60"},
        {f"mor_router_quarantined{{{ROUTER}}}": "0x60"},
        "5m",
    ),
    "MorClientDrifted": (
        {f"mor_router_distrusted{{{ROUTER}}}": "1x60"},
        {f"mor_router_distrusted{{{ROUTER}}}": "0x60"},
        "5m",
    ),
    "MorClientModelChanged": (
        {f"mor_router_stale_calibration{{{ROUTER}}}": "1x60"},
        {f"mor_router_stale_calibration{{{ROUTER}}}": "1x4 0x60"},
        "20m",
    ),
    "MorUnreadableEntries": (
        {'mor_unreadable_entries_total{store="clients",instance="router"}': "_x5 1x60"},
        {'mor_unreadable_entries_total{store="clients",instance="router"}': "3x60"},
        "12m",
    ),
    "MorDiskFull": (
        {'mor_trainer_run_disk_full{instance="control",run="r"}': "1x60"},
        {'mor_disk_full{instance="rollout",writer="pulled weights"}': "0x60"},
        "5m",
    ),
    "MorDiskLow": (
        {
            'mor_disk_free_bytes{instance="control",folder="runs"}': "4x60",
            'mor_disk_size_bytes{instance="control",folder="runs"}': "100x60",
        },
        {
            'mor_disk_free_bytes{instance="control",folder="runs"}': "6x60",
            'mor_disk_size_bytes{instance="control",folder="runs"}': "100x60",
        },
        "20m",
    ),
    "MorWaitingForClients": (
        {f"mor_router_waiting_groups{{{ROUTER}}}": "4x60"},
        {f"mor_router_waiting_groups{{{ROUTER}}}": "4x1 0x60"},
        "10m",
    ),
    "MorCertificateNotRenewed": (
        {'mor_certificate_reload_failed{instance="a",settings="MOR_CA_FILE"}': "1x60"},
        {'mor_certificate_reload_failed{instance="a",settings="MOR_CA_FILE"}': "1x5 0x60"},
        "30m",
    ),
    "MorRunControlWaiting": (
        {'mor_trainer_history_owned{instance="control"}': "0x60"},
        {'mor_trainer_history_owned{instance="control"}': "1x5 0x10 1x60"},  # a takeover
        "25m",
    ),
    "MorClockSkew": (
        {'mor_clock_skew_seconds{instance="router"}': "-612x60"},
        {'mor_clock_skew_seconds{instance="router"}': "12x60"},
        "10m",
    ),
    "MorTaskRestarts": (
        {'mor_task_restarts_total{task="Ingest._look",instance="control"}': "_x5 1+1x60"},
        {'mor_task_restarts_total{task="Ingest._look",instance="control"}': "_x5 1x60"},
        "12m",
    ),
    "MorAuditsWaiting": (
        {f'mor_router_audit_oldest_seconds{{{ROUTER},objective="helpful"}}': "300000x120"},
        {f'mor_router_audit_oldest_seconds{{{ROUTER},objective="helpful"}}': "200000x120"},
        "90m",
    ),
    "MorAuditsDropped": (
        {f'mor_router_audits_total{{{ROUTER},objective="helpful",outcome="dropped"}}': "_x5 1x60"},
        {f'mor_router_audits_total{{{ROUTER},objective="helpful",outcome="labelled"}}': "0+1x60"},
        "30m",
    ),
}
"""By alert: series a minute apart that raise it, series that do not, and when to look. ``_``: no sample yet."""


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def series(given: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in given.items()]


@needs_promtool
@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules()])
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES.read_text().replace("@SELECTOR@", ""))
    raised, silent, at = CASES[alert]
    [rule] = [rule for rule in rules() if rule["alert"] == alert]
    tests = {
        "rule_files": ["rules.yaml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": series(given),
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                        "eval_time": at,
                        "exp_samples": expected,
                    }
                ],
            }
            for given, expected in ((raised, [{"value": 1}]), (silent, []))
        ],
    }
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
