"""The chart mor-reward in front of a reward model that runs elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
from mor_reward.config import RewardSettings
from mor_reward.upstream import UpstreamSettings

from tests.helm import charts

REWARD = charts.CHARTS / "mor-reward"
UPSTREAM = f"--values={REWARD / 'ci' / 'upstream-values.yaml'}"


def pod(*options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pod of the service, and its network policy."""
    documents = charts.render(REWARD, UPSTREAM, *options)
    found = charts.of(documents, "Deployment")["m-mor-reward"]["spec"]["template"]["spec"]
    return found, charts.of(documents, "NetworkPolicy")["m-mor-reward"]["spec"]


def test_the_service_is_told_of_its_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = pod()
    (container,) = found["containers"]
    told = {entry["name"]: entry["value"] for entry in container["env"]}
    assert "MOR_MODEL_DIR" not in told
    for name, value in told.items():
        if name.startswith("MOR_"):
            monkeypatch.setenv(name, value)
    settings = UpstreamSettings.of(RewardSettings())
    protocol: Any = settings.protocol
    assert (protocol.protocol, protocol.model, protocol.label, protocol.probabilities) == ("classify", "rm", 1, True)
    assert str(settings.url).startswith("http://rm.models.svc:8000")
    assert str(settings.key_file) == "/run/secrets/upstream/key"


def test_its_key_comes_from_a_secret_and_it_has_no_model() -> None:
    found, _ = pod()
    volumes = {volume["name"]: volume for volume in found["volumes"]}
    assert volumes["upstream"]["secret"]["secretName"] == "rm-key"
    assert "model" not in volumes
    mounts = {mount["name"]: mount["mountPath"] for mount in found["containers"][0]["volumeMounts"]}
    assert mounts["upstream"] == "/run/secrets/upstream"
    assert "upstream" not in {volume["name"] for volume in pod("--set=upstream.existingSecret=")[0]["volumes"]}


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://rm:8000", 8000),
        ("http://rm/path", 80),
        ("https://rm.example", 443),
        ("https://[2001:db8::1]:9000", 9000),
    ],
)
def test_the_network_policy_admits_its_address_alone(url: str, port: int) -> None:
    _, policy = pod(f"--set=upstream.url={url}")
    to_upstream, to_dns = policy["egress"]
    assert to_upstream["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    assert to_upstream["ports"] == [{"protocol": "TCP", "port": port}]
    assert {port["port"] for port in to_dns["ports"]} == {53}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["upstream.url=rm:8000"], 'upstream.url is "rm:8000": write the address'),
        (["upstream.url=http://key@rm"], "write the address of the reward model"),
        (["upstream.protocol=", "model.image=m"], "upstream.url is set and upstream.protocol is not"),
        (["model.image=m"], "exactly one of them must be set"),
        (["gpus=1"], "the model runs elsewhere; set gpus=0"),
    ],
)
def test_what_cannot_work_is_refused_with_its_cure(options: list[str], message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        charts.render(REWARD, UPSTREAM, *(f"--set={option}" for option in options))
