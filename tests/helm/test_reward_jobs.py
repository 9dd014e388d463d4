"""Jobs of a client's chart: their options, a proxy, and an uninstallation that nothing holds up."""

from __future__ import annotations

import json

import pytest

from tests.helm import charts

REWARD = charts.CHARTS / "mor-reward"
ENROLLED = f"--values={REWARD / 'ci' / 'enrolled-values.yaml'}"
PROXIED = ("--set=registration.proxy.existingSecret=proxy", "--set=registration.proxy.port=8080")


def test_every_job_takes_the_options_of_the_values() -> None:
    given = {
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "resources": {"limits": {"memory": "1Gi"}},
    }
    options = [f"--set-json=jobs.{name}={json.dumps(value)}" for name, value in given.items()]
    documents = charts.render(
        REWARD, ENROLLED, *options, *PROXIED, '--set-json=registration.proxy.cidrs=["10.1.0.0/16"]'
    )
    pods = charts.pods(documents)
    jobs = {name: pod for name, pod in pods.items() if name != "m-mor-reward"}
    assert {"m-mor-reward-test", "m-mor-reward-register", "m-mor-reward-deregister"} < set(jobs)
    for pod in jobs.values():
        [container] = pod["containers"]
        assert charts.variables(pod)["A"] == "b"
        assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]
        assert {"name": "more", "emptyDir": {}} in pod["volumes"]
        assert container["resources"]["limits"]["memory"] == "1Gi"
    assert "A" not in charts.variables(pods["m-mor-reward"])

    for name in ("register", "deregister"):
        pod = jobs[f"m-mor-reward-{name}"]
        command = pod["containers"][0]["command"]
        assert command[command.index("--proxy-file") + 1] == "/run/secrets/mor/proxy"
        [secrets] = [volume["projected"]["sources"] for volume in pod["volumes"] if volume["name"] == "secrets"]
        assert {"secret": {"name": "proxy", "items": [{"key": "url", "path": "proxy"}]}} in secrets
    egress = charts.of(documents, "NetworkPolicy")["m-mor-reward-jobs"]["spec"]["egress"]
    assert {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 8080}]} in egress
    assert "443" not in json.dumps(egress), "calls go through the proxy alone"


def test_a_proxy_without_networks_is_refused() -> None:
    with pytest.raises(RuntimeError, match="name the networks of the proxy"):
        charts.render(REWARD, ENROLLED, *PROXIED)


def test_an_uninstallation_tries_once_and_ends_before_helm_gives_up() -> None:
    jobs = {name: job["spec"] for name, job in charts.of(charts.render(REWARD, ENROLLED), "Job").items()}
    removal = jobs["m-mor-reward-deregister"]
    assert removal["template"]["spec"]["containers"][0]["command"][-1] == "--best-effort"
    assert removal["backoffLimit"] == 0
    assert removal["activeDeadlineSeconds"] < 300, "helm's default --timeout"
    enrolment = jobs["m-mor-reward-register"]
    assert enrolment["activeDeadlineSeconds"] > 240 * (1 + enrolment["backoffLimit"]), "two calls of two minutes each"
