"""Pods for podman from rendered workloads, with the volumes that a kubelet would mount.

podman knows neither Secrets nor probes, and gives volumes no group. Everything else of a pod stays as it was rendered:
image, command, environment, security contexts, resources, mounts.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tests.helm import charts, secret_jobs
from tests.helm.charts import Document


class Kubelet:
    """Volumes of pods, as folders below one folder."""

    def __init__(self, folder: Path, documents: list[Document], claims: dict[str, Path]) -> None:
        """``claims``: the folders of PersistentVolumeClaims; what they hold belongs to the pods' group from now on."""
        self._folder = folder
        self._claims = claims
        self._files: dict[tuple[str, str], dict[str, bytes]] = {}
        for kind, texts in (("Secret", "stringData"), ("ConfigMap", "data")):
            for name, document in charts.of(documents, kind).items():
                self._files[kind, name] = {key: text.encode() for key, text in document[texts].items()}
        for name, data in secret_jobs.generated(documents).items():
            self._files["Secret", name] = {key: text.encode() for key, text in data.items()}

    def content(self, secret: str, key: str) -> str:
        return self._files["Secret", secret][key].decode()

    def pod(self, documents: list[Document], name: str) -> Document:
        """Return the pod of the Deployment, StatefulSet, Job or Pod ``name``, with local folders as volumes."""
        (workload,) = (
            document
            for document in documents
            if document["metadata"]["name"] == name and document["kind"] in ("Deployment", "StatefulSet", "Job", "Pod")
        )
        template = workload if workload["kind"] == "Pod" else workload["spec"]["template"]
        spec = dict(template["spec"])
        group = spec["securityContext"]["fsGroup"]
        claimed = [
            {"name": claim, "persistentVolumeClaim": {"claimName": f"{claim}-{name}-0"}}
            for claim in (made["metadata"]["name"] for made in workload["spec"].get("volumeClaimTemplates", []))
        ]
        spec["volumes"] = [
            {"name": volume["name"], "hostPath": {"path": str(self._volume(name, volume, group))}}
            for volume in [*spec["volumes"], *claimed]
        ]
        probes = ("startupProbe", "livenessProbe", "readinessProbe")
        spec["containers"] = [
            {key: value for key, value in container.items() if key not in probes} for container in spec["containers"]
        ]
        metadata = {"name": name, "labels": template["metadata"]["labels"]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def _volume(self, pod: str, volume: Document, group: int) -> Path:
        (kind,) = set(volume) - {"name"}
        source = volume[kind]
        if kind == "persistentVolumeClaim":
            folder = self._claims[source["claimName"]]
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = self._folder / pod / volume["name"]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for part in source["sources"] if kind == "projected" else [volume] if kind != "emptyDir" else []:
                self._write(folder, part, source.get("defaultMode", 0o644))
        _give(folder, group)
        return folder

    def _write(self, folder: Path, part: Document, mode: int) -> None:
        if "secret" in part:
            secret = part["secret"]
            content = self._files["Secret", secret.get("secretName") or secret["name"]]
            items = secret.get("items")
        else:
            content = self._files["ConfigMap", part["configMap"]["name"]]
            items = part["configMap"].get("items")
        optional = part.get("secret", {}).get("optional", False)
        for item in items or [{"key": key, "path": key} for key in content]:
            if optional and item["key"] not in content:
                continue
            file = folder / item["path"]
            file.write_bytes(content[item["key"]])
            file.chmod(mode)


def _give(folder: Path, group: int) -> None:
    """Give everything to the group, with the owner's permissions, as ``fsGroup`` does."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, -1, group)
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o600) >> 3 | (0o2010 if path.is_dir() else 0))


def service_of(documents: list[Document], pod: Document) -> str | None:
    """Return the Service that selects a pod; its port must be the container's, since nothing translates it here."""
    for name, service in charts.of(documents, "Service").items():
        if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items():
            exposed: list[dict[str, Any]] = pod["spec"]["containers"][0].get("ports", [])
            ports = {port["name"]: port["containerPort"] for port in exposed}
            assert all(port["port"] == ports[port["targetPort"]] for port in service["spec"].get("ports", []))
            return name
    return None
