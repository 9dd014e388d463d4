"""Simulated nodes of a real control plane: what a kubelet reports, without containers.

A bound pod runs and is ready at once; a pod that ends by itself (of a Job, or with ``restartPolicy: Never``) has
succeeded, after what it does to Secrets (``pod_commands``). A ReadWriteOnce volume is attached to one node at a time:
a second node's pod waits for it, as on a real cluster. Claims get volumes when the scheduler has chosen a node.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import pod_commands
from tests.cluster.control_plane import ControlPlane

CPU = {"cpu": "16", "memory": "64Gi", "ephemeral-storage": "500Gi", "pods": "110"}
GPU = {"cpu": "96", "memory": "1Ti", "ephemeral-storage": "2Ti", "pods": "110", "nvidia.com/gpu": "8"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
PROVISIONER = "volumes.mor.test"
_SELECTED = "volume.kubernetes.io/selected-node"
_PERIOD_S = 0.2
_LEASE_S = 2.0  # well below the 20 s after which the controllers call a node lost

Object = dict[str, Any]


class Nodes:
    """Nodes by name, kept alive by a thread until ``stop``."""

    def __init__(self, plane: ControlPlane) -> None:
        self._http = httpx.Client(
            base_url=plane.url, verify=plane.tls(), headers={"Authorization": f"Bearer {plane.token}"}, timeout=30
        )
        self.plane = plane
        self._folder = tempfile.TemporaryDirectory()
        self._alive: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._leased = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        for name, default in (("standard", "true"), ("shared", "false")):
            self._post("/apis/storage.k8s.io/v1/storageclasses", _storage_class(name, default))
        for kind, count in (("cpu", 2), ("gpu", 3)):
            for number in range(1, count + 1):
                self.add(f"{kind}-{number}", kind)
        self._thread.start()

    def add(self, name: str, kind: str) -> None:
        """Add a node of kind ``cpu``, or ``gpu`` with the taint of GPU nodes."""
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        labels |= {"topology.kubernetes.io/zone": "zone-1"} | ({"accelerator": "h100"} if kind == "gpu" else {})
        spec = {"taints": [GPU_TAINT]} if kind == "gpu" else {}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec}
        self._post("/api/v1/nodes", node)
        with self._lock:
            self._alive.add(name)
        capacity = GPU if kind == "gpu" else CPU
        self._patch(f"/api/v1/nodes/{name}/status", {"status": {"capacity": capacity, "allocatable": capacity}})
        self._beat(name)

    def lose(self, name: str) -> None:
        """Stop a node's reports, as when its power or its network is gone; its pods report nothing either."""
        with self._lock:
            self._alive.discard(name)

    def find_again(self, name: str) -> None:
        with self._lock:
            self._alive.add(name)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=120)
        self._http.close()
        self._folder.cleanup()

    def _run(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            # The API server answers slowly beside other tests: the next round asks again.
            with contextlib.suppress(httpx.HTTPError):
                self._round()

    def _round(self) -> None:
        with self._lock:
            alive = set(self._alive)
        if time.monotonic() - self._leased > _LEASE_S:
            self._leased = time.monotonic()
            for name in alive:
                self._beat(name)
        self._provision()
        pods = self._items("/api/v1/pods")
        claims = {_key(claim): claim for claim in self._items("/api/v1/persistentvolumeclaims")}
        attached = _attached(pods, claims)
        for pod in pods:
            if pod["spec"].get("nodeName") in alive:
                self._report(pod, claims, attached)

    def _report(self, pod: Object, claims: dict[str, Object], attached: dict[str, str]) -> None:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        if "deletionTimestamp" in pod["metadata"]:
            self._http.request("DELETE", path, json={"gracePeriodSeconds": 0})
            return
        if pod["status"].get("phase") != "Pending":
            return
        node = pod["spec"]["nodeName"]
        for claim in _claims_of(pod):
            if _once(claims.get(claim)) and attached.setdefault(claim, node) != node:
                return  # a Multi-Attach error: the volume is on another node
        failure = ""
        if pod_commands.runs_here(pod):
            failure = pod_commands.run(pod, self._http, self.plane.authority, Path(self._folder.name))
        self._patch(f"{path}/status", {"status": _status(pod, failure)})

    def _provision(self) -> None:
        for claim in self._items("/api/v1/persistentvolumeclaims"):
            metadata, spec = claim["metadata"], claim["spec"]
            if "volumeName" in spec or _SELECTED not in metadata.get("annotations", {}):
                continue
            claimed = {name: metadata[name] for name in ("namespace", "name", "uid")}
            volume = {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"pvc-{metadata['uid']}"},
                "spec": {
                    "capacity": spec["resources"]["requests"],
                    "accessModes": spec["accessModes"],
                    "storageClassName": spec["storageClassName"],
                    "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claimed},
                    "csi": {"driver": PROVISIONER, "volumeHandle": metadata["uid"]},
                    "persistentVolumeReclaimPolicy": "Retain",
                },
            }
            self._post("/api/v1/persistentvolumes", volume)

    def _beat(self, name: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ready = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": f"{now[:19]}Z"}
        self._patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [ready]}})
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {"spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}}
        if self._http.patch(f"{leases}/{name}", json=spec, headers=_MERGE).status_code == 404:
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, **spec}
            self._http.post(leases, json=lease)

    def _items(self, path: str) -> list[Object]:
        answer = self._http.get(path)
        answer.raise_for_status()
        items: list[Object] = answer.json()["items"]
        return items

    def _post(self, path: str, document: Object) -> None:
        answer = self._http.post(path, json=document)
        assert answer.is_success or answer.status_code == 409, answer.text

    def _patch(self, path: str, change: Object) -> None:
        answer = self._http.patch(path, json=change, headers={"Content-Type": "application/strategic-merge-patch+json"})
        assert answer.is_success or answer.status_code == 404, answer.text


_MERGE = {"Content-Type": "application/merge-patch+json"}


def _storage_class(name: str, default: str) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
        "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }


def _status(pod: Object, failure: str) -> Object:
    """Status of a pod that ran; ``failure``: the error output of a command that failed."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ends = pod["spec"].get("restartPolicy") in ("Never", "OnFailure")
    ended = {"exitCode": int(bool(failure)), "finishedAt": now, "message": failure}
    state = {"terminated": ended} if ends else {"running": {"startedAt": now}}
    containers = [
        {
            "name": one["name"],
            "image": one["image"],
            "imageID": "",
            "ready": not ends,
            "restartCount": 0,
            "state": state,
        }
        for one in pod["spec"]["containers"]
    ]
    status = "False" if ends else "True"
    conditions = [{"type": name, "status": status} for name in ("Ready", "ContainersReady")]
    phase = {"phase": "Failed" if failure else "Succeeded" if ends else "Running"}
    return phase | {"startTime": now, "conditions": conditions, "containerStatuses": containers}


def _key(found: Object) -> str:
    return f"{found['metadata']['namespace']}/{found['metadata']['name']}"


def _claims_of(pod: Object) -> list[str]:
    return [
        f"{pod['metadata']['namespace']}/{volume['persistentVolumeClaim']['claimName']}"
        for volume in pod["spec"].get("volumes", [])
        if "persistentVolumeClaim" in volume
    ]


def _once(claim: Object | None) -> bool:
    return claim is not None and not {"ReadWriteMany", "ReadOnlyMany"} & set(claim["spec"]["accessModes"])


def _attached(pods: list[Object], claims: dict[str, Object]) -> dict[str, str]:
    """Return the node on which each volume of one node is in use."""
    return {
        claim: pod["spec"]["nodeName"]
        for pod in pods
        if pod["status"].get("phase") == "Running"
        for claim in _claims_of(pod)
        if _once(claims.get(claim))
    }
