"""The chart refuses changes that the API server would refuse in the middle of an upgrade, and names a remedy."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helm import charts
from tests.helm.api_server import ApiServer

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
Upgrade = Callable[..., str]
ROUTERS = {"router", "router-state"}


@pytest.fixture
def helm(api_server: ApiServer, tmp_path: Path) -> Upgrade:
    """Helm with this cluster."""
    (tmp_path / "kubeconfig").write_text(api_server.kubeconfig())

    def execute(*arguments: str) -> str:
        return charts.helm(*arguments, "--namespace=mor", home=tmp_path, KUBECONFIG=str(tmp_path / "kubeconfig"))

    return execute


@pytest.fixture
def upgrade(helm: Upgrade) -> Upgrade:
    """Upgrade of an installed release of the chart ``mor``, as a rehearsal on the server."""
    chart, values = str(MOR), ("--set=model.name=owner/name", "--set=fullnameOverride=mor")
    helm("install", "m", chart, "--create-namespace", *values, "--set=control.runs.storageClass=fast")

    def execute(*options: str) -> str:
        every = ("control.runs.storageClass=fast", *options)
        return helm("upgrade", "m", chart, "--dry-run=server", *values, *(f"--set={option}" for option in every))

    return execute


def change(api_server: ApiServer, resource: str, name: str, alter: Callable[[dict[str, Any]], None]) -> None:
    """Alter an object as somebody else than helm does."""
    group = "v1" if resource in ("persistentvolumeclaims", "services") else "apps/v1"
    (known,) = [found for key, found in api_server.objects.items() if (key.resource, key.name) == (resource, name)]
    altered = copy.deepcopy(known)
    alter(altered)
    api_server.put(group, resource, altered)


def test_a_change_that_the_api_server_refuses_is_refused_with_the_cure(upgrade: Upgrade) -> None:
    upgrade()
    upgrade("control.runs.size=51200Mi", "control.runs.storageClass=fast")  # the same size, in other words
    upgrade("control.runs.size=100Gi")
    for options, cure in (
        (["control.runs.size=20Gi"], "cannot shrink: set control.runs.size=50Gi; or set control.runs.existingClaim"),
        (["router.state.size=1Gi"], "set router.state.size=5Gi"),
        (["control.runs.accessMode=ReadWriteMany"], "has ReadWriteOnce, which cannot change: set it as it was"),
        (["control.runs.storageClass=slow"], 'storageClass is "slow" and the volume mor-runs has "fast"'),
        (["control.runs.storageClass="], 'storageClass is "" and the volume mor-runs has "fast"'),
        (["valkey.persistence.size=2Gi"], "set valkey.persistence.size=4Gi"),
        (["valkey.persistence.size=8Gi"], "kubectl -n mor delete statefulset mor-valkey --cascade=orphan"),
        (["valkey.persistence.storageClass=fast"], 'has "", which cannot change'),
        (["nameOverride=aligner"], "set nameOverride as it was, or first run `kubectl -n mor delete"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(cure)):
            upgrade(*options)


def test_a_volume_that_has_grown_is_not_shrunk_by_the_values_of_before(upgrade: Upgrade, api_server: ApiServer) -> None:
    def grow(claim: dict[str, Any]) -> None:
        claim["spec"]["resources"]["requests"]["storage"] = "2Ti"

    change(api_server, "persistentvolumeclaims", "mor-runs", grow)
    with pytest.raises(
        RuntimeError, match=re.escape("mor-runs has 2Ti, which cannot shrink: set control.runs.size=2Ti")
    ):
        upgrade()
    upgrade("control.runs.size=2Ti")


def test_the_class_that_the_cluster_chose_is_no_change(helm: Upgrade, upgrade: Upgrade, api_server: ApiServer) -> None:
    def choose(claim: dict[str, Any]) -> None:
        claim["spec"]["storageClassName"] = "standard"

    change(api_server, "persistentvolumeclaims", "mor-router-state", choose)
    upgrade()
    upgrade("router.state.storageClass=standard")
    with pytest.raises(RuntimeError, match='storageClass is "fast" and the volume mor-router-state has "standard"'):
        upgrade("router.state.storageClass=fast")


def test_a_class_for_all_volumes_is_their_own(helm: Upgrade) -> None:
    """Two classes in turn are refused; the same class, given to each volume, is no change."""
    chart, values = str(MOR), ("--set=model.name=owner/name", "--set=fullnameOverride=mor")
    helm("install", "m", chart, "--create-namespace", *values, "--set=global.storageClass=fast")
    volumes = ("control.runs", "control.database", "router.state", "valkey.persistence")
    own = [f"--set={volume}.storageClass=fast" for volume in volumes]

    def upgrade(*options: str) -> None:
        helm("upgrade", "m", chart, "--dry-run=server", *values, *options)

    upgrade("--set=global.storageClass=fast")
    upgrade(*own)
    upgrade(*own, "--set=global.storageClass=slow")
    for volume, name in zip(volumes, ("mor-runs", "mor-history", "mor-router-state", "data-mor-valkey-0"), strict=True):
        others = [option for option in own if volume not in option]
        reason = f'global.storageClass is "slow" and the volume {name} has "fast", which cannot change'
        with pytest.raises(RuntimeError, match=re.escape(reason)):
            upgrade(*others, "--set=global.storageClass=slow")
        with pytest.raises(RuntimeError, match=re.escape(f'{volume}.storageClass is "" and the volume {name}')):
            upgrade(*others)


def test_the_first_family_of_a_service_stays(upgrade: Upgrade, api_server: ApiServer) -> None:
    change(api_server, "services", "mor-router", lambda found: found["spec"].update(ipFamilies=["IPv4"]))
    both = ("dualStack.ipFamilyPolicy=PreferDualStack", "listenAddress=::")
    upgrade(*both, "dualStack.ipFamilies={IPv4,IPv6}")
    with pytest.raises(RuntimeError, match="first run `kubectl -n mor delete service mor-router`"):
        upgrade(*both, "dualStack.ipFamilies={IPv6,IPv4}")


def test_a_stateful_set_of_the_first_chart_is_replaced_by_hand(upgrade: Upgrade, api_server: ApiServer) -> None:
    change(api_server, "statefulsets", "mor-valkey", lambda found: found["spec"].pop("podManagementPolicy"))
    with pytest.raises(RuntimeError, match="first run `kubectl -n mor delete statefulset mor-valkey --cascade=orphan`"):
        upgrade()
    api_server.delete("apps/v1", "statefulsets", "mor", "mor-valkey")
    upgrade("valkey.persistence.size=8Gi")


def test_secrets_and_functions_of_the_platform_roll_the_pods_that_read_them(
    helm: Upgrade, api_server: ApiServer
) -> None:
    def rolled(chart: Path, *options: str) -> dict[str, str]:
        text = helm("template", "m", str(chart), "--dry-run=server", *options)
        return {
            str(document["metadata"]["name"]): str(document["spec"]["template"]["metadata"].get("annotations"))
            for document in charts.documents(text)
            if document["kind"] in ("Deployment", "StatefulSet")
        }

    def secret(name: str, **data: str) -> None:
        api_server.put("v1", "secrets", {"metadata": {"name": name, "namespace": "mor"}, "stringData": data})

    api_server.put("v1", "namespaces", {"metadata": {"name": "mor"}})
    values = ("--set=model.name=owner/name", "--set=auth.existingSecret=auth", "--set=valkey.existingSecret=valkey")
    before = rolled(MOR, *values)
    for name, data, wanted in (
        ("auth", {"service-token": "a", "secret-key": "k"}, {"control", "worker", "rollout", *ROUTERS}),
        ("auth", {"service-token": "a", "secret-key": "l"}, ROUTERS),
        ("auth", {"service-token": "a", "secret-key": "l", "tokens.json": "[]"}, set()),
        ("valkey", {"router-password": "p"}, {"valkey"}),
        ("valkey", {"router-password": "p", "router-url": "redis://"}, ROUTERS),
    ):
        secret(name, **data)
        after = rolled(MOR, *values)
        assert {name.removeprefix("m-mor-") for name in after if after[name] != before[name]} == wanted
        before = after

    history = ("control.database.external.existingSecret=history", "control.database.external.cidrs={10.0.0.0/8}")
    external = (*values, *(f"--set={value}" for value in history))
    secret("history", url="postgresql://mor:old@db/mor")
    before = rolled(MOR, *external)
    secret("history", url="postgresql://mor:new@db/mor")
    after = rolled(MOR, *external)
    assert {name for name in after if after[name] != before[name]} == {"m-mor-control"}

    function = ("--set=function.existingConfigMap=scorer",)
    before = rolled(REWARD, *function)
    api_server.put("v1", "configmaps", {"metadata": {"name": "scorer", "namespace": "mor"}, "data": {"scorer.py": "1"}})
    assert rolled(REWARD, *function) != before
