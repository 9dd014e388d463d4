"""A release is installed, tested, rotated, upgraded, rolled back and uninstalled on a real API server with controllers.

`make test-cluster` runs this on simulated nodes, `make test-kind` with MoR's images.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.kind import KindCluster
from tests.cluster.nodes import Nodes
from tests.helm import charts

CHART = str(charts.CHARTS / "mor")
VALUES = f"--values={charts.TINY}"
_NUMBERS = itertools.count()
_WAIT_S = 900  # kind starts engines; simulated pods run at once

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Path:
    return charts.TOOLS / str(request.param)


@pytest.fixture
def namespace(cluster: Cluster, helm: Path) -> Iterator[str]:
    name = f"life-{next(_NUMBERS)}-{helm.name}"  # the one of the last test takes time to go
    cluster.prepare(name, charts.render(charts.CHARTS / "mor", VALUES, namespace=name))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def secret(cluster: Cluster, namespace: str, name: str = "m-mor-auth") -> dict[str, str]:
    data = cluster.get("secret", name, "-n", namespace)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_a_rotation_outlives_upgrade_rollback_and_a_second_install(
    cluster: Cluster, helm: Path, namespace: str
) -> None:
    def run(*arguments: str) -> None:
        cluster.helm(*arguments, "-n", namespace, "--timeout=30m", binary=helm)

    run("install", "m", CHART, VALUES)
    cluster.settled(namespace, _WAIT_S)
    run("test", "m")
    leaked = secret(cluster, namespace)

    cluster.kubectl("create", "job", "rotation", "--from=cronjob/m-mor-rotate", "-n", namespace)
    cluster.kubectl("wait", "job/rotation", "--for=condition=Complete", "--timeout=300s", "-n", namespace)
    rotated = secret(cluster, namespace)
    assert rotated["admin-token"] != leaked["admin-token"]
    assert leaked["admin-token"] not in str(rotated)

    run("upgrade", "m", CHART, VALUES, "--set=router.terminationGracePeriodSeconds=46")
    cluster.settled(namespace, _WAIT_S)
    assert secret(cluster, namespace)["admin-token"] == rotated["admin-token"]
    run("rollback", "m", "1")
    cluster.settled(namespace, _WAIT_S)
    assert secret(cluster, namespace)["admin-token"] == rotated["admin-token"]
    run("test", "m")

    run("uninstall", "m")
    # The pod of `helm test` stays, for its log.
    wait_for(lambda: all(pod["status"]["phase"] == "Succeeded" for pod in cluster.pods(namespace)), _WAIT_S)
    run("install", "m", CHART, VALUES)
    cluster.settled(namespace, _WAIT_S)
    assert secret(cluster, namespace)["admin-token"] == rotated["admin-token"]
    run("uninstall", "m")


def test_a_drained_node_is_left_by_every_pod(cluster: Cluster, namespace: str, helm: Path) -> None:
    cluster.helm("install", "m", CHART, VALUES, "-n", namespace, "--timeout=30m", binary=helm)
    pods = cluster.settled(namespace, _WAIT_S)
    node = next(pod["spec"]["nodeName"] for pod in pods if "control" in pod["metadata"]["name"])
    # A volume of kind's own class stays on its node, and with it run control: kind drains the node without volumes.
    if isinstance(cluster, KindCluster):
        bound = {pod["spec"]["nodeName"] for pod in pods if "rollout" in pod["metadata"]["name"]}
        node = next(iter(bound - {node}), node)
    try:
        cluster.kubectl("drain", node, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=600s")
        assert not [pod for pod in cluster.pods(namespace) if pod["spec"].get("nodeName") == node]
        if not isinstance(cluster, KindCluster):
            assert cluster.settled(namespace, _WAIT_S)
    finally:
        cluster.kubectl("uncordon", node)
    cluster.settled(namespace, _WAIT_S)
    cluster.helm("uninstall", "m", "-n", namespace, binary=helm)


@contextmanager
def lost(cluster: Cluster, nodes: Nodes, node: str) -> Iterator[Callable[[], None]]:
    """Lose a node until the end; the function declares it out of service, by the command of docs/runbooks.md."""
    taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"

    def declare() -> None:
        cluster.kubectl("taint", "node", node, taint)

    nodes.lose(node)
    try:
        cluster.kubectl("wait", f"node/{node}", "--for=condition=Ready=Unknown", "--timeout=180s")
        yield declare
    finally:
        nodes.find_again(node)
        with suppress(RuntimeError):  # it was not declared
            cluster.kubectl("taint", "node", node, f"{taint}-")


def test_a_lost_nodes_pods_start_elsewhere_once_it_is_declared_out_of_service(
    simulated: Cluster, nodes: Nodes, namespace: str, helm: Path
) -> None:
    """Until then no StatefulSet's pod and no volume leaves the node."""
    simulated.helm("install", "m", CHART, VALUES, "-n", namespace, binary=helm)
    pods = simulated.settled(namespace)
    node = next(pod["spec"]["nodeName"] for pod in pods if "valkey" in pod["metadata"]["name"])
    with lost(simulated, nodes, node) as declare_out_of_service:
        declare_out_of_service()
        wait_for(lambda: all(pod["spec"].get("nodeName") != node for pod in simulated.pods(namespace)), 120)
        simulated.settled(namespace)
    simulated.helm("uninstall", "m", "-n", namespace, binary=helm)


def test_a_second_run_control_is_not_scheduled_while_the_first_may_run(
    simulated: Cluster, nodes: Nodes, namespace: str, helm: Path
) -> None:
    """The first is on a lost node, so that nobody knows whether it still has the history open."""

    def controls() -> list[charts.Document]:
        return [pod for pod in simulated.pods(namespace) if "-control-" in pod["metadata"]["name"]]

    def refused(pod: charts.Document) -> bool:
        return any("ReadWriteOncePod" in each.get("message", "") for each in pod["status"].get("conditions", []))

    simulated.helm("install", "m", CHART, VALUES, "-n", namespace, binary=helm)
    simulated.settled(namespace)
    [first] = controls()
    with lost(simulated, nodes, first["spec"]["nodeName"]) as declare_out_of_service:
        wait_for(lambda: any(refused(pod) for pod in controls()), 120, simulated.state)
        assert first["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in controls()}
        declare_out_of_service()
        simulated.settled(namespace)
        [second] = controls()
        assert second["spec"]["nodeName"] != first["spec"]["nodeName"]
    simulated.helm("uninstall", "m", "-n", namespace, binary=helm)
