"""Definitions of the resource types that operators bring: the published ones, or ones that take any fields.

The folder in ``MOR_TEST_CRDS`` has the published ones as ``<group>_<plural>.yaml``: ``make kubernetes`` downloads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.helm.charts import Document

FOLDER = "MOR_TEST_CRDS"
_BUILT_IN = ("", "apps", "autoscaling", "batch", "policy")


def definitions(documents: list[Document]) -> Iterator[str]:
    """Yield the definition, as YAML, of each type among the documents that Kubernetes itself lacks."""
    for group_version, kind in sorted({(document["apiVersion"], document["kind"]) for document in documents}):
        group, _, version = group_version.rpartition("/")
        if group in _BUILT_IN or (group.endswith(".k8s.io") and not group.startswith(("gateway.", "jobset."))):
            continue
        yield published(group, kind) or yaml.safe_dump(_of_any_fields(group, version, kind))


def published(group: str, kind: str) -> str | None:
    """Return the published definition as YAML, or None where there is no folder or no such file in it."""
    folder = os.environ.get(FOLDER)
    file = Path(folder or "") / f"{group}_{_plural(kind)}.yaml"
    # As it is: PyYAML takes seconds to read one.
    return file.read_text() if folder and file.exists() else None


def _plural(kind: str) -> str:
    name = kind.lower()
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def _of_any_fields(group: str, version: str, kind: str) -> Document:
    plural = _plural(kind)
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    annotations = {"api-approved.kubernetes.io": "unapproved, a test"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": annotations},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }
