"""Random combinations of values render to valid objects, or are refused with a cure: every value, in both charts."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helm import charts
from tests.helm.charts import Document
from tests.helm.test_pods import POD

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
ALWAYS: dict[Path, Document] = {MOR: {"model": {"name": "owner/name"}}, REWARD: {"model": {"existingClaim": "scores"}}}
REFUSED = re.compile(r"execution error at \(|- at '/")
"""Errors by `fail` and of the schema; others are faults of a template."""
LEFT = re.compile(r"<nil>|<no value>|%!")
OF_OTHERS = ("monitoring.coreos.com", "gateway.networking.k8s.io", "keda.sh")
"""Groups of resources of which Kubernetes has no schema."""
VERSIONS = ("1.30", "1.34", "1.37")
OF_NAME: dict[str, Any] = {
    "size": "3Gi",
    "weightsSize": "1.5Ti",
    "sharedMemory": "512Mi",
    "maxMemory": "100mb",
    "digest": f"sha256:{'1' * 64}",
    "tag": "v2",
    "cidrs": ["10.0.0.0/8", "192.0.2.1/32"],
    "clients": [{"cidr": "203.0.113.0/24"}, {"cidr": "10.1.0.0/16", "ports": [8400, 8443], "private": True}],
    "namespaces": [{"name": "client-a", "secrets": ["token"]}],
    "networks": ["10.244.0.0/16"],
    "ports": [5353],
    "apiServerPorts": [16443],
    "scrapeTimeout": "10s",
    "relabelings": [{"targetLabel": "cluster", "replacement": "a"}],
    "metricRelabelings": [{"action": "labeldrop", "regex": "pod"}],
    "host": "scores.example",
    "url": "https://scores.example",
    "router": "router.example",
    "interval": "15s",
    "image": "registry.example/scores:1",
    "gpuResource": "nvidia.com/mig-1g.5gb",
    "endpoint": "http://collector.monitoring:4318",
    "from": [{"podSelector": {"matchLabels": {"app": "router"}}}],
    "extraEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"protocol": "UDP", "port": 53}]}],
    "extraObjects": ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-more'}"],
    "pullSecrets": ["registry"],
    "tokens": [{"name": "wall", "scope": "viewer"}, {"name": "bot", "scope": "admin", "sha256": "0" * 64}],
    "runs": [{"name": "first", "model": "owner/name", "prompts": "/data/p.jsonl"}],
    "objectives": [{"name": "helpful", "text": "Answer well."}],
    "domains": "brain scans",
    "parentRefs": [{"name": "public", "namespace": "gateways"}],
    "extraIngress": [{"from": [{"ipBlock": {"cidr": "fd00::/8"}}], "ports": [{"port": 8300}]}],
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
}
"""Values of those that have a form of their own, by the last part of their path."""


class Strict(yaml.SafeLoader):
    """Loader that refuses a key that occurs twice, of which YAML's other readers take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key occurs twice in {keys}, {node.start_mark}"
        return super().construct_mapping(node, deep)


def leaves(schema: Document, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Document]]:
    for name, part in schema.get("properties", {}).items():
        if part.get("properties") and "description" not in part:
            yield from leaves(part, (*path, name))
        elif name != "global" and path[-1:] != ("global",):
            yield (*path, name), part


def draw(dice: random.Random, path: tuple[str, ...], part: Document) -> Any:
    """Return a random value of the schema, or the type of ``path``, where its schema does not tell."""
    name, kind = path[-1] if path[-2:-1] != ("extraIngress",) else "extraIngress", part.get("type")
    if part.get("$ref") == "#/$defs/pod":
        return {option: POD[option] for option in dice.sample(sorted(POD), 5)}
    if part.get("$ref") == "#/$defs/service":
        return {"annotations": {"example.org/key": "value"}}
    if part.get("$ref") == "#/$defs/resources":
        return {"requests": {"memory": "1.5Gi"}, "limits": {"cpu": 2}}
    if "enum" in part:
        return dice.choice(part["enum"])
    if kind == "boolean":
        return dice.random() < 0.5
    if kind in ("integer", "number"):
        least = part.get("minimum", 0)
        return min(part.get("maximum", least + 40), least + dice.choice([0, 1, 2, 40]))
    if name in OF_NAME:
        return OF_NAME[name]
    if kind == "array":
        return part.get("default", ["10.9.0.0/16"])
    if kind == "object" or "$ref" in part:
        return {} if part.get("properties") or name.endswith("ecurityContext") else {"example.org/key": "value"}
    return "" if "pattern" in part else dice.choice(["", "thing"])


def nested(chosen: dict[tuple[str, ...], Any], start: Document) -> Document:
    values: Document = json.loads(json.dumps(start))
    for path, value in chosen.items():
        parent = values
        for name in path[:-1]:
            parent = parent.setdefault(name, {})
        parent.setdefault(path[-1], value)
    return values


def validate(documents: list[Document], version: str) -> None:
    names = [
        (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        for document in documents
    ]
    assert len(names) == len(set(names))
    for document in documents:
        if not document["apiVersion"].startswith(OF_OTHERS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kubernetes_validate.validate(document, version, strict=True)
    for name, pod in charts.pods(documents).items():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            for entries, key in (("env", "name"), ("ports", "name"), ("volumeMounts", "mountPath")):
                found = [entry[key] for entry in container.get(entries, [])]
                assert len(found) == len(set(found)), f"{name}: {entries} {found}"
        volumes = [volume["name"] for volume in pod.get("volumes", [])]
        assert len(volumes) == len(set(volumes)), f"{name}: {volumes}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_a_combination_is_valid_or_refused_with_a_cure(chart: Path, seed: int, tmp_path: Path) -> None:
    """A refused combination loses the values that the message names, until it renders: each example is validated."""
    dice = random.Random(f"{chart.name} {seed}")
    every = list(leaves(json.loads((chart / "values.schema.json").read_text())))
    chosen = {path: draw(dice, path, part) for path, part in every if dice.random() < 0.2}
    version = dice.choice(VERSIONS)
    for attempt in range(20):
        values = nested(chosen, ALWAYS[chart])
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        options = ("--namespace=mor", f"--kube-version={version}.0", f"--values={tmp_path / 'values.yaml'}")
        try:
            text = charts.helm("template", "m", str(chart), *options)
            break
        except RuntimeError as error:
            assert REFUSED.search(str(error)), f"{values}: {error}"
            message = str(error).replace("/", ".")
            kept = {path: value for path, value in chosen.items() if ".".join(path) not in message}
            if len(kept) == len(chosen) or attempt > 5:
                kept = dict(dice.sample(sorted(chosen.items(), key=str), len(chosen) // 2))
            chosen = kept
    assert not LEFT.search(text)
    validate([document for document in yaml.load_all(text, Strict) if document], version)
