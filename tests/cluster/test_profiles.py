"""Kubernetes' own scheduler places every pod of every profile on nodes of two kinds: CPU, and GPU with a taint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.helm import charts

pytestmark = pytest.mark.timeout(900)  # the session's first test starts the control plane, too


@pytest.mark.parametrize("profile", charts.PROFILES, ids=charts.named)
def test_every_pod_of_a_profile_runs_and_leaves(simulated: Cluster, profile: Path) -> None:
    namespace = charts.named(profile)
    chart, values = charts.chart_of(profile), f"--values={profile}"
    simulated.prepare(namespace, charts.render(chart, values, namespace=namespace))
    simulated.helm("install", "m", str(chart), "-n", namespace, values)
    try:
        for pod in simulated.settled(namespace):
            if any("nvidia.com/gpu" in one["resources"].get("limits", {}) for one in pod["spec"]["containers"]):
                assert pod["spec"]["nodeName"].startswith("gpu-")
    finally:
        simulated.helm("uninstall", "m", "-n", namespace)
        simulated.kubectl("delete", "namespace", namespace, "--wait=false")
