"""Rendered charts are valid on each Kubernetes, restricted and least privileged; errors in values name their cure."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from mor_core.auth import Scope, hash_token
from mor_core.settings import PREFIX
from mor_reward.config import RewardSettings
from mor_rollout.config import RolloutSettings
from mor_router.clients.secret_store import SecretStore
from mor_router.config import RouterSettings
from mor_trainer.config import ControlSettings, WorkerSettings
from pydantic import SecretStr, TypeAdapter
from torch.distributed.run import get_args_parser

from tests.helm import charts, secret_jobs
from tests.helm.charts import Document

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
TINY = f"--values={charts.TINY}"
HUB = "--set=model.name=owner/name"
API_SERVER = '--set-json=networkPolicy.apiServerCIDRs=["10.0.0.1/32"]'
RUN = ("model.name=a/b", "runs[0].name=x", "runs[0].prompts=/data/p")
WEBHOOK = "control.settings.alert_webhook_url=https://alerts.example.org"
SAME_KEY = ("auth.tokens[0].name=service", "auth.tokens[0].scope=viewer")
SAME_NAME = (
    "auth.tokens[0].name=x",
    "auth.tokens[0].scope=viewer",
    "auth.tokens[1].name=x",
    "auth.tokens[1].scope=admin",
)
DISCOVERY = ("router.discovery.namespaces[0].name=x", "router.discovery.namespaces[0].secrets[0]=y")
SETTINGS: dict[str, Any] = {
    "control": ControlSettings,
    "worker": WorkerSettings,
    "rollout": RolloutSettings,
    "router": RouterSettings,
    "reward": RewardSettings,
}
ELSEWHERE = {"HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HOME", "OMP_NUM_THREADS", "XDG_CACHE_HOME"}


def test_schema_and_readme_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate", charts.CHARTS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generate", generate)
    spec.loader.exec_module(generate)
    for chart in generate.CHARTS:
        folder = charts.CHARTS / chart
        wanted = json.dumps(generate.schema(chart), indent=1, sort_keys=True) + "\n"
        assert (folder / "values.schema.json").read_text() == wanted, "run `python helm/generate.py`"
        assert (folder / "README.md").read_text() == generate.readme(chart), "run `python helm/generate.py`"


@pytest.mark.parametrize("profile", charts.PROFILES, ids=charts.named)
def test_lint_is_clean_and_objects_are_of_the_schema_of_each_kubernetes(profile: Path) -> None:
    chart = charts.chart_of(profile)
    charts.helm("lint", "--strict", str(chart), f"--values={profile}")
    for version in ("1.30", "1.34", "1.37"):
        for document in charts.render(chart, f"--values={profile}", kubernetes=f"{version}.0"):
            if document["apiVersion"].startswith(charts.OPERATOR_GROUPS):
                continue  # tests/cluster checks these by their operators' own types
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kubernetes_validate.validate(document, version, strict=True)


def test_every_pod_passes_the_restricted_profile(rendered: list[Document]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root besides."""
    assert charts.pods(rendered)
    for name, pod in charts.pods(rendered).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume} - {"name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"])
            assert not any("valueFrom" in variable for variable in container.get("env", [])), "secrets are files"


def test_each_container_sets_only_what_its_process_reads(
    rendered: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pod in charts.pods(rendered).items():
        process = pod["containers"][0]["name"]
        if process not in SETTINGS:
            continue
        given = charts.variables(pod)
        with monkeypatch.context() as environment:
            for variable in set(given) - ELSEWHERE:
                assert variable.startswith("MOR_"), f"{name} sets {variable}"
                environment.setenv(variable, given[variable])
            environment.delenv("MOR_SECRETS_DIR", raising=False)
            SETTINGS[process]()  # raises where a value is not what the process takes
            read = {f"{PREFIX}{field.upper()}" for field in SETTINGS[process].model_fields}
            assert set(given) - ELSEWHERE <= read | {"MOR_SECRETS_DIR"}, name


def test_selectors_and_references_lead_somewhere(rendered: list[Document]) -> None:
    """Each Service selects the pods of one component by all of its labels; each account, Secret and ConfigMap that the
    chart names by its own prefix is made by the chart or its job."""
    labels = {
        name: document["spec"]["template"]["metadata"]["labels"]
        for kind in ("Deployment", "StatefulSet")
        for name, document in charts.of(rendered, kind).items()
    }
    for document in charts.of(rendered, "JobSet").values():
        (replicated,) = document["spec"]["replicatedJobs"]
        pod = replicated["template"]["spec"]["template"]
        labels[document["spec"]["network"]["subdomain"]] = pod["metadata"]["labels"]
    for name, service in charts.of(rendered, "Service").items():
        selected = [pod for pod, found in labels.items() if service["spec"]["selector"].items() <= found.items()]
        assert set(selected) - {"m-mor-router-state"} == {name}, "of the routers one Deployment keeps the state"
    made = {(document["kind"], document["metadata"]["name"]) for document in rendered}
    generated = {("Secret", name) for name in secret_jobs.generated(rendered)}
    for pod in charts.pods(rendered).values():
        assert ("ServiceAccount", pod["serviceAccountName"]) in made
        for volume in pod.get("volumes", []):
            secrets = [source["secret"]["name"] for source in volume.get("projected", {}).get("sources", [])]
            secrets += [volume["secret"]["secretName"]] if "secret" in volume else []
            wanted = {("Secret", name) for name in secrets if name.startswith("m-")}
            wanted |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
            assert {entry for entry in wanted if entry[1].startswith("m-")} <= made | generated


def named(documents: list[Document], kind: str) -> set[tuple[str, str]]:
    """Return the namespaces and names of the objects of a kind."""
    found = (document["metadata"] for document in documents if document["kind"] == kind)
    return {(metadata["namespace"], metadata["name"]) for metadata in found}


def test_only_discovery_and_jobs_of_secrets_have_a_token_and_only_for_what_they_do() -> None:
    multi = charts.render(MOR, f"--values={MOR / 'ci' / 'multi-gpu-values.yaml'}")
    with_token = [name for name, pod in charts.pods(multi).items() if pod["automountServiceAccountToken"]]
    jobs = [name for name in with_token if name != "m-mor-router"]
    assert all(re.fullmatch("m-mor-(rotate|retire|secrets-[0-9a-f]{8})", name) for name in jobs) and len(jobs) == 3
    roles = [
        document for document in multi if document["kind"] == "Role" and document["metadata"]["namespace"] != "mor"
    ]
    assert {role["metadata"]["namespace"] for role in roles} == {"client-a", "client-b"}
    elsewhere = charts.render(MOR, f"--values={MOR / 'ci' / 'multi-gpu-values.yaml'}", namespace="other")
    for kind in ("Role", "RoleBinding"):
        assert not named(multi, kind) & named(elsewhere, kind), "releases of one name share clients"
    for binding in charts.of(multi, "RoleBinding").values():
        assert binding["roleRef"]["name"] in charts.of(multi, "Role")
    granted = {
        (resource, verb)
        for role in roles
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {("services", "list"), ("services", "watch"), ("endpointslices", "list"), ("secrets", "get")}
    assert all(rule.get("resourceNames") for role in roles for rule in role["rules"] if "secrets" in rule["resources"])
    tiny = charts.pods(charts.render(MOR, TINY, "--set=auth.existingSecret=x", "--set=valkey.existingSecret=y"))
    assert not any(pod["automountServiceAccountToken"] for pod in tiny.values())


def test_everything_is_denied_but_named_flows() -> None:
    policies = charts.of(charts.render(MOR, TINY), "NetworkPolicy")
    deny = policies["m-mor-default-deny"]["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"] and not {"ingress", "egress"} & set(deny)
    router = policies["m-mor-from-router"]["spec"]["egress"]
    blocks = [(to["ipBlock"]["cidr"], rule["ports"]) for rule in router for to in rule["to"] if "ipBlock" in to]
    assert blocks == [("10.0.0.0/8", [{"protocol": "TCP", "port": 8400}])]
    callers = [
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for peer in policies["m-mor-into-control"]["spec"]["ingress"][0]["from"]
    ]
    assert callers == ["worker", "rollout", "apply"]
    reward = charts.render(REWARD, f"--values={REWARD / 'ci' / 'function-values.yaml'}")
    assert charts.of(reward, "NetworkPolicy")["m-mor-reward"]["spec"]["egress"] == []


def test_the_router_reaches_a_model_hub_only_for_models_of_its_own() -> None:
    def to_everywhere(*options: str) -> set[str]:
        policies = charts.of(charts.render(MOR, HUB, API_SERVER, *options), "NetworkPolicy")
        return {name for name, policy in policies.items() if "0.0.0.0/0" in json.dumps(policy)}

    assert to_everywhere() == {"m-mor-from-worker", "m-mor-from-rollout"}
    assert "m-mor-from-router" in to_everywhere("--set=router.settings.embed_text_model=owner/encoder")


def test_a_component_reaches_and_trusts_the_services_that_it_calls() -> None:
    """Run control checks clients' tokens with the router; the router samples the rollout service for refits."""
    rendered = charts.render(MOR, f"--values={MOR / 'ci' / 'external-redis-values.yaml'}")
    control, router = (charts.variables(charts.pods(rendered)[f"m-mor-{name}"]) for name in ("control", "router"))
    assert (control["MOR_ROUTER_URL"], control["MOR_ROUTER_CA_FILE"]) == (
        "https://m-mor-router:8100",
        "/etc/mor/tls/ca.crt",
    )
    assert (router["MOR_POLICY_URL"], router["MOR_POLICY_CA_FILE"]) == (
        "https://m-mor-rollout:8200",
        "/etc/mor/tls/ca.crt",
    )
    policies = charts.of(rendered, "NetworkPolicy")
    for caller, called in (("control", "router"), ("router", "rollout")):
        peers = [
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for peer in policies[f"m-mor-into-{called}"]["spec"]["ingress"][0]["from"]
        ]
        assert caller in peers
        assert called in json.dumps(policies[f"m-mor-from-{caller}"]["spec"]["egress"])


def test_a_webhook_gets_its_token_from_a_secret_and_its_network() -> None:
    rendered = charts.render(MOR, f"--values={MOR / 'ci' / 'restricted-values.yaml'}")
    (secrets,) = (volume for volume in charts.pods(rendered)["m-mor-control"]["volumes"] if volume["name"] == "secrets")
    items = [item for source in secrets["projected"]["sources"] for item in source["secret"]["items"]]
    assert {"key": "token", "path": "mor_alert_webhook_token"} in items
    assert {"key": "service-token", "path": "mor_service_token"} in items, "it fetches the clients' tokens"
    egress = charts.of(rendered, "NetworkPolicy")["m-mor-from-control"]["spec"]["egress"]
    assert {"ipBlock": {"cidr": "192.0.2.10/32"}} in [peer for rule in egress for peer in rule["to"]]


def test_the_router_gets_its_proxy_from_a_secret_and_its_network() -> None:
    rendered = charts.render(MOR, f"--values={MOR / 'ci' / 'restricted-values.yaml'}")
    (secrets,) = (volume for volume in charts.pods(rendered)["m-mor-router"]["volumes"] if volume["name"] == "secrets")
    items = [item for source in secrets["projected"]["sources"] for item in source["secret"]["items"]]
    assert {"key": "url", "path": "mor_client_proxy"} in items
    egress = charts.of(rendered, "NetworkPolicy")["m-mor-from-router"]["spec"]["egress"]
    proxy = {"to": [{"ipBlock": {"cidr": "192.0.2.20/32"}}], "ports": [{"protocol": "TCP", "port": 3128}]}
    assert proxy in egress


def test_the_tiny_profile_requests_at_most_four_cores_and_six_gibibytes() -> None:
    cores, memory = charts.requests(charts.render(MOR, TINY))
    assert cores <= 4
    assert memory <= 6


def test_gpus_come_with_their_image_device_and_limit() -> None:
    pods = charts.pods(charts.render(MOR, f"--values={MOR / 'ci' / 'multi-gpu-values.yaml'}"))
    rollout = pods["m-mor-rollout"]["containers"][0]
    assert rollout["image"] == "registry.example.org/ml/mor/rollout:0.1.0-cuda"
    assert rollout["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert charts.variables(pods["m-mor-rollout"])["MOR_TENSOR_PARALLEL_SIZE"] == "4"
    assert charts.variables(pods["m-mor-worker"])["MOR_DEVICE"] == "cuda"
    assert charts.variables(pods["m-mor-router"]).get("MOR_DEVICE") is None


def test_a_run_is_divided_over_the_gpus_of_a_pod_and_over_pods_that_find_each_other() -> None:
    parser = get_args_parser()
    command = charts.pods(charts.render(MOR, HUB))["m-mor-worker"]["containers"][0]
    assert "command" not in command
    assert command["args"] == ["work"], "a single rank needs no torchrun"

    alone = charts.pods(charts.render(MOR, HUB, "--set=worker.gpus=2"))["m-mor-worker"]
    assert alone["containers"][0]["command"] == ["torchrun"]
    options = parser.parse_args(alone["containers"][0]["args"])
    assert (options.standalone, options.nproc_per_node, options.max_restarts) == (True, "2", 3)
    assert [options.training_script, *options.training_script_args] == ["mor-trainer", "work"]
    assert options.no_python
    assert {"name": "shm", "mountPath": "/dev/shm"} in alone["containers"][0]["volumeMounts"]

    documents = charts.render(MOR, f"--values={MOR / 'ci' / 'multi-gpu-values.yaml'}")
    pod = charts.pods(documents)["m-mor-worker"]
    options = parser.parse_args(pod["containers"][0]["args"])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_backend) == ("2", "4", "c10d")
    assert options.shutdown_timeout < pod["terminationGracePeriodSeconds"], "a checkpoint may be written"
    host, _, port = options.rdzv_endpoint.partition(":")
    first, _, service = host.partition(".")
    workload = charts.of(documents, "StatefulSet")["m-mor-worker"]["spec"]
    assert (first, service) == ("m-mor-worker-0", workload["serviceName"])
    assert (workload["replicas"], workload["podManagementPolicy"]) == (2, "Parallel")
    headless = charts.of(documents, "Service")[service]["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    between = charts.of(documents, "NetworkPolicy")["m-mor-between-workers"]["spec"]
    assert int(port) > 1024
    assert "ports" not in between["ingress"][0] and "ports" not in between["egress"][0]
    labels = workload["template"]["metadata"]["labels"].items()
    for selector in (
        between["podSelector"],
        between["ingress"][0]["from"][0]["podSelector"],
        {"matchLabels": headless["selector"]},
    ):
        assert selector["matchLabels"].items() <= labels
    assert "m-mor-between-workers" not in charts.of(charts.render(MOR, HUB), "NetworkPolicy")


def test_generated_tokens_are_those_of_the_tokens_file() -> None:
    secret = secret_jobs.generated(charts.render(MOR, HUB))["m-mor-auth"]
    rows = {row["name"]: row for row in TypeAdapter(list[dict[str, str]]).validate_json(secret["tokens.json"])}
    assert {name: row["scope"] for name, row in rows.items()} == {
        "operator": "admin",
        "mor": "service",
        "dashboard": "viewer",
        "enrolment": "enrolment",
    }
    keys = {"operator": "admin-token", "mor": "service-token", "dashboard": "dashboard-token"}
    assert all(rows[name]["sha256"] == hash_token(secret[key]) for name, key in keys.items())
    SecretStore(SecretStr(secret["secret-key"]))  # raises for what is no key


@pytest.mark.parametrize(
    ("chart", "options", "message"),
    [
        (MOR, [], "model.name is not set"),
        (MOR, ["model.name=/models/x"], "set model.existingClaim"),
        (MOR, ["model.name=a/b", "control.replicas=2"], "scale worker.replicas instead"),
        (MOR, ["model.name=a/b", "redis.bundled=false"], "create a Secret with the server's address"),
        (MOR, ["model.name=a/b", "redis.external.existingSecret=x"], "set redis.bundled=false"),
        (MOR, ["model.name=a/b", "rollout.image.tag=1-cuda"], "set rollout.gpus, or use the CPU image"),
        (MOR, ["model.name=a/b", "worker.gpus=-1"], "worker/gpus"),
        (MOR, ["model.name=a/b", "router.settings.qorum=0.5"], "'qorum' not allowed"),
        (MOR, ["model.name=a/b", "rollout.settings.dtype=int4"], "rollout/settings/dtype"),
        (MOR, [*RUN, "runs[0].model=a/b", "runs[0].max_staleness=-1"], "max_staleness"),
        (MOR, [*RUN, "runs[0].model=c/d"], "set both to the same model"),
        (MOR, ["model.name=a/b", *DISCOVERY], "name the networks of the cluster"),
        (MOR, ["model.name=a/b", WEBHOOK], "name the networks of that address"),
        (MOR, ["model.name=a/b", *SAME_KEY], "choose another"),
        (MOR, ["model.name=a/b", *SAME_NAME], "choose another"),
        (MOR, ["model.name=a/b", "nosuch=1"], "'nosuch' not allowed"),
        (REWARD, [], "exactly one of them must be set"),
        (REWARD, ["model.existingClaim=m", "settings.answers_dir=/a", "replicas=2"], "holds the ledger of one process"),
        (REWARD, ["model.existingClaim=x", "registration.enabled=true"], "registration.existingSecret"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_with_its_cure(chart: Path, options: list[str], message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        charts.render(chart, *(f"--set={option}" for option in options))


def test_a_script_ends_before_its_pod_is_ended() -> None:
    """With its own words, and after it has stopped what it began; helm waits for longer than both."""
    documents = charts.render(MOR, TINY)
    found = {**charts.of(documents, "Pod"), **charts.of(documents, "Job")}
    pods = charts.pods(documents)
    for name in ("m-mor-test", "m-mor-apply"):
        own = int(charts.variables(pods[name])["MOR_TIMEOUT_S"])
        assert found[name]["spec"]["activeDeadlineSeconds"] >= own + 60
    assert int(charts.variables(pods["m-mor-test"])["MOR_TIMEOUT_S"]) < 300, "helm's default --timeout"
    policy = found["m-mor-apply"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in policy] == ["Ignore", "FailJob"], (
        "a drained node is no failure, a refusal is one"
    )


def test_a_rollback_replaces_a_queue_server_that_never_became_ready() -> None:
    """In order, a StatefulSet waits for the pod with the broken image before it takes the former one."""
    server = charts.of(charts.render(MOR, TINY), "StatefulSet")["m-mor-valkey"]["spec"]
    assert server["podManagementPolicy"] == "Parallel"


def test_tokens_of_every_scope_can_be_generated_and_no_secret_is_a_value() -> None:
    """Clients are the exception: they get their tokens when they enrol."""
    schema = json.loads((MOR / "values.schema.json").read_text())
    token = schema["properties"]["auth"]["properties"]["tokens"]["items"]["properties"]
    assert set(token["scope"]["enum"]) == set(Scope) - {Scope.client}
    for chart in (MOR, REWARD):
        assert '"writeOnly": true' not in (chart / "values.schema.json").read_text()


def test_values_yaml_has_a_description_of_every_value() -> None:
    for chart in (MOR, REWARD):
        schema = json.loads((chart / "values.schema.json").read_text())
        defaults = yaml.safe_load((chart / "values.yaml").read_text())
        assert set(defaults) == set(schema["properties"])
        assert not undescribed(schema, chart.name)


def undescribed(schema: Document, path: str) -> list[str]:
    found = []
    for name, part in schema.get("properties", {}).items():
        if "description" not in part and not part.get("properties"):
            found.append(f"{path}.{name}")
        if "description" not in part:
            found += undescribed(part, f"{path}.{name}")
    return found
