"""Model of Kubernetes' controllers: they make claims and pods of workloads, and collect garbage.

Pods belong to their workload at once, without a ReplicaSet between, and stay Pending; a finished Job has none. Where a
chart's pods fit is the question of ``make test-cluster``, with Kubernetes' own scheduler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.helm.api_discovery import RESOURCES

Document = dict[str, Any]


class Key(NamedTuple):
    group_version: str
    resource: str
    namespace: str
    name: str


class Controllers:
    """They read ``objects``, and write by ``store`` and ``remove`` as any other client does."""

    def __init__(
        self, objects: dict[Key, Document], store: Callable[[Key, Document], Document], remove: Callable[[Key], None]
    ) -> None:
        self._objects = objects
        self._store = store
        self._remove = remove

    def follow(self, key: Key, document: Document) -> None:
        """Make the claims and pods of a changed workload; a claim that is there stays as it is."""
        if document["kind"] not in ("Deployment", "StatefulSet"):
            return
        wanted = dict(_children(key, document))
        for child in self._dependents(document["metadata"]["uid"]):
            if child.resource == "pods" and child not in wanted:
                self._remove(child)
        for child, made in wanted.items():
            known = self._objects.get(child)
            if known is None or (child.resource == "pods" and _template(known) != _template(made)):
                if known is not None:
                    self._remove(child)
                kind = RESOURCES[child.group_version, child.resource]["kind"]
                self._store(child, {"apiVersion": child.group_version, "kind": kind, **made})

    def collect(self, deleted: Document) -> None:
        """Remove the objects whose last owner is gone."""
        for key in self._dependents(deleted["metadata"]["uid"]):
            if key in self._objects:
                self._remove(key)

    def orphan(self, owner: Document) -> None:
        """Take an owner off its dependents, which then outlive it."""
        for key in self._dependents(owner["metadata"]["uid"]):
            metadata = self._objects[key]["metadata"]
            metadata["ownerReferences"] = [
                each for each in metadata["ownerReferences"] if each["uid"] != owner["metadata"]["uid"]
            ]

    def _dependents(self, owner: str) -> list[Key]:
        """Return the objects that have this owner, and no other that is there."""
        there = {document["metadata"]["uid"] for document in self._objects.values()} - {owner}
        found = []
        for key, document in self._objects.items():
            owners = {each["uid"] for each in document["metadata"].get("ownerReferences", [])}
            if owner in owners and not owners & there:
                found.append(key)
        return found


def _children(key: Key, document: Document) -> Iterator[tuple[Key, Document]]:
    spec = document["spec"]
    owner = {"apiVersion": document["apiVersion"], "kind": document["kind"], "name": key.name, "controller": True}
    owner["uid"] = document["metadata"]["uid"]
    for number in range(spec.get("replicas", 1)):
        pod = copy.deepcopy(spec["template"])
        for made in spec.get("volumeClaimTemplates", []):
            claimed = made["metadata"]["name"]
            name = f"{claimed}-{key.name}-{number}"
            labels = spec["selector"]["matchLabels"]
            claim = {"metadata": {"name": name, "labels": labels}, "spec": copy.deepcopy(made["spec"])}
            yield Key("v1", "persistentvolumeclaims", key.namespace, name), claim
            volume = {"name": claimed, "persistentVolumeClaim": {"claimName": name}}
            pod["spec"].setdefault("volumes", []).append(volume)
        metadata = {**pod["metadata"], "name": f"{key.name}-{number}", "ownerReferences": [owner]}
        pod = {"metadata": metadata, "spec": pod["spec"], "status": {"phase": "Pending"}}
        yield Key("v1", "pods", key.namespace, metadata["name"]), pod


def _template(pod: Document) -> tuple[Any, ...]:
    """Return what a change of the workload's template changes."""
    spec = {name: value for name, value in pod["spec"].items() if name != "nodeName"}
    return spec, pod["metadata"].get("labels"), pod["metadata"].get("annotations")
