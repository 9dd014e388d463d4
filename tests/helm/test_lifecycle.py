"""Install, upgrade, roll back and uninstall with the real helm on an API server with strict schemas."""

from __future__ import annotations

import base64
import json
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
        own = {"KUBECONFIG": str(tmp_path / "kubeconfig")}
        return charts.helm(*arguments, binary=charts.TOOLS / request.param, home=tmp_path, **own)

    return execute


def test_a_release_lives_and_its_secrets_and_runs_outlive_it(run: Run, api_server: ApiServer) -> None:
    chart = str(charts.CHARTS / "mor")
    values = f"--values={charts.CHARTS / 'mor' / 'ci' / 'tiny-cpu-values.yaml'}"
    notes = run("install", "m", chart, "--namespace=mor", "--create-namespace", values)
    assert "helm test m -n mor --logs" in notes
    first = api_server.of("Secret", "mor")["m-mor-auth"]["data"]
    password = api_server.of("Secret", "mor")["m-mor-valkey"]["data"]["router-password"]

    tokens = '--set-json=auth.tokens=[{"name":"wall","scope":"viewer"}]'
    run("upgrade", "m", chart, "--namespace=mor", values, "--set=router.replicas=3", tokens)
    assert api_server.of("Deployment", "mor")["m-mor-router"]["spec"]["replicas"] == 3
    second = api_server.of("Secret", "mor")["m-mor-auth"]["data"]
    assert {key: second[key] for key in ("admin-token", "service-token", "secret-key")} == {
        key: first[key] for key in ("admin-token", "service-token", "secret-key")
    }
    assert [row["name"] for row in json.loads(base64.b64decode(second["tokens.json"]))] == ["operator", "mor", "wall"]
    assert api_server.of("Secret", "mor")["m-mor-valkey"]["data"]["router-password"] == password

    run("rollback", "m", "1", "--namespace=mor")
    assert api_server.of("Deployment", "mor")["m-mor-router"]["spec"]["replicas"] == 1
    assert api_server.of("Secret", "mor")["m-mor-auth"]["data"]["secret-key"] == first["secret-key"]

    run("uninstall", "m", "--namespace=mor")
    left = {(key.resource, key.name) for key in api_server.objects if key.namespace == "mor"}
    volumes = {("persistentvolumeclaims", f"m-mor-{name}") for name in ("runs", "history", "router-state")}
    kept = {("secrets", "m-mor-auth"), ("secrets", "m-mor-valkey"), *volumes}
    assert left == kept


def test_a_client_deregisters_before_it_is_uninstalled(run: Run, api_server: ApiServer) -> None:
    chart = str(charts.CHARTS / "mor-reward")
    values = f"--values={charts.CHARTS / 'mor-reward' / 'ci' / 'enrolled-values.yaml'}"
    run("install", "scores", chart, "--namespace=st-mary", "--create-namespace", values)
    run("uninstall", "scores", "--namespace=st-mary")
    assert api_server.created("Job") == ["scores-mor-reward-register", "scores-mor-reward-deregister"]
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
    assert set(api_server.of("StatefulSet", "mor")) == {"m-mor-worker", "m-mor-valkey"}
