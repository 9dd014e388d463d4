"""A Kubernetes cluster under test: helm and kubectl with its kubeconfig, and what a release needs before it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import resource_types
from tests.helm import charts
from tests.helm.charts import Document

KUBECTL = charts.TOOLS / "kubectl"
_LONGEST_S = 2000.0
"""Seconds for one command: helm waits up to 30 minutes for hooks and tests on kind."""
_EVENTS = 60
"""Lines of events that explain a failure."""


class Cluster:
    """``home`` takes helm's caches."""

    def __init__(self, kubeconfig: Path, home: Path) -> None:
        self.kubeconfig = kubeconfig
        self._home = home

    def helm(self, *arguments: str, binary: Path = charts.HELM) -> str:
        """
        Raises:
            RuntimeError: helm failed; the message is its standard error, with a note of the cluster's state.
        """
        try:
            kubeconfig = str(self.kubeconfig)
            return charts.helm(*arguments, binary=binary, home=self._home, timeout_s=_LONGEST_S, KUBECONFIG=kubeconfig)
        except RuntimeError as error:
            error.add_note(self.state())
            raise

    def state(self) -> str:
        """Return all pods and the last events, to explain a failure."""
        pods = self.kubectl("get", "pods", "--all-namespaces", "-o", "wide")
        events = self.kubectl("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
        return "\n".join([pods, *events.splitlines()[-_EVENTS:]])

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """
        Raises:
            RuntimeError: kubectl failed; the message is its standard error.
        """
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self._home)}
        command = [str(KUBECTL), *arguments]
        done = subprocess.run(
            command, env=environment, input=given, capture_output=True, text=True, timeout=_LONGEST_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def apply(self, *documents: Document) -> None:
        self.kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump_all(documents))

    def namespace(self, name: str) -> None:
        """Create a namespace that admits restricted pods only."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def prepare(self, namespace: str, documents: list[Document]) -> None:
        """Create what a release needs and does not make: namespaces, resource types, classes, Secrets, claims."""
        for name in sorted({namespace, *(document["metadata"].get("namespace", namespace) for document in documents)}):
            self.namespace(name)
        types = list(resource_types.definitions(documents))
        if types:
            self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given="\n---\n".join(types))
            self.kubectl("wait", "--for=condition=Established", "--all", "crd", "--timeout=60s")
        self.apply(*_needed(namespace, documents))

    def pods(self, namespace: str) -> list[Document]:
        found: list[Document] = self.get("pods", "-n", namespace)["items"]
        return found

    def settled(self, namespace: str, timeout_s: float = 120) -> list[Document]:
        """Wait until every workload has all its pods and every pod runs or has ended well, and return the pods.

        Raises:
            TimeoutError: with the state of each pod, the scheduler's reason and the last events.
        """
        waiting: list[str] = []

        def done() -> bool:
            waiting[:] = self._waiting(namespace)
            return not waiting

        wait_for(done, timeout_s, lambda: "\n".join([*waiting, self.state()]))
        return self.pods(namespace)

    def _waiting(self, namespace: str) -> list[str]:
        found = [
            f"{workload['kind']} {workload['metadata']['name']}: {ready} of {wanted} ready"
            for workload in self.get("deployments,statefulsets", "-n", namespace)["items"]
            if (ready := workload["status"].get("readyReplicas", 0)) < (wanted := workload["spec"]["replicas"])
        ]
        for pod in self.pods(namespace):
            if pod["status"]["phase"] not in ("Running", "Succeeded") or "deletionTimestamp" in pod["metadata"]:
                reasons = [each["message"] for each in pod["status"].get("conditions", []) if each.get("message")]
                place = pod["spec"].get("nodeName", "no node")
                found.append(f"{pod['metadata']['name']} on {place}: {pod['status']['phase']} {reasons}")
        return found


def wait_for(done: Callable[[], bool], timeout_s: float, state: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout_s:g} s:\n{state()}")
        time.sleep(0.3)


def _needed(namespace: str, documents: list[Document]) -> Iterator[Document]:
    for pod in charts.pods(documents).values():
        if name := pod.get("priorityClassName"):
            metadata = {"name": name}
            yield {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": metadata,
                "value": 1000,
            }
    for kind, name in _foreign(documents):
        metadata = {"name": name, "namespace": namespace}
        document: Document = {"apiVersion": "v1", "kind": kind, "metadata": metadata}
        if kind == "PersistentVolumeClaim":
            request = {"requests": {"storage": "100Gi"}}
            document["spec"] = {"accessModes": ["ReadWriteMany"], "storageClassName": "shared", "resources": request}
        yield document


def claims_of(documents: list[Document]) -> list[str]:
    """Return the names of the claims that a release mounts and does not make."""
    return [name for kind, name in _foreign(documents) if kind == "PersistentVolumeClaim"]


def _foreign(documents: list[Document]) -> list[tuple[str, str]]:
    """Return kind and name of each Secret, ConfigMap and claim that pods name and no manifest or hook makes."""
    made = {(document["kind"], document["metadata"].get("name")) for document in documents}
    generated = {
        ("Secret", wanted["secret"])
        for pod in charts.pods(documents).values()
        for variable in pod["containers"][0].get("env", [])
        if variable["name"] == "MOR_WANTED_SECRETS"
        for wanted in json.loads(variable["value"])
    }
    named = {reference for pod in charts.pods(documents).values() for reference in _references(pod)}
    return sorted(named - made - generated)


def _references(found: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and name of each Secret, ConfigMap and claim that a pod names."""
    kinds = {
        "secretName": "Secret",
        "secretKeyRef": "Secret",
        "secretRef": "Secret",
        "secret": "Secret",
        "configMap": "ConfigMap",
        "configMapRef": "ConfigMap",
        "configMapKeyRef": "ConfigMap",
        "claimName": "PersistentVolumeClaim",
    }
    if isinstance(found, list):
        for one in found:
            yield from _references(one)
    elif isinstance(found, dict):
        for name, value in found.items():
            if name in kinds and isinstance(value, str):
                yield kinds[name], value
            elif name in kinds and isinstance(value, dict) and "name" in value:
                yield kinds[name], value["name"]
            else:
                yield from _references(value)
