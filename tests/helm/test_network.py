"""Services, Ingress, Gateway and network policies: both families of addresses, caches of DNS, callers from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helm import charts
from tests.helm.charts import Document

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
NEEDED = {MOR: "--set=model.name=a/b", REWARD: "--set=function.existingConfigMap=x"}
CHARTS = [MOR, REWARD]
RULE: list[dict[str, Any]] = [{"ports": [{"port": 4318}]}]
HOST = {MOR: "gateway.hosts.control", REWARD: "gateway.host"}
SERVICE = {MOR: "control.service", REWARD: "service"}


def by_id(chart: Path) -> str:
    return chart.name


def gateway(chart: Path) -> list[str]:
    return [
        "--set=gateway.enabled=true",
        f"--set={HOST[chart]}=mor.example.org",
        '--set-json=gateway.parentRefs=[{"name":"public","namespace":"gateways"}]',
        '--set-json=gateway.namespaceLabels={"kubernetes.io/metadata.name":"envoy"}',
    ]


def policies(documents: list[Document], direction: str) -> list[Document]:
    found = charts.of(documents, "NetworkPolicy").values()
    return [rule for policy in found for rule in policy["spec"].get(direction, [])]


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_every_network_that_means_everywhere_has_both_families(chart: Path) -> None:
    options = ["--set=redis.bundled=true"] if chart == MOR else [f"--values={REWARD / 'ci' / 'enrolled-values.yaml'}"]
    if chart == MOR:
        options = [
            '--set-json=router.discovery={"namespaces":[{"name":"x","secrets":["y"]}],"networks":["10.0.0.0/8"]}'
        ]
    needed = [NEEDED[chart]] if chart == MOR else []
    everywhere = 0
    for rule in policies(charts.render(chart, *needed, *options), "egress"):
        blocks = [peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer]
        assert ("0.0.0.0/0" in blocks) == ("::/0" in blocks)
        everywhere += "::/0" in blocks
    assert everywhere >= (3 if chart == MOR else 1)


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_dns_is_reached_in_its_namespace_and_in_the_cache_of_the_node(chart: Path) -> None:
    dns = [
        rule
        for rule in policies(charts.render(chart, NEEDED[chart]), "egress")
        if {"protocol": "UDP", "port": 53} in rule["ports"]
    ]
    assert dns
    for rule in dns:
        assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in rule["to"]
        assert any("namespaceSelector" in peer for peer in rule["to"])


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_the_api_server_is_reached_on_its_own_port(chart: Path) -> None:
    """Most network policies see the port of the server itself, such as 16443, and not that of its Service."""
    options = ["--set=networkPolicy.apiServerPorts={16443}"]
    if chart == MOR:
        space = {"namespaces": [{"name": "clinic", "secrets": ["token"]}], "networks": ["10.0.0.0/8"]}
        options.append(f"--set-json=router.discovery={json.dumps(space)}")
    ports = [
        rule["ports"] for rule in policies(charts.render(chart, NEEDED[chart], *options), "egress") if "ports" in rule
    ]
    assert ports.count([{"protocol": "TCP", "port": 16443}]) == (2 if chart == MOR else 1)
    assert not [found for found in ports if {"protocol": "TCP", "port": 6443} in found]


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_further_rules_reach_the_pods(chart: Path) -> None:
    ingress = "networkPolicy.extraIngress" + (".rollout" if chart == MOR else "")
    options = [f"--set-json={path}={json.dumps(RULE)}" for path in ("networkPolicy.extraEgress", ingress)]
    documents = charts.render(chart, NEEDED[chart], *options)
    found = charts.of(documents, "NetworkPolicy")
    into = "m-mor-into-rollout" if chart == MOR else "m-mor-reward"
    assert [name for name, policy in found.items() if RULE[0] in policy["spec"].get("ingress", [])] == [into]
    leaving = {name for name, policy in found.items() if RULE[0] in policy["spec"].get("egress", [])}
    components = ("control", "worker", "rollout", "router", "apply")
    assert leaving == ({f"m-mor-from-{name}" for name in components} if chart == MOR else {into, "m-mor-reward-jobs"})
    if chart == REWARD:
        assert json.dumps(found[into]["spec"]["egress"]).count("169.254.20.10") == 1, "names need DNS"


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_services_have_the_families_of_the_values(chart: Path) -> None:
    options = ("dualStack.ipFamilyPolicy=RequireDualStack", "dualStack.ipFamilies={IPv6,IPv4}", "listenAddress=::")
    services = charts.of(charts.render(chart, NEEDED[chart], *(f"--set={option}" for option in options)), "Service")
    assert len(services) == (5 if chart == MOR else 1)
    if chart == MOR:
        broadcast = ("rollout.settings.weight_transfer=nccl", "worker.gpus=1", "rollout.gpus=1")
        documents = charts.render(chart, NEEDED[chart], *(f"--set={option}" for option in (*options, *broadcast)))
        services = charts.of(documents, "Service")
        assert "m-mor-engines" in services
    for service in services.values():
        assert service["spec"]["ipFamilyPolicy"] == "RequireDualStack"
        assert service["spec"]["ipFamilies"] == ["IPv6", "IPv4"]


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_a_service_for_callers_outside_has_no_port_of_metrics(chart: Path) -> None:
    given = {
        "type": "LoadBalancer",
        "annotations": {"cloud": "internal"},
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "externalTrafficPolicy": "Local",
        "nodePort": 30000,
    }
    ingress = "networkPolicy.extraIngress" + (".control" if chart == MOR else "")
    options = [f"--set-json={SERVICE[chart]}={json.dumps(given)}", f"--set-json={ingress}={json.dumps(RULE)}"]
    services = charts.of(charts.render(chart, NEEDED[chart], *options), "Service")
    name = "m-mor-control" if chart == MOR else "m-mor-reward"
    inner, outer = services[name], services[f"{name}-external"]
    assert "type" not in inner["spec"] and "annotations" not in inner["metadata"]
    assert outer["metadata"]["annotations"] == {"cloud": "internal"}
    assert (outer["spec"]["type"], outer["spec"]["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert outer["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    [port] = outer["spec"]["ports"]
    assert (port["targetPort"], port["nodePort"]) == ("http", 30000)
    assert outer["spec"]["selector"] == inner["spec"]["selector"]
    inside = charts.render(chart, NEEDED[chart], f'--set-json={SERVICE[chart]}={{"annotations":{{"a":"b"}}}}')
    assert charts.of(inside, "Service")[name]["metadata"]["annotations"] == {"a": "b"}


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_a_gateway_leads_to_the_service_and_checks_its_certificate(chart: Path) -> None:
    secure = ["--set=tls.existingSecret=tls", "--set=gateway.existingCaConfigMap=ca", "--set=gateway.requestTimeout=0s"]
    documents = charts.render(chart, NEEDED[chart], *gateway(chart), *secure)
    name = "m-mor-control" if chart == MOR else "m-mor-reward"
    [(found, route)] = charts.of(documents, "HTTPRoute").items()
    service = charts.of(documents, "Service")[name]["spec"]
    assert found == name
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert route["spec"]["hostnames"] == ["mor.example.org"]
    [rule] = route["spec"]["rules"]
    [backend] = rule["backendRefs"]
    assert backend == {
        "name": name,
        "port": next(port["port"] for port in service["ports"] if port["targetPort"] == "http"),
    }
    assert rule["timeouts"] == {"request": "0s"}
    policy = charts.of(documents, "BackendTLSPolicy")[name]["spec"]
    assert policy["validation"]["hostname"] == name
    assert policy["targetRefs"][0]["sectionName"] in {port["name"] for port in service["ports"]}
    admitted = [peer for rule in policies(documents, "ingress") for peer in rule.get("from", [])]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "envoy"}}} in admitted
    plain = charts.render(chart, NEEDED[chart], *gateway(chart))
    assert not charts.of(plain, "BackendTLSPolicy")
    assert "timeouts" not in charts.of(plain, "HTTPRoute")[name]["spec"]["rules"][0]


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_an_ingress_speaks_the_protocol_of_the_service(chart: Path) -> None:
    host = "ingress.hosts.control=*.x.org" if chart == MOR else "ingress.host=*.x.org"
    on = (NEEDED[chart], "--set=ingress.enabled=true", f"--set={host}", "--set=tls.existingSecret=tls")
    key = "nginx.ingress.kubernetes.io/backend-protocol"
    [ingress] = charts.of(charts.render(chart, *on), "Ingress").values()
    assert ingress["metadata"]["annotations"][key] == "HTTPS"
    assert ingress["spec"]["rules"][0]["host"] == "*.x.org"
    [ingress] = charts.of(charts.render(chart, *on[:-1]), "Ingress").values()
    assert key not in ingress["metadata"]["annotations"]


def test_an_external_redis_may_have_several_networks_and_ports() -> None:
    given = (
        "redis.bundled=false",
        "redis.external.existingSecret=x",
        "redis.external.cidrs={10.1.0.0/24,fd00::/64}",
        "redis.external.ports={6379,26379}",
    )
    rules = policies(charts.render(MOR, NEEDED[MOR], *(f"--set={option}" for option in given)), "egress")
    ports = [{"protocol": "TCP", "port": port} for port in (6379, 26379)]
    found = [rule["to"] for rule in rules if rule.get("ports") == ports]
    assert found == [[{"ipBlock": {"cidr": cidr}} for cidr in ("10.1.0.0/24", "fd00::/64")]] * 4


@pytest.mark.parametrize(
    ("chart", "options", "message"),
    [
        (MOR, ["control.service.nodePort=30000"], "control.service.nodePort needs control.service.type"),
        (REWARD, ["service.loadBalancerClass=x", "service.type=NodePort"], "needs service.type LoadBalancer"),
        (MOR, ["router.service.type=NodePort"], "name them in networkPolicy.extraIngress.router"),
        (REWARD, ["service.type=LoadBalancer"], "name their networks in networkPolicy.from"),
        (MOR, ["dualStack.ipFamilies={IPv6}"], 'set listenAddress to "::"'),
        (REWARD, ["dualStack.ipFamilies={IPv4,IPv6}", "listenAddress=::"], "set it to PreferDualStack"),
        (MOR, ["gateway.enabled=true"], "gateway.enabled needs gateway.parentRefs"),
        (MOR, ["gateway.enabled=true", "gateway.parentRefs[0].name=x"], "at least one of gateway.hosts.control"),
        (REWARD, ["gateway.enabled=true", "gateway.parentRefs[0].name=x"], "gateway.enabled needs gateway.host"),
    ],
)  # fmt: skip
def test_a_service_that_cannot_be_reached_is_refused(chart: Path, options: list[str], message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        charts.render(chart, NEEDED[chart], *(f"--set={option}" for option in options))


@pytest.mark.parametrize("chart", CHARTS, ids=by_id)
def test_a_gateway_that_cannot_reach_the_pods_is_refused(chart: Path) -> None:
    with pytest.raises(RuntimeError, match="label the namespace of the Gateway's pods"):
        charts.render(chart, NEEDED[chart], *gateway(chart)[:-1])
    with pytest.raises(RuntimeError, match="a ConfigMap with the authority's ca"):
        charts.render(chart, NEEDED[chart], *gateway(chart), "--set=tls.existingSecret=x")
