"""A kind cluster with two worker nodes, MoR's images, a tiny model and data; for machines with docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.cluster.cluster import Cluster, claims_of
from tests.containers.release import IMAGES, write_data
from tests.helm.charts import Document

_NAME = "mor-test"
_PLACE = "/mnt/mor-test"


def missing() -> str | None:
    """Return the reason why no kind cluster can be made here, or None."""
    absent = [name for name in ("docker", "kind") if shutil.which(name) is None]
    if absent:
        return f"{' and '.join(absent)} not here: kind runs Kubernetes in docker's containers"
    if subprocess.run(["docker", "info"], capture_output=True, timeout=60, check=False).returncode:
        return "docker does not answer: start its daemon"
    for image in IMAGES.values():
        if subprocess.run(
            ["docker", "image", "inspect", image], capture_output=True, timeout=60, check=False
        ).returncode:
            return f"{image} is not here: `make images ENGINE=docker` builds it"
    return None


class KindCluster(Cluster):
    """The cluster, from its creation to ``delete``; claims of model and data are folders of this machine."""

    def __init__(self, folder: Path, model: Path) -> None:
        super().__init__(folder / "kubeconfig", folder)
        shutil.copytree(model, folder / "shared" / "models" / "tiny")
        write_data(folder / "shared" / "data", 48)
        for path in [folder, *(folder / "shared").rglob("*")]:
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))  # pods run as other users
        mounts = [{"hostPath": str(folder / "shared"), "containerPath": _PLACE}]
        nodes = [{"role": role, "extraMounts": mounts} for role in ("control-plane", "worker", "worker")]
        config = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": nodes}
        (folder / "kind.yaml").write_text(yaml.safe_dump(config))
        self._kind("delete", "cluster")  # one that an earlier, killed test left
        self._kind("create", "cluster", f"--config={folder / 'kind.yaml'}", "--wait=300s")
        for image in IMAGES.values():
            self._kind("load", "docker-image", image)

    def prepare(self, namespace: str, documents: list[Document]) -> None:
        super().prepare(namespace, documents)
        for name in claims_of(documents):
            claim = {"namespace": namespace, "name": name}
            self.apply(
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": f"{namespace}-{name}"},
                    "spec": {
                        "capacity": {"storage": "100Gi"},
                        "accessModes": ["ReadWriteMany"],
                        "storageClassName": "shared",
                        "claimRef": claim,
                        "hostPath": {"path": f"{_PLACE}/{name}"},
                        "persistentVolumeReclaimPolicy": "Retain",
                    },
                }
            )

    def delete(self) -> None:
        self._kind("delete", "cluster")

    def _kind(self, *arguments: str) -> None:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        command = ["kind", *arguments, f"--name={_NAME}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
