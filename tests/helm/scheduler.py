"""Model of Kubernetes' scheduler: which nodes the pods of a chart get, and why one gets none.

It knows what keeps a pod off a node: requests, node selectors, taints, required affinities to other pods, and volumes
that one node or one pod has. Among the nodes that are left it prefers as the pod's preferred affinities say, and
otherwise takes any, by chance: a chart must be placed whatever the scheduler prefers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

from tests.helm import charts
from tests.helm.charts import Document

_HOSTNAME = "kubernetes.io/hostname"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}


@dataclass
class Node:
    """A node; ``allocatable`` by resource, in cores, bytes and devices."""

    name: str
    allocatable: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Document, ...] = ()

    def __post_init__(self) -> None:
        self.labels = {_HOSTNAME: self.name, **self.labels}


@dataclass
class Pod:
    """A pod of a workload."""

    name: str
    labels: dict[str, str]
    spec: Document
    claims: tuple[str, ...] = ()


class Cluster:
    """Nodes with pods and volumes. A volume of one node is there once the first pod that mounts it is placed."""

    def __init__(self, nodes: list[Node], seed: int = 0) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.placed: dict[str, str] = {}
        """Pod -> node."""
        self.pods: dict[str, Pod] = {}
        self.modes: dict[str, str] = {}
        """Access mode of each claim; one that nobody has created is mounted anywhere."""
        self.homes: dict[str, str] = {}
        """Claim -> the node that has its volume."""
        self._random = random.Random(seed)

    def create(self, documents: list[Document]) -> None:
        """Create the objects of a chart, without its hooks."""
        for document in documents:
            if document["kind"] == "PersistentVolumeClaim":
                self.modes[document["metadata"]["name"]] = document["spec"]["accessModes"][0]
        for pod in pods_of(documents):
            self.pods[pod.name] = pod
        for document in charts.of(documents, "StatefulSet").values():
            for template in document["spec"].get("volumeClaimTemplates", []):
                for number in range(document["spec"]["replicas"]):
                    name = f"{template['metadata']['name']}-{document['metadata']['name']}-{number}"
                    self.modes[name] = template["spec"]["accessModes"][0]

    def schedule(self) -> dict[str, dict[str, str]]:
        """Place pods until no more can be placed; return for each that is left why each node does not take it."""
        progress = True
        while progress:
            waiting = [name for name in self.pods if name not in self.placed]
            self._random.shuffle(waiting)
            progress = sum(self._place(self.pods[name]) for name in waiting) > 0
        return {name: self.reasons(pod) for name, pod in self.pods.items() if name not in self.placed}

    def remove(self, name: str) -> None:
        """Delete a pod; its volumes stay where they are."""
        del self.placed[name], self.pods[name]

    def lose(self, node: str) -> list[str]:
        """Lose a node; return the pods that a controller replaces: all but those of StatefulSets.

        Volumes of the node are detached, as after the time that a cluster waits before it does so.
        """
        del self.nodes[node]
        lost = [name for name, where in self.placed.items() if where == node]
        self.homes = {claim: where for claim, where in self.homes.items() if where != node}
        for name in lost:
            pod = self.pods[name]
            self.remove(name)
            if "StatefulSet" not in pod.labels.get("test/owner", ""):
                self.pods[name] = pod
        return lost

    def reasons(self, pod: Pod) -> dict[str, str]:
        """Return why nodes do not take a pod, for each that does not."""
        found = {name: self._reason(pod, node) for name, node in self.nodes.items()}
        return {name: reason for name, reason in found.items() if reason}

    def _place(self, pod: Pod) -> bool:
        nodes = [node for node in self.nodes.values() if not self._reason(pod, node)]
        if not nodes:
            return False
        most = max(self._preference(pod, node) for node in nodes)
        node = self._random.choice([node for node in nodes if self._preference(pod, node) == most])
        self.placed[pod.name] = node.name
        for claim in pod.claims:
            if self.modes.get(claim, "ReadWriteMany") != "ReadWriteMany":
                self.homes.setdefault(claim, node.name)
        return True

    def _reason(self, pod: Pod, node: Node) -> str:
        if any(not _tolerates(pod.spec, taint) for taint in node.taints):
            return "untolerated taint"
        selector = pod.spec.get("nodeSelector", {})
        if not selector.items() <= node.labels.items():
            return "didn't match node selector"
        used: dict[str, float] = defaultdict(float)
        for name, where in self.placed.items():
            if where == node.name:
                for resource, amount in requests_of(self.pods[name].spec).items():
                    used[resource] += amount
        for resource, amount in requests_of(pod.spec).items():
            if used[resource] + amount > node.allocatable.get(resource, 0.0):
                return f"Insufficient {resource}"
        for term in _terms(pod, "podAffinity"):
            if not self._fits_affinity(pod, term, node):
                return "didn't match pod affinity rules"
        for term in _terms(pod, "podAntiAffinity"):
            if self._beside(term, node):
                return "didn't match pod anti-affinity rules"
        for claim in pod.claims:
            if self.homes.get(claim, node.name) != node.name:
                return f"volume node affinity conflict: {claim}"
            if self.modes.get(claim) == "ReadWriteOncePod" and self._mounted(claim):
                return f"node has pod using PersistentVolumeClaim {claim} with ReadWriteOncePod"
        return ""

    def _fits_affinity(self, pod: Pod, term: Document, node: Node) -> bool:
        if self._beside(term, node):
            return True
        anywhere = any(_selects(term, self.pods[name]) for name in self.placed)
        return not anywhere and _selects(term, pod)  # the first of several that want to be together

    def _beside(self, term: Document, node: Node) -> bool:
        """Return whether a pod that the term selects is in the node's domain."""
        domain = node.labels.get(term["topologyKey"])
        return any(
            _selects(term, self.pods[name]) and self.nodes[where].labels.get(term["topologyKey"]) == domain
            for name, where in self.placed.items()
        )

    def _mounted(self, claim: str) -> bool:
        return any(claim in self.pods[name].claims for name in self.placed)

    def _preference(self, pod: Pod, node: Node) -> int:
        preferred = pod.spec.get("affinity", {}).get("podAffinity", {}).get(_PREFERRED, [])
        return sum(each["weight"] for each in preferred if self._beside(each["podAffinityTerm"], node))


def pods_of(documents: list[Document]) -> list[Pod]:
    """Return the pods that the controllers make of a chart's workloads."""
    scaled = {
        document["spec"]["scaleTargetRef"]["name"]: document["spec"].get("minReplicas", 1)
        for document in documents
        if document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    }
    found = []
    for document in documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            count, template = spec.get("replicas", scaled.get(name, 1)), spec["template"]
            claims = [made["metadata"]["name"] for made in spec.get("volumeClaimTemplates", [])]
            found += [
                _pod(kind, f"{name}-{n}", template, [f"{claim}-{name}-{n}" for claim in claims]) for n in range(count)
            ]
        elif kind == "JobSet":
            for jobs in spec["replicatedJobs"]:
                job = jobs["template"]["spec"]
                found += [
                    _pod(kind, f"{name}-{jobs['name']}-0-{n}", job["template"], []) for n in range(job["parallelism"])
                ]
    return found


def _pod(kind: str, name: str, template: Document, own: list[str]) -> Pod:
    spec = template["spec"]
    volumes = [
        volume["persistentVolumeClaim"] for volume in spec.get("volumes", []) if "persistentVolumeClaim" in volume
    ]
    labels = {**template["metadata"]["labels"], "test/owner": kind}
    return Pod(name, labels, spec, (*(volume["claimName"] for volume in volumes), *own))


def requests_of(spec: Document) -> dict[str, float]:
    """Return the sum of the containers' requests, or the largest of an init container, by resource."""
    total: dict[str, float] = defaultdict(float)
    for container in spec["containers"]:
        for resource, amount in container.get("resources", {}).get("requests", {}).items():
            total[resource] += quantity(amount)
    for container in spec.get("initContainers", []):
        for resource, amount in container.get("resources", {}).get("requests", {}).items():
            total[resource] = max(total[resource], quantity(amount))
    return dict(total)


def quantity(text: str | float) -> float:
    """Return a quantity of Kubernetes as a number."""
    if isinstance(text, int | float):
        return float(text)
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * _UNITS.get(unit, 1)


def _tolerates(spec: Document, taint: Document) -> bool:
    if taint["effect"] == "PreferNoSchedule":
        return True
    return any(
        each.get("effect", taint["effect"]) == taint["effect"]
        and each.get("key", taint["key"]) == taint["key"]
        and (each.get("operator", "Equal") == "Exists" or each.get("value", "") == taint.get("value", ""))
        for each in spec.get("tolerations", [])
    )


def _terms(pod: Pod, kind: str) -> list[Document]:
    terms: list[Document] = pod.spec.get("affinity", {}).get(kind, {}).get(_REQUIRED, [])
    return terms


def _selects(term: Document, pod: Pod) -> bool:
    return bool(term["labelSelector"]["matchLabels"].items() <= pod.labels.items())
