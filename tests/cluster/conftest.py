"""A cluster for each session: Kubernetes' control plane with simulated nodes, or kind (``MOR_TEST_CLUSTER=kind``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import control_plane, kind
from tests.cluster.cluster import Cluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.nodes import Nodes
from tests.helm import charts


def _needs(reason: str | None) -> None:
    reason = reason or (None if charts.HELM.exists() else "helm is not here: `make test-helm` fetches it")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    _needs(control_plane.missing())
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    nodes = Nodes(plane)
    yield nodes
    nodes.stop()
    plane.stop()


@pytest.fixture(scope="session")
def simulated(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(nodes.plane.kubeconfig, tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The simulated cluster, or kind."""
    if os.environ.get("MOR_TEST_CLUSTER") != "kind":
        yield request.getfixturevalue("simulated")
        return
    _needs(kind.missing())
    model: Path = request.getfixturevalue("tiny_vlm")
    made = kind.KindCluster(tmp_path_factory.mktemp("kind"), model)
    yield made
    made.delete()
