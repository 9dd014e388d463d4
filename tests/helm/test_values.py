"""A null in the values renders or is refused with its cure, as are names and quantities that Kubernetes refuses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import charts

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
LEAST = {MOR: ("--set=model.name=owner/name",), REWARD: ("--set=model.existingClaim=scores",)}
CURES = ("leave it out", "set ", "name ", "exactly one", "need", "got null, want")
"""Parts of the messages that say what to do; the last is the schema's, which names path and type."""
LEFT = re.compile(r"<nil>|<no value>|%!")
"""Traces of a value that was missing where a template printed it."""


def paths(values: Any, above: str = "") -> Iterator[str]:
    """Return the path of every key at every depth, in the notation of ``--set``."""
    for key, value in values.items():
        path = f"{above}{key.replace('.', chr(92) + '.')}"
        yield path
        if isinstance(value, dict):
            yield from paths(value, f"{path}.")


def null(chart: Path, *nulls: str) -> str:
    """Render with these nulls.

    Raises:
        RuntimeError: the chart refuses them.
    """
    return charts.helm("template", "m", str(chart), *LEAST[chart], *(f"--set={path}=null" for path in nulls))


def depths(known: Any) -> Iterator[tuple[str, bool]]:
    """Return the path of every value of ``files/values.json``, and whether a null there means none."""
    for key, value in known.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{path}", none) for path, none in depths(value))
        else:
            yield key, value in ("", [], {})


def objects(known: Any, above: str = "") -> Iterator[str]:
    """Return the paths of the objects that contain values."""
    for key, value in known.items():
        if isinstance(value, dict) and value:
            yield f"{above}{key}"
            yield from objects(value, f"{above}{key}.")


@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_nulls_mean_none_where_there_is_one_and_are_refused_together_elsewhere(chart: Path) -> None:
    known = json.loads((chart / "files" / "values.json").read_text())
    optional = {path for path, none in depths(known) if none} - {option.split("=")[1] for option in LEAST[chart]}
    text = null(chart, *optional)
    assert not LEFT.search(text)
    assert list(yaml.safe_load_all(text))
    groups = [{path for path, none in depths(known) if not none}]
    parents = set(objects(known))
    groups += [{path for path in parents if path.count(".") == depth} for depth in range(3)]
    for group in groups:
        if group:
            with pytest.raises(RuntimeError) as error:
                null(chart, *group)
            for path in group:
                assert re.search(rf"- {re.escape(path)} is null.*: leave it out for the default", str(error.value)), (
                    path
                )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_any_single_null_renders_or_is_refused_with_its_cure(chart: Path) -> None:
    values = yaml.safe_load((chart / "values.yaml").read_text())

    def problem(path: str) -> str | None:
        try:
            text = null(chart, path)
        except RuntimeError as error:
            return None if any(cure in str(error) for cure in CURES) else f"{path}: {error}"
        return f"{path}: {LEFT.findall(text)}" if LEFT.search(text) else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [found for found in pool.map(problem, paths(values)) if found]
    assert not problems


def test_a_null_is_the_way_to_have_none_of_a_default() -> None:
    """A platform such as OpenShift sets the user itself, and another ingress controller has other annotations."""
    options = (
        "--set=podSecurityContext.runAsUser=null",
        "--set=control.resources=null",
        "--set=ingress.annotations=null",
    )
    hosts = ("--set=ingress.enabled=true", "--set=ingress.hosts.control=mor.example.org")
    documents = charts.render(MOR, *LEAST[MOR], *options, *hosts)
    pod = charts.pods(documents)["m-mor-control"]
    assert "runAsUser" not in pod["securityContext"] and pod["securityContext"]["runAsNonRoot"] is True
    assert set(pod["containers"][0]["resources"]) == {"requests"}
    assert "annotations" not in charts.of(documents, "Ingress")["m-mor"]["metadata"]


def test_both_charts_treat_values_alike() -> None:
    for name in ("_values.tpl", "_options.tpl", "_selector.tpl"):
        assert (MOR / "templates" / name).read_text() == (REWARD / "templates" / name).read_text(), name
    for chart in (MOR, REWARD):
        for template in (chart / "templates").glob("[!_]*"):
            assert template.read_text().startswith('{{- include "mor.values" . -}}\n'), template


NO_NAME = "no object in Kubernetes can be named: use at most 253 lower-case letters"
NO_IMAGE = "no image can have: write"
NO_HOST = f"which {NO_IMAGE} a host such as registry.example.org:5000/ml, without scheme"
NO_NETWORK = "which is no network: write an address and a prefix"
NO_SERVICE = "set fullnameOverride to lower-case letters, digits and '-', with a letter first"


@pytest.mark.parametrize(
    ("chart", "refused"),
    [
        (MOR, {"fullnameOverride=MoR": NO_SERVICE}),
        (MOR, {"fullnameOverride=mor.training": NO_SERVICE}),
        (MOR, {"nameOverride=Aligner": NO_SERVICE}),
        (MOR, {f"fullnameOverride={'m' * 41}": "longer than 40 characters: shorten it"}),
        (MOR, {"commonLabels.app\\.kubernetes\\.io/name=x": "the chart itself sets the label"}),
        (MOR, {"router.pod.labels.app\\.kubernetes\\.io/component=x": "router.pod.labels: the chart itself sets"}),
        (
            MOR,
            {
                "tls.existingSecret=mor_tls": f'tls.existingSecret is "mor_tls", which {NO_NAME}',
                "auth.existingSecret=Tokens": f'auth.existingSecret is "Tokens", which {NO_NAME}',
                f"redis.external.existingCaSecret={'c' * 254}": f'redis.external.existingCaSecret is "{"c" * 254}"',
                "model.existingClaim=models/": f'"models/", which {NO_NAME}',
                "control.runs.storageClass=Fast": f'control.runs.storageClass is "Fast", which {NO_NAME}',
                "image.pullSecrets[0]=registry_login": f'image.pullSecrets[0] is "registry_login", which {NO_NAME}',
                "priorityClassName=-high": f'"-high", which {NO_NAME}',
                "worker.pod.runtimeClassName=Nvidia": f'worker.pod.runtimeClassName is "Nvidia", which {NO_NAME}',
                "rollout.pod.serviceAccountName=a..b": f'"a..b", which {NO_NAME}',
                "ingress.hosts.control=https://mor.example.org": "without scheme, port and path",
                "router.discovery.namespaces[0].name=client.a": '"client.a", which no namespace can be named',
                "router.discovery.namespaces[0].secrets[0]=S": f'namespaces[0].secrets[0] is "S", which {NO_NAME}',
                "control.runs.size=50GB": 'control.runs.size is "50GB", which is no quantity: write a number',
                "rollout.weightsSize=20 Gi": 'rollout.weightsSize is "20 Gi", which is no quantity: write a number',
                "global.imageRegistry=Registry.example/": f'global.imageRegistry is "Registry.example/", {NO_HOST}',
                "image.registry=https://registry.example": f'image.registry is "https://registry.example", {NO_HOST}',
                "image.tag=1.0 rc": f'image.tag is "1.0 rc", which {NO_IMAGE} at most 128 letters',
                "worker.image.repository=MoR/trainer": f"which {NO_IMAGE} lower-case names with / between them",
                "valkey.image.digest=0123456789abcdef": f"which {NO_IMAGE} sha256: with 64 hexadecimal digits",
                "networkPolicy.hubCIDRs[0]=huggingface.co": f'hubCIDRs[0] is "huggingface.co", {NO_NETWORK}',
                "redis.external.cidrs[0]=10.20.0.300/32": f'redis.external.cidrs[0] is "10.20.0.300/32", {NO_NETWORK}',
                "networkPolicy.extraEgress[0].to[0].ipBlock.cidr=10.1.2.3": f'ipBlock.cidr is "10.1.2.3", {NO_NETWORK}',
                "router.clients[0].cidr=10.20.0.5/16": '"10.20.0.5/16", which is an address in a network: write 0 for',
                "router.discovery.networks[0]=fd00::": f'router.discovery.networks[0] is "fd00::", {NO_NETWORK}',
                "worker.resources.requests.memory=20Gi": (
                    'worker.resources.requests.memory is "20Gi", above the limit, which Kubernetes refuses: '
                    'raise worker.resources.limits.memory from "12Gi"'
                ),
                "router.resources.requests.cpu=2001m": 'router.resources.requests.cpu is "2001m", above the limit',
                "metrics.serviceMonitor.scrapeTimeout=1m": "with which Prometheus reads nothing: write at most",
            },
        ),
        (
            MOR,
            {
                "worker.resources.requests.memory=2GB": "worker/resources/requests/memory",
                "commonLabels.team=a b": "commonLabels/team",
                "runs[0].name=My.Run": "runs/0/name",
                "objectives[0].name=Helpful!": "objectives/0/name",
                "auth.tokens[0].name=Wall_1": "auth/tokens/0/name",
                "metrics.serviceMonitor.interval=30sec": "metrics/serviceMonitor/interval",
                "networkPolicy.dns.ports[0]=70000": "networkPolicy/dns/ports/0",
                "tracing.endpoint=collector:4318": "tracing/endpoint",
            },
        ),
        (REWARD, {"fullnameOverride=Scores": NO_SERVICE}),
        (REWARD, {"pod.labels.mor\\.dev/reward=x": "the chart itself sets the label"}),
        (REWARD, {"registration.name=St.Mary": "registration/name"}),
        (REWARD, {"function.name=scorer": "function/name"}),
        (
            REWARD,
            {
                "tls.existingSecret=my_tls": f'tls.existingSecret is "my_tls", which {NO_NAME}',
                "ingress.host=Scores.example": "is no host name",
                "model.size=twenty": "is no quantity",
                "image.tag=:1": f'image.tag is ":1", which {NO_IMAGE}',
                "model.image=registry.example/Scores:1": f"which {NO_IMAGE} a name with tag or digest",
                "registration.routerCIDRs[0]=router.example": NO_NETWORK,
                "jobs.resources.requests.memory=64Gi": "raise jobs.resources.limits.memory",
            },
        ),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_before(chart: Path, refused: dict[str, str]) -> None:
    with pytest.raises(RuntimeError) as error:
        charts.render(chart, *LEAST[chart], *(f"--set={option}" for option in refused))
    for option, cure in refused.items():
        assert cure in str(error.value), option


def test_images_networks_and_resources_that_kubernetes_takes_are_rendered() -> None:
    given = {
        "image.registry": "[fd00::1]:5000/team/ml_1",
        "image.tag": "v1.2-rc_1",
        "valkey.image.repository": "mirror/valkey__1/valkey",
        "worker.image.digest": f"sha256:{'0a' * 32}",
        "router.clients[0].cidr": "10.16.0.0/12",
        "router.clients[1].cidr": "203.0.113.5/32",
        "router.clients[2].cidr": "2001:db8::/32",
        "router.clients[3].cidr": "0.0.0.0/0",
        "networkPolicy.hubCIDRs[0]": "10.20.0.5/16",
        "worker.resources.requests.cpu": "4000m",
        "worker.resources.limits.ephemeral-storage": "500Mi",
        "metrics.serviceMonitor.scrapeTimeout": "30000ms",
    }
    documents = charts.render(MOR, *LEAST[MOR], *(f"--set={name}={value}" for name, value in given.items()))
    [worker] = charts.pods(documents)["m-mor-worker"]["containers"]
    assert worker["image"] == f"[fd00::1]:5000/team/ml_1/mor/trainer@sha256:{'0a' * 32}"
    assert worker["resources"]["limits"]["ephemeral-storage"] == "500Mi"
    assert "ephemeral-storage" not in worker["resources"]["requests"], "Kubernetes takes the limit"


def test_objects_of_ones_own_and_values_of_a_parent_chart_have_forms_of_their_own() -> None:
    map_ = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "own"},
        "data": {"size": "large", "cidr": "-"},
    }
    options = (f"--set-json=extraObjects=[{json.dumps(map_)}]", "--set=global.size=small", "--set=global.className=A b")
    for chart in (MOR, REWARD):
        documents = charts.render(chart, *LEAST[chart], *(options if chart == MOR else options[1:]))
        assert documents
    assert charts.of(charts.render(MOR, *LEAST[MOR], options[0]), "ConfigMap")["own"]["data"] == map_["data"]


@pytest.mark.parametrize("release", ["m.one", "1st"])
def test_a_release_whose_name_no_service_can_have_is_refused(release: str) -> None:
    for chart in (MOR, REWARD):
        with pytest.raises(
            RuntimeError, match="set fullnameOverride to lower-case letters, digits and '-', with a letter"
        ):
            charts.helm("template", release, str(chart), *LEAST[chart])
        charts.helm("template", release, str(chart), *LEAST[chart], "--set=fullnameOverride=mor")
