"""Install, upgrade, roll back and uninstall with the real helm on an API server with strict schemas."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.helm import charts
from tests.helm.api_server import ApiServer

Run = Callable[..., str]


@pytest.fixture(params=["helm3", "helm4"])
def run(request: pytest.FixtureRequest, api_server: ApiServer, tmp_path: Path) -> Run:
    (tmp_path / "kubeconfig").write_text(api_server.kubeconfig())

    def execute(*arguments: str) -> str:
        kubeconfig = str(tmp_path / "kubeconfig")
        return charts.helm(*arguments, binary=charts.TOOLS / request.param, home=tmp_path, KUBECONFIG=kubeconfig)

    return execute


def test_a_release_lives_and_its_volumes_outlive_it(run: Run, api_server: ApiServer) -> None:
    chart = str(charts.CHARTS / "mor")
    values = f"--values={charts.CHARTS / 'mor' / 'ci' / 'tiny-cpu-values.yaml'}"
    notes = run("install", "m", chart, "--namespace=mor", "--create-namespace", values)
    assert "helm test m -n mor --logs" in notes
    run("upgrade", "m", chart, "--namespace=mor", values, "--set=router.replicas=3")
    deployments = api_server.of("Deployment", "mor")
    assert [deployments[name]["spec"]["replicas"] for name in ("m-mor-router", "m-mor-router-state")] == [2, 1]

    run("rollback", "m", "1", "--namespace=mor")
    assert api_server.of("Deployment", "mor")["m-mor-router"]["spec"]["replicas"] == 1

    run("uninstall", "m", "--namespace=mor")
    left = {(key.resource, key.name) for key in api_server.objects if key.namespace == "mor"}
    volumes = ("m-mor-runs", "m-mor-history", "m-mor-router-state", "data-m-mor-valkey-0")
    assert left == {("persistentvolumeclaims", name) for name in volumes}


def test_a_client_deregisters_before_it_is_uninstalled(run: Run, api_server: ApiServer) -> None:
    chart = str(charts.CHARTS / "mor-reward")
    values = f"--values={charts.CHARTS / 'mor-reward' / 'ci' / 'enrolled-values.yaml'}"
    run("install", "scores", chart, "--namespace=st-mary", "--create-namespace", values)
    run("uninstall", "scores", "--namespace=st-mary")
    assert api_server.created("Job")[-2:] == ["scores-mor-reward-register", "scores-mor-reward-deregister"]
    assert not [key for key in api_server.objects if key.namespace == "st-mary"]


def test_kubectl_applies_what_is_rendered(api_server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(api_server.kubeconfig())
    api_server.put("v1", "namespaces", {"metadata": {"name": "mor"}})
    documents = charts.render(charts.CHARTS / "mor", "--set=model.name=a/b")
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(documents))
    command = [str(charts.TOOLS / "kubectl"), "apply", "--namespace=mor", f"--filename={tmp_path / 'all.yaml'}"]
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert set(api_server.of("StatefulSet", "mor")) == {"m-mor-valkey"}
