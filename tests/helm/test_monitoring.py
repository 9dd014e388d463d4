"""Metrics are read on a port of their own, and alerts and dashboards name metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import mor_rollout.metrics
import mor_router.metrics
import mor_trainer.metrics
import pytest
import yaml
from mor_router.clients.discovery.cluster import parse_service
from prometheus_client import REGISTRY

from tests.helm import charts
from tests.helm.charts import Document

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"


def test_metrics_are_on_a_port_that_only_the_monitoring_namespace_reaches(
    profile: Path, rendered: list[Document]
) -> None:
    services = charts.of(rendered, "Service")
    exposed = set()
    for kind in ("Deployment", "StatefulSet"):
        for name, workload in charts.of(rendered, kind).items():
            template = workload["spec"]["template"]
            container = template["spec"]["containers"][0]
            if not container.get("ports") or "valkey" in name:
                continue
            assert {"name": "metrics", "containerPort": 9090} in container["ports"]
            assert charts.variables(template["spec"])["MOR_METRICS_PORT"] == "9090"
            labels = template["metadata"]["labels"].items()
            (service,) = (found for found in services.values() if found["spec"]["selector"].items() <= labels)
            assert {"name": "metrics", "port": 9090, "targetPort": "metrics"} in service["spec"]["ports"]
            exposed.add(service["metadata"]["name"])
    assert exposed
    admitting = [
        [peer["namespaceSelector"]["matchLabels"] for peer in rule["from"]]
        for policy in charts.of(rendered, "NetworkPolicy").values()
        for rule in policy["spec"].get("ingress", [])
        if {"protocol": "TCP", "port": 9090} in rule.get("ports", [])
    ]
    own = yaml.safe_load(profile.read_text()).get("networkPolicy", {}).get("monitoringNamespaceLabels")
    assert admitting == [[own or {"kubernetes.io/metadata.name": "monitoring"}]] * len(exposed)
    for ingress in charts.of(rendered, "Ingress").values():
        for rule in ingress["spec"]["rules"]:
            assert {path["backend"]["service"]["port"]["name"] for path in rule["http"]["paths"]} <= {"http", "https"}
    for name, service in services.items():
        if service["metadata"].get("labels", {}).get("mor.dev/reward") == "true":
            assert parsed_port(service) == 8400, name


@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_a_service_monitor_takes_the_rules_of_the_platform(chart: Path) -> None:
    rules = {
        "scrapeTimeout": "25s",
        "relabelings": [{"targetLabel": "cluster", "replacement": "a"}],
        "metricRelabelings": [{"action": "labeldrop", "regex": "pod"}],
    }
    given = json.dumps({"enabled": True, **rules})
    need = "--set=model.name=a/b" if chart == MOR else "--set=model.existingClaim=x"
    monitors = charts.of(charts.render(chart, need, f"--set-json=metrics.serviceMonitor={given}"), "ServiceMonitor")
    assert len(monitors) == (3 if chart == MOR else 1)
    for monitor in monitors.values():
        (endpoint,) = monitor["spec"]["endpoints"]
        assert rules.items() <= endpoint.items()


@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_a_service_monitor_reads_each_service_by_the_name_in_its_certificate(chart: Path) -> None:
    options = ("model.name=a/b",) if chart == MOR else ("model.existingClaim=x",)
    scraped = ("metrics.serviceMonitor.enabled=true", "tls.existingSecret=x", *options)
    documents = charts.render(chart, *(f"--set={option}" for option in scraped))
    exposed = {
        name: service
        for name, service in charts.of(documents, "Service").items()
        if "metrics" in {port["name"] for port in service["spec"].get("ports", [])}
    }
    monitors = charts.of(documents, "ServiceMonitor")
    assert set(monitors) == set(exposed)
    for name, monitor in monitors.items():
        [endpoint] = monitor["spec"]["endpoints"]
        assert (endpoint["port"], endpoint["scheme"], endpoint["tlsConfig"]["serverName"]) == ("metrics", "https", name)
        assert endpoint["tlsConfig"]["ca"] == {"secret": {"name": "x", "key": "ca.crt"}}
        assert monitor["spec"]["selector"]["matchLabels"].items() <= exposed[name]["metadata"]["labels"].items()


def parsed_port(service: Document) -> int:
    """Return the port of a reward service that discovery finds."""
    meta, spec = service["metadata"], service["spec"]
    ports = [SimpleNamespace(name=port["name"], port=port["port"]) for port in spec["ports"]]
    found = SimpleNamespace(
        metadata=SimpleNamespace(name=meta["name"], namespace="n", annotations=meta.get("annotations")),
        spec=SimpleNamespace(type="ClusterIP", ports=ports),
    )
    return parse_service(found).port


def test_alerts_and_dashboards_name_metrics_that_exist() -> None:
    assert all((mor_rollout.metrics, mor_router.metrics, mor_trainer.metrics))
    known = {
        f"{metric.name}{suffix}"
        for metric in REGISTRY.collect()
        for suffix in ("", "_total", "_bucket", "_sum", "_count")
    }
    documents = charts.render(MOR, f"--values={MOR / 'ci' / 'multi-gpu-values.yaml'}")
    rules = [rule["expr"] for rule in charts.of(documents, "PrometheusRule")["m-mor"]["spec"]["groups"][0]["rules"]]
    boards = charts.of(documents, "ConfigMap")["m-mor-dashboards"]["data"]
    assert set(boards) == {"run.json", "platform.json"}
    dashboards = [json.loads(board) for board in boards.values()]
    panels = [
        target["expr"] for board in dashboards for panel in board["panels"] for target in panel.get("targets", ())
    ]
    queries = [
        entry["query"] for board in dashboards for entry in board["templating"]["list"] if entry["type"] == "query"
    ]
    for expression in [*rules, *panels, *queries]:
        for metric in re.findall(r"\bmor_[a-z_]+\b", expression):
            assert metric in known, f"{expression} reads {metric}, which no service has"


def test_alerts_concern_this_release_and_name_their_runbook() -> None:
    on = ("--set=model.name=a/b", "--set=metrics.prometheusRule.enabled=true")
    documents = charts.render(MOR, *on, "--set=metrics.prometheusRule.runbooksUrl=https://x.org/runbooks")
    [group] = charts.of(documents, "PrometheusRule")["m-mor"]["spec"]["groups"]
    monitored = set(charts.of(charts.render(MOR, on[0], "--set=metrics.serviceMonitor.enabled=true"), "ServiceMonitor"))
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"] == f"https://x.org/runbooks#{rule['alert'].lower()}"
        metrics = re.findall(r"\b(?:mor_[a-z_]+|up)\{", rule["expr"])
        selectors = re.findall(r'namespace="(\w+)",service=~"([^"]+)"', rule["expr"])
        assert len(selectors) == len(metrics) > 0
        for namespace, services in selectors:
            assert namespace == "mor"
            assert {name for name in monitored if re.fullmatch(services, name)} == monitored
            assert not re.fullmatch(services, "m-mor-2-control"), "a release whose name begins alike"
    with pytest.raises(RuntimeError, match="name the address at which your team reads"):
        charts.render(MOR, *on, "--set=metrics.prometheusRule.runbooksUrl=docs/runbooks.md")


def test_a_collector_of_traces_is_named_to_every_service_and_can_be_reached() -> None:
    options = (
        "--set=model.name=a/b",
        "--set=tracing.endpoint=http://collector:4318",
        "--set-json=tracing.ratio=0.1",
        '--set-json=networkPolicy.extraEgress=[{"ports": [{"port": 4318}]}]',
    )
    documents = charts.render(MOR, *options)
    for component in ("control", "worker", "rollout", "router"):
        set_to = charts.variables(charts.pods(documents)[f"m-mor-{component}"])
        assert set_to["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
        assert (set_to["OTEL_TRACES_SAMPLER"], set_to["OTEL_TRACES_SAMPLER_ARG"]) == ("parentbased_traceidratio", "0.1")
        policy = charts.of(documents, "NetworkPolicy")[f"m-mor-from-{component}"]
        assert {"ports": [{"port": 4318}]} in policy["spec"]["egress"]
    assert "OTEL_" not in json.dumps(charts.render(MOR, "--set=model.name=a/b"))
