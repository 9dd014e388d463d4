"""Discovery documents of the tests' API server: groups, resources, OpenAPI."""

from __future__ import annotations

from typing import Any

_KINDS = {
    "v1": "Namespace Pod Service Secret ConfigMap ServiceAccount PersistentVolumeClaim Event",
    "apps/v1": "Deployment StatefulSet ReplicaSet DaemonSet",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "batch/v1": "Job CronJob",
    "discovery.k8s.io/v1": "EndpointSlice",
    "monitoring.coreos.com/v1": "ServiceMonitor PrometheusRule",
    "networking.k8s.io/v1": "Ingress NetworkPolicy",
    "policy/v1": "PodDisruptionBudget",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding",
}
_PLURALS = {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"}
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
RESOURCES = {
    (group, plural): {
        "name": plural,
        "kind": kind,
        "namespaced": kind != "Namespace",
        "singularName": "",
        "verbs": _VERBS,
    }
    for group, kinds in _KINDS.items()
    for kind in kinds.split()
    for plural in [_PLURALS.get(kind, f"{kind.lower()}s")]
}
GROUPS: dict[str, Any] = {
    group: {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group,
        "resources": [resource for (found, _), resource in RESOURCES.items() if found == group],
    }
    for group in _KINDS
}


def groups() -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for group_version in GROUPS:
        group, _, version = group_version.rpartition("/")
        if group:
            groups.setdefault(group, []).append({"groupVersion": group_version, "version": version})
    return [{"name": name, "versions": found, "preferredVersion": found[0]} for name, found in groups.items()]


def _prefix(group_version: str) -> str:
    return f"{'apis' if '/' in group_version else 'api'}/{group_version}"


def openapi_index() -> dict[str, Any]:
    paths = {_prefix(name): {"serverRelativeURL": f"/openapi/v3/{_prefix(name)}?hash=1"} for name in GROUPS}
    return {"paths": paths}


def openapi(group_version: str) -> dict[str, Any]:
    """As much as kubectl and helm read: which patches know field validation."""
    group, _, version = group_version.rpartition("/")
    paths = {}
    for (found, name), resource in RESOURCES.items():
        if found == group_version:
            place = "namespaces/{namespace}/" if resource.get("namespaced") else ""
            kind = {"group": group, "version": version, "kind": resource["kind"]}
            paths[f"/{_prefix(found)}/{place}{name}/{{name}}"] = {
                "patch": {
                    "operationId": f"patch{resource['kind']}",
                    "parameters": [{"in": "query", "name": "fieldValidation", "schema": {"type": "string"}}],
                    "responses": {"200": {"description": "OK"}},
                    "x-kubernetes-action": "patch",
                    "x-kubernetes-group-version-kind": kind,
                }
            }
    return {"openapi": "3.0.0", "info": {"title": "test", "version": "1"}, "paths": paths, "components": {}}
