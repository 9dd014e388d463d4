"""Database of run control in the chart: a volume that one pod mounts, or PostgreSQL."""

from __future__ import annotations

import re

import pytest

from tests.helm import charts

MOR = charts.CHARTS / "mor"
HUB = "--set=model.name=a/b"
POSTGRESQL = [
    HUB,
    "--set=control.database.external.existingSecret=history-address",
    "--set=control.database.external.cidrs={10.20.0.0/16}",
]


def environment(pod: charts.Document) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in pod["containers"][0]["env"]}


def test_the_history_is_on_a_volume_that_one_pod_mounts() -> None:
    documents = charts.render(MOR, HUB)
    claim = charts.of(documents, "PersistentVolumeClaim")["m-mor-history"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    users = {
        name
        for name, pod in charts.pods(documents).items()
        for volume in pod.get("volumes", [])
        if volume.get("persistentVolumeClaim", {}).get("claimName") == "m-mor-history"
    }
    assert users == {"m-mor-control"}
    control = charts.pods(documents)["m-mor-control"]
    assert environment(control)["MOR_DATABASE_URL"] == "sqlite:////history/history.sqlite3"
    assert {"name": "history", "mountPath": "/history"} in control["containers"][0]["volumeMounts"]
    deployment = charts.of(documents, "Deployment")["m-mor-control"]
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})


def test_a_claim_of_ones_own_and_another_access_mode() -> None:
    documents = charts.render(MOR, HUB, "--set=control.database.existingClaim=mine")
    assert "m-mor-history" not in charts.of(documents, "PersistentVolumeClaim")
    volumes = charts.pods(documents)["m-mor-control"]["volumes"]
    assert {"name": "history", "persistentVolumeClaim": {"claimName": "mine"}} in volumes
    options = ("--set=control.database.accessMode=ReadWriteOnce", "--set=control.database.storageClass=fast")
    claim = charts.of(charts.render(MOR, HUB, *options), "PersistentVolumeClaim")["m-mor-history"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["spec"]["storageClassName"] == "fast"


def test_postgresql_takes_an_address_from_a_secret_and_is_admitted_by_the_network_policy() -> None:
    options = ("--set=control.database.external.existingCaSecret=ca", "--set=control.database.external.port=6432")
    documents = charts.render(MOR, *POSTGRESQL, *options)
    assert "m-mor-history" not in charts.of(documents, "PersistentVolumeClaim")
    control = charts.pods(documents)["m-mor-control"]
    assert "MOR_DATABASE_URL" not in environment(control), "the address may have a password"
    volumes = {volume["name"]: volume for volume in control["volumes"]}
    assert {"secret": {"name": "history-address", "items": [{"key": "url", "path": "mor_database_url"}]}} in volumes[
        "secrets"
    ]["projected"]["sources"]
    assert volumes["database-ca"]["secret"]["secretName"] == "ca"
    mounts = {mount["name"]: mount["mountPath"] for mount in control["containers"][0]["volumeMounts"]}
    assert mounts["database-ca"] == "/etc/mor/database"
    assert "history" not in mounts
    flow = {"to": [{"ipBlock": {"cidr": "10.20.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 6432}]}
    policies = charts.of(documents, "NetworkPolicy")
    admitted = {name for name, policy in policies.items() if flow in policy["spec"].get("egress", [])}
    assert admitted == {"m-mor-from-control"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set=control.database.accessMode=ReadWriteMany"], "accessMode"),
        (["--set=control.settings.database_url=postgresql://u:p@h/d"], "'database_url' not allowed"),
        (["--set=control.database.external.existingSecret=x"], "name the networks of the PostgreSQL server"),
        (["--set=control.database.external.existingCaSecret=x"], "name the Secret with the address of PostgreSQL"),
        ([*POSTGRESQL, "--set=control.database.existingClaim=x"], "are both set: remove one"),
    ],
)
def test_a_contradiction_of_the_database_is_refused_with_its_cure(options: list[str], message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        charts.render(MOR, HUB, *options)
