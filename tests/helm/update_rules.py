"""Fields of an object that an update may not change, in the words of the API server."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

Document = dict[str, Any]

_STATEFUL_SET = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)
_NO_UPDATE = "field is immutable"
_FIXED = {
    "Deployment": ("selector",),
    "DaemonSet": ("selector",),
    "ReplicaSet": ("selector",),
    "Job": ("selector", "template", "completionMode"),
    "Service": ("clusterIP", "clusterIPs"),
    "PersistentVolume": ("csi", "hostPath", "nfs", "local"),
}
_FIXED_AT_ROOT = {
    "RoleBinding": ("roleRef",),
    "ClusterRoleBinding": ("roleRef",),
    "Secret": ("type",),
    "PriorityClass": ("value",),
    "StorageClass": ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"),
}
_DEFAULTS: dict[str, Document] = {"Secret": {"type": "Opaque"}}
_POD_MAY = ("tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds", "schedulingGates")
_SUFFIXES: dict[str, int | Decimal] = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def complaints(before: Document, after: Document, *, expandable: bool) -> list[str]:
    """Return what an update changes although it may not; ``expandable``: a claim's class lets volumes grow."""
    kind = before["kind"]
    before, after = _DEFAULTS.get(kind, {}) | before, _DEFAULTS.get(kind, {}) | after
    old, new = before.get("spec") or {}, after.get("spec") or {}
    found = [
        f"spec.{name}: Invalid value: {_NO_UPDATE}"
        for name in _FIXED.get(kind, ())
        if old.get(name, new.get(name)) != new.get(name)
    ]
    found += [
        f"{name}: Invalid value: {_NO_UPDATE}"
        for name in _FIXED_AT_ROOT.get(kind, ())
        if before.get(name) is not None and before.get(name) != after.get(name)
    ]
    match kind:
        case "StatefulSet" if _rest(old, _STATEFUL_SET) != _rest(new, _STATEFUL_SET):
            found.append(
                f"spec: Forbidden: updates to statefulset spec for fields other than {_listed()} are forbidden"
            )
        case "PersistentVolumeClaim":
            found += _claim(old, new, expandable)
        case "Pod" if _pod(old) != _pod(new):
            found.append(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`, ..."
            )
        case "Secret" | "ConfigMap" if before.get("immutable"):
            if any(before.get(name) != after.get(name) for name in ("data", "binaryData", "immutable")):
                found.append("data: Forbidden: field is immutable when `immutable` is set")
    return found


def _listed() -> str:
    quoted = [f"'{name}'" for name in _STATEFUL_SET]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _rest(spec: Document, names: tuple[str, ...]) -> Document:
    return {name: value for name, value in spec.items() if name not in names}


def _claim(old: Document, new: Document, expandable: bool) -> list[str]:
    """``volumeName``, which the binding sets, and the class that it fills in may be left out of an update."""
    filled = {name: old[name] for name in ("volumeName", "storageClassName", "volumeMode") if name in old}
    changeable = ("resources", "volumeAttributesClassName")
    if _rest(old, changeable) != _rest(filled | new, changeable) and _rest(old, changeable):
        return [
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName "
            "for bound claims"
        ]
    sizes = [quantity(spec["resources"]["requests"]["storage"]) for spec in (old, new)]
    if sizes[1] < sizes[0]:
        return ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
    if sizes[1] > sizes[0] and not expandable:
        return [
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support "
            "resize"
        ]
    return []


def _pod(spec: Document) -> Document:
    containers = [{name: value for name, value in one.items() if name != "image"} for one in spec.get("containers", [])]
    return _rest(spec, (*_POD_MAY, "nodeName", "containers")) | {"containers": containers}


def quantity(text: str | float) -> Decimal:
    """Return the number that a quantity of Kubernetes means."""
    digits = str(text).rstrip("mkMGTPKi")
    return Decimal(digits) * _SUFFIXES[str(text)[len(digits) :]]
