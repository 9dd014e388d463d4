"""The tests' API server refuses what a real one refuses, and does what its controllers do."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import charts
from tests.helm.api_server import ApiServer

Kubectl = Callable[..., str]

LABELS = {"app": "a"}
POD = {
    "metadata": {"labels": LABELS},
    "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}]}]},
}
STATEFUL_SET: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": {"name": "s", "namespace": "default"},
    "spec": {
        "serviceName": "s",
        "replicas": 2,
        "selector": {"matchLabels": LABELS},
        "template": POD,
        "volumeClaimTemplates": [
            {
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }
        ],
    },
}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d", "namespace": "default"},
    "spec": {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": POD},
}


@pytest.fixture
def kubectl(api_server: ApiServer, tmp_path: Path) -> Kubectl:
    (tmp_path / "kubeconfig").write_text(api_server.kubeconfig())

    def run(*arguments: str, given: dict[str, Any] | None = None) -> str:
        environment = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
        command = [str(charts.TOOLS / "kubectl"), *arguments, "--namespace=default"]
        text = yaml.safe_dump(given) if given else None
        done = subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout if done.returncode == 0 else done.stderr

    return run


def apply(kubectl: Kubectl, document: dict[str, Any], manager: str, *options: str) -> str:
    return kubectl("apply", "--server-side", f"--field-manager={manager}", "-f", "-", *options, given=document)


def changed(document: dict[str, Any], **spec: Any) -> dict[str, Any]:
    found = copy.deepcopy(document)
    found["spec"] |= spec
    return found


def test_what_is_immutable_stays_as_it_was(kubectl: Kubectl, api_server: ApiServer) -> None:
    for document in (STATEFUL_SET, DEPLOYMENT):
        kubectl("apply", "-f", "-", given=document)
    larger = copy.deepcopy(STATEFUL_SET)
    larger["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = "2Gi"
    refused = kubectl("apply", "-f", "-", given=larger)
    assert "updates to statefulset spec for fields other than 'replicas'" in refused
    other = changed(DEPLOYMENT, selector={"matchLabels": {"app": "b"}})
    assert "spec.selector: Invalid value: field is immutable" in kubectl("apply", "-f", "-", given=other)
    scaled = changed(STATEFUL_SET, replicas=3)
    assert "configured" in kubectl("apply", "-f", "-", given=scaled)

    def resize(size: str) -> str:
        patch = json.dumps({"spec": {"resources": {"requests": {"storage": size}}}})
        return kubectl("patch", "persistentvolumeclaim", "data-s-0", "--type=merge", f"--patch={patch}")

    assert "field can not be less" in resize("512Mi")
    assert "storageclass that provisions the pvc must support resize" in resize("2Gi")
    api_server.expandable.add(None)
    assert "patched" in resize("2Gi")
    modes = json.dumps({"spec": {"accessModes": ["ReadWriteMany"]}})
    assert "spec is immutable after creation" in kubectl(
        "patch", "persistentvolumeclaim", "data-s-0", "--type=merge", f"--patch={modes}"
    )


def test_the_type_of_a_secret_that_names_none_is_the_default_and_stays(kubectl: Kubectl) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}}
    for given in (secret, secret | {"type": "Opaque"}, secret):
        assert "applied" in apply(kubectl, given, "helm")
    assert "type: Invalid value" in apply(kubectl, secret | {"type": "example.org/other"}, "helm")


def test_duplicate_entries_are_named(kubectl: Kubectl) -> None:
    twice = copy.deepcopy(DEPLOYMENT)
    twice["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "A", "value": "2"})
    assert 'duplicate entries for key [name="A"]' in apply(kubectl, twice, "helm")


def test_a_managers_value_is_not_overwritten_by_another_unless_forced(kubectl: Kubectl, api_server: ApiServer) -> None:
    apply(kubectl, DEPLOYMENT, "helm")
    kubectl("patch", "deployment", "d", '--patch={"spec":{"replicas":5}}', "--field-manager=autoscaler")
    refused = apply(kubectl, changed(DEPLOYMENT, replicas=2), "helm")
    assert "conflict with" in refused and '"autoscaler"' in refused and ".spec.replicas" in refused
    assert api_server.of("Deployment", "default")["d"]["spec"]["replicas"] == 5
    apply(kubectl, changed(DEPLOYMENT, replicas=2), "helm", "--force-conflicts")
    assert api_server.of("Deployment", "default")["d"]["spec"]["replicas"] == 2


def test_what_a_manager_leaves_out_is_removed_and_what_others_added_stays(
    kubectl: Kubectl, api_server: ApiServer
) -> None:
    apply(kubectl, DEPLOYMENT, "helm")
    kubectl("set", "env", "deployment/d", "B=2")
    less = copy.deepcopy(DEPLOYMENT)
    del less["spec"]["template"]["spec"]["containers"][0]["env"]
    apply(kubectl, less, "helm")
    (container,) = api_server.of("Deployment", "default")["d"]["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "B", "value": "2"}]


def test_a_strategic_patch_merges_lists_by_their_keys(kubectl: Kubectl, api_server: ApiServer) -> None:
    kubectl("apply", "-f", "-", given=DEPLOYMENT)
    kubectl("set", "env", "deployment/d", "A-", "B=2")
    (container,) = api_server.of("Deployment", "default")["d"]["spec"]["template"]["spec"]["containers"]
    assert container == {"name": "c", "image": "i", "env": [{"name": "B", "value": "2"}]}


def test_workloads_get_pods_and_claims_and_only_claims_outlive_them(kubectl: Kubectl, api_server: ApiServer) -> None:
    kubectl("apply", "-f", "-", given=STATEFUL_SET)
    kubectl("apply", "-f", "-", given=DEPLOYMENT)
    assert set(api_server.of("Pod", "default")) == {"s-0", "s-1", "d-0"}
    kubectl("apply", "-f", "-", given=changed(STATEFUL_SET, replicas=1))
    assert set(api_server.of("Pod", "default")) == {"s-0", "d-0"}
    kubectl("delete", "deployment/d", "--cascade=orphan", "--wait=false")
    kubectl("delete", "statefulset/s", "--wait=false")
    assert set(api_server.of("Pod", "default")) == {"d-0"}
    assert set(api_server.of("PersistentVolumeClaim", "default")) == {"data-s-0", "data-s-1"}
