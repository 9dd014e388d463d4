"""Engines follow the groups that wait, and nothing else of the release depends on their number."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import mor_trainer.metrics
import pytest
import yaml
from prometheus_client import REGISTRY

from tests.helm import charts
from tests.helm.test_rules import PROMTOOL, needs_promtool

MOR = charts.CHARTS / "mor"
ON = (
    "--set=model.name=a/b",
    "--set=rollout.autoscaling.enabled=true",
    "--set=rollout.autoscaling.prometheus.serverAddress=http://prometheus:9090",
)


def test_keda_sets_the_number_of_engines_by_a_metric_that_run_control_has() -> None:
    documents = charts.render(MOR, *ON, "--set=rollout.autoscaling.minReplicas=2")
    assert "replicas" not in charts.of(documents, "Deployment")["m-mor-rollout"]["spec"]
    scaled = charts.of(documents, "ScaledObject")["m-mor-rollout"]["spec"]
    assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "m-mor-rollout"}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 4)
    [trigger] = scaled["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes strings alone"
    [metric] = re.findall(r"mor_\w+", trigger["metadata"]["query"])
    assert mor_trainer.metrics and metric in {found.name for found in REGISTRY.collect()}
    assert charts.of(documents, "PodDisruptionBudget")["m-mor-rollout"]


@needs_promtool
def test_the_query_counts_the_groups_of_this_release_alone(tmp_path: Path) -> None:
    [trigger] = charts.of(charts.render(MOR, *ON), "ScaledObject")["m-mor-rollout"]["spec"]["triggers"]

    def entries(namespace: str, service: str, run: str, stream: str) -> str:
        of = f'namespace="{namespace}",service="{service}",run="{run}",stream="{stream}"'
        return f"mor_trainer_stream_entries{{{of}}}"

    counted = {entries("mor", "m-mor-control", run, "prompts"): "20x9" for run in ("r", "s")}
    others = [
        entries("mor", "m-mor-control", "r", "rewards"),
        entries("mor", "m-mor-2-control", "r", "prompts"),
        entries("other", "m-mor-control", "r", "prompts"),
    ]
    series = [{"series": name, "values": values} for name, values in (counted | dict.fromkeys(others, "7x9")).items()]
    test = {"expr": trigger["metadata"]["query"], "eval_time": "5m", "exp_samples": [{"value": 40}]}
    (tmp_path / "rules.yaml").write_text("groups: []\n")
    file = tmp_path / "tests.yaml"
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": [test]}]
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    command = [str(PROMTOOL), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_number_of_engines_changes_no_other_pod() -> None:
    """Routers find the engines by their Service, which is there without an engine too."""
    one, none, scaled = (
        charts.render(MOR, "--set=model.name=a/b", *options) for options in ((), ("--set=rollout.replicas=0",), ON[1:])
    )
    templates = [
        json.dumps(charts.pods(documents)["m-mor-router"], sort_keys=True) for documents in (one, none, scaled)
    ]
    assert len(set(templates)) == 1
    assert charts.variables(charts.pods(none)["m-mor-router"])["MOR_POLICY_URL"] == "http://m-mor-rollout:8200"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([ON[1]], "name the Prometheus that has run control's metrics"),
        ([*ON[1:], "--set=rollout.autoscaling.minReplicas=9"], "rollout.autoscaling.minReplicas is above maxReplicas"),
        ([*ON[1:], "--set=rollout.autoscaling.prometheus.authModes=bearer"], "set both, or none"),
    ],
)
def test_scaling_that_cannot_work_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        charts.render(MOR, "--set=model.name=a/b", *options)
