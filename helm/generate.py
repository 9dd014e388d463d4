"""Write the generated files of the charts: ``python helm/generate.py``. A test fails when they are out of date.

They are values.schema.json, README.md and files/values.json of both charts, from values.yaml and the services'
settings, the Grafana dashboards of ``dashboards.py``, and the users of ``mor_core.redis_users``.

The comment above a value is its description. A line ``@schema {...}`` in it extends the schema that follows from the
default; ``@ref name`` refers to a definition below, ``@settings process`` to the settings of a process that the chart
leaves to the user, ``@objectives`` and ``@runs`` to the requests of the router's and the trainer's API.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mor_core.redis_users import users_file
from mor_core.runs import RunSpec
from mor_core.settings import Settings
from mor_core.stored_objectives import NewObjective
from mor_reward.config import RewardSettings
from mor_rollout.config import RolloutSettings
from mor_router.config import RouterSettings
from mor_trainer.config import ControlSettings, WorkerSettings
from pydantic import BaseModel, TypeAdapter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from dashboards import dashboards  # noqa: E402

CHARTS = ("mor", "mor-reward")

Schema = dict[str, Any]

_SERVING = {
    "host",
    "port",
    "metrics_host",
    "metrics_port",
    "tokens_file",
    "log_format",
    "tls_cert_file",
    "tls_key_file",
}
_CALLING = {"service_token", "control_url", "control_ca_file"}
_PROCESSES: dict[str, tuple[type[Settings], set[str]]] = {
    "control": (
        ControlSettings,
        {
            *(*_SERVING, "redis_url", "database_url", "runs_dir", "router_url", "router_ca_file", "service_token"),
            # A proxy's address may hold a password: extraEnv.
            *("alert_webhook_token", "alert_webhook_proxy", "push_proxy"),
        },
    ),
    "worker": (
        WorkerSettings,
        {*_CALLING, "redis_url", "runs_dir", "device", "log_format"},
    ),
    "rollout": (
        RolloutSettings,
        {
            *(*_SERVING, *_CALLING, "redis_url", "model", "device", "weights_dir", "tensor_parallel_size"),
            *("start_timeout_s", "weights_bytes", "runs_dir"),
        },
    ),
    "router": (
        RouterSettings,
        {
            *(*_SERVING, "redis_url", "secret_key", "audit_log", "allow_loopback", "allowed_networks"),
            *("kubernetes_networks", "kubernetes_namespaces", "kubernetes_selector"),
            *("ca_file", "client_cert_file", "client_key_file", "client_proxy"),
            *("policy_url", "policy_ca_file", "service_token", "router_state_dir"),
            "router_state_elsewhere",
        },
    ),
    "reward": (
        RewardSettings,
        {
            *(*_SERVING, "model_dir", "function", "name", "domains", "device"),
            # These follow from the value `upstream`.
            *("upstream", "upstream_url", "upstream_model", "upstream_key_file", "upstream_version"),
            *("upstream_options", "upstream_proxy", "template", "sees_pictures"),
        },
    ),
}
"""Settings class of each process, and the fields that the chart sets itself."""

_STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_LABELS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"},
    "additionalProperties": {"type": "string", "pattern": r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"},
}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
_TIMING: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {"type": "integer", "minimum": 1}
        for name in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold")
    },
}
_POD: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "annotations": {**_STRINGS, "description": "Annotations of the pods."},
        "labels": {**_LABELS, "description": "Further labels of the pods."},
        "workloadAnnotations": {
            **_STRINGS,
            "description": "Annotations of the Deployment, StatefulSet or job, such as a reloader's.",
        },
        "nodeSelector": {**_LABELS, "description": "Labels of the nodes that may run them."},
        "tolerations": {**_OBJECTS, "description": "Taints of nodes that they tolerate."},
        "affinity": {
            "type": "object",
            "description": "Affinity, added to the rule that keeps pods of a shared volume together.",
        },
        "topologySpreadConstraints": {**_OBJECTS, "description": "Constraints that replace the spread over nodes."},
        "priorityClassName": {
            "type": "string",
            "description": "Priority class instead of the chart's priorityClassName.",
        },
        "runtimeClassName": {"type": "string", "description": "Runtime class."},
        "schedulerName": {"type": "string", "description": "Scheduler instead of the cluster's default."},
        "dnsPolicy": {
            "enum": ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
            "description": "DNS policy; `None` takes servers from dnsConfig alone.",
        },
        "dnsConfig": {"type": "object", "description": "DNS servers, search domains and options."},
        "hostAliases": {**_OBJECTS, "description": "Further lines of /etc/hosts."},
        "podSecurityContext": {
            "type": "object",
            "description": "Fields that replace those of the chart's podSecurityContext; `null` removes one.",
        },
        "securityContext": {
            "type": "object",
            "description": "Fields that replace those of the chart's securityContext; `null` removes one.",
        },
        "initContainers": {
            **_OBJECTS,
            "description": "Containers that end before MoR's starts, or run beside it with `restartPolicy: Always`.",
        },
        "extraContainers": {
            **_OBJECTS,
            "description": "Containers beside MoR's; those of a job must end by themselves.",
        },
        "serviceAccountName": {
            "type": "string",
            "description": "Existing service account; the chart creates one by default.",
        },
        "serviceAccountAnnotations": {
            **_STRINGS,
            "description": "Annotations of the service account that the chart creates.",
        },
        "extraEnv": {**_OBJECTS, "description": "Further environment variables."},
        "extraEnvFrom": {
            **_OBJECTS,
            "description": "ConfigMaps and Secrets with further variables, as in `envFrom`.",
        },
        "extraVolumes": {**_OBJECTS, "description": "Further volumes."},
        "extraVolumeMounts": {**_OBJECTS, "description": "Mounts of these volumes in the container."},
        **{
            f"{name}Probe": {**_TIMING, "description": f"Timing of the {name} probe, field by field."}
            for name in ("startup", "liveness", "readiness")
        },
    },
}
_SERVICE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "type": {
            "enum": ["ClusterIP", "NodePort", "LoadBalancer"],
            "description": "Of a type other than ClusterIP there is a second Service with the suffix `-external`, "
            "without the port of the metrics.",
        },
        "annotations": {**_STRINGS, "description": "Annotations of the Service of that type."},
        "nodePort": {
            "type": "integer",
            "minimum": 1,
            "maximum": 65535,
            "description": "Port of the nodes, for NodePort and LoadBalancer; one is chosen by default.",
        },
        "externalTrafficPolicy": {
            "enum": ["Cluster", "Local"],
            "description": "Policy for NodePort and LoadBalancer; `Local` keeps the callers' addresses.",
        },
        "loadBalancerClass": {"type": "string", "description": "Class of the load balancer."},
        "loadBalancerSourceRanges": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Networks from which the load balancer takes connections.",
        },
    },
}
_RESOURCES: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        kind: {"type": "object", "additionalProperties": {"type": ["string", "number"], "pattern": _QUANTITY}}
        for kind in ("requests", "limits")
    },
}


@dataclass(frozen=True)
class Value:
    """Value of a chart with its comment."""

    path: tuple[str, ...]
    default: Any
    description: str
    marks: dict[str, str] = field(default_factory=dict)


_OPTIONS = {"pod": "Options of the pods.", "service": "Options of the Service."}


def values(chart: str) -> Iterator[Value]:
    """Return every value that has a comment, and the objects that contain them."""
    text = (HERE / chart / "values.yaml").read_text()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    yield from _below(root, yaml.safe_load(text), text.splitlines(), ())


def _below(node: yaml.MappingNode, defaults: Any, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    for key, child in node.value:
        name, default = key.value, defaults[key.value]
        description, marks = _comment(lines, key.start_mark.line)
        yield Value((*path, name), default, description, marks)
        if not description and isinstance(child, yaml.MappingNode):
            yield from _below(child, default, lines, (*path, name))


def _comment(lines: list[str], line: int) -> tuple[str, dict[str, str]]:
    text_lines: list[str] = []
    marks: dict[str, str] = {}
    while line > 0 and (text := lines[line - 1].strip()).startswith("#") and not text.startswith("# ----"):
        line -= 1
        if mark := re.match(r"# @(\w+) ?(.*)", text):
            marks[mark[1]] = mark[2]
        else:
            text_lines.insert(0, text.lstrip("# "))
    described = " ".join(text_lines)
    return (_OPTIONS[marks["ref"]] if "ref" in marks and not described else described), marks


def schema(chart: str) -> Schema:
    """Return the JSON schema of the chart's values; it refuses every value that it does not name."""
    definitions: Schema = {"pod": _POD, "service": _SERVICE, "resources": _RESOURCES, "labels": _LABELS}
    top: Schema = {"type": "object", "additionalProperties": False, "properties": {}}
    for value in values(chart):
        parent = top
        for name in value.path[:-1]:
            parent = parent["properties"][name]
        parent["properties"][value.path[-1]] = _schema_of(value, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Values of the chart {chart}",
        **top,
        "$defs": definitions,
    }


def _schema_of(value: Value, definitions: Schema) -> Schema:
    described: Schema = {"description": value.description} if value.description else {}
    if "ref" in value.marks:
        return {"$ref": f"#/$defs/{value.marks['ref']}", **described}
    if "settings" in value.marks:
        settings, own = _PROCESSES[value.marks["settings"]]
        return {**_without(_model(settings, definitions), own), **described, "required": []}
    if "objectives" in value.marks:
        objective = _model(NewObjective, definitions)
        objective["properties"] |= {
            "anchors": {"type": "string", "pattern": "^/data/", "description": "mor.prefs/1 file below /data."},
            "fit": {"type": "boolean", "description": "Whether to fit a gate after the upload of the anchors."},
        }
        return {"type": "array", "items": objective, **described}
    if "runs" in value.marks:
        return {"type": "array", "items": _model(RunSpec, definitions), **described}
    if value.path[-1] == "resources":
        return {"$ref": "#/$defs/resources", **described}
    return {**_type(value), **described, **json.loads(value.marks.get("schema", "{}"))}


def _type(value: Value) -> Schema:
    match value.default:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
        case _:
            children: Schema = {} if value.description else {"properties": {}}
            return {"type": "object", "additionalProperties": False, **children}


def _without(model: Schema, names: set[str]) -> Schema:
    missing = names - set(model["properties"])
    assert not missing, f"{missing} are not settings"
    return {**model, "properties": {name: part for name, part in model["properties"].items() if name not in names}}


def _model(model: type[BaseModel], definitions: Schema) -> Schema:
    """Return the JSON schema of a model, and add the types that it refers to to ``definitions``."""
    found = TypeAdapter(model).json_schema(ref_template=f"#/$defs/{model.__name__}.{{model}}")
    for name, part in found.pop("$defs", {}).items():
        definitions[f"{model.__name__}.{name}"] = _tidy(part)
    tidy: Schema = _tidy(found)
    return {**tidy, "additionalProperties": False}


def _tidy(part: Any) -> Any:
    """Remove titles, which repeat the names, and formats, which validators read differently."""
    if isinstance(part, dict):
        kept = {
            key: _tidy(inner)
            for key, inner in part.items()
            if not (key in ("title", "format", "examples") and isinstance(inner, str | list))
        }
        if kept.get("type") == "object" and "properties" in kept:
            kept["additionalProperties"] = False
        return kept
    return [_tidy(inner) for inner in part] if isinstance(part, list) else part


def readme(chart: str) -> str:
    """Return the chart's README: its introduction and a table of its values."""
    page = (HERE / chart / "README.md").read_text()
    begin = "<!-- values: written by helm/generate.py -->\n"
    rows = [
        f"| `{'.'.join(value.path)}` | {_default(value.default)} | {value.description.replace('|', chr(92) + '|')} |"
        for value in values(chart)
        if value.description
    ]
    table = "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])
    options = "\n\n".join(_options(name, part) for name, part in (("pod", _POD), ("service", _SERVICE)))
    return f"{page.partition(begin)[0]}{begin}\n{table}\n\n{options}\n"


def _options(name: str, part: Schema) -> str:
    rows = [f"| `{option}` | {about['description']} |" for option, about in part["properties"].items()]
    return "\n".join([f"Each `{name}` takes:", "", "| option | meaning |", "|---|---|", *rows])


def _default(default: Any) -> str:
    text = json.dumps(default)
    return f"`{text}`" if len(text) <= 60 else "see values.yaml"


def known_values(chart: str) -> str:
    """Return the chart's values with their defaults for ``mor.values``, because a chart cannot read its values.yaml.

    Lists and objects that may be empty are."""
    tree: Schema = {}
    for value in values(chart):
        parent = tree
        for name in value.path[:-1]:
            parent = parent[name]
        emptied = type(value.default)() if isinstance(value.default, list | dict) else value.default
        parent[value.path[-1]] = value.default if "minItems" in value.marks.get("schema", "") else emptied
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def boards() -> dict[Path, str]:
    """Return the content of each dashboard's file."""
    return {HERE / "mor" / "files" / "dashboards" / name: content for name, content in dashboards().items()}


def redis_users() -> dict[Path, str]:
    """Return the content of the file of the services' users in Redis."""
    return {HERE / "mor" / "files" / "redis-users.txt": users_file()}


def main() -> None:
    for chart in CHARTS:
        (HERE / chart / "values.schema.json").write_text(json.dumps(schema(chart), indent=1, sort_keys=True) + "\n")
        (HERE / chart / "README.md").write_text(readme(chart))
        (HERE / chart / "files").mkdir(exist_ok=True)
        (HERE / chart / "files" / "values.json").write_text(known_values(chart))
    for file, content in {**boards(), **redis_users()}.items():
        file.write_text(content)


if __name__ == "__main__":
    main()
