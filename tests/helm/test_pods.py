"""Pods are rolled when what they read changes and only then, end in time, and take every option of Kubernetes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mor_rollout.app import create_app
from mor_rollout.config import RolloutSettings

from tests.helm import charts
from tests.helm.charts import Document

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
MULTI = f"--values={MOR / 'ci' / 'multi-gpu-values.yaml'}"
TOGETHER = ("--set=worker.together=true", "--set=worker.replicas=2", "--set=control.runs.accessMode=ReadWriteMany")
HUB = "--set=model.name=owner/name"
CLAIM = "--set=model.existingClaim=scores"
WORKLOADS = ("Deployment", "StatefulSet", "Job")
COMPONENTS = ("control", "worker", "rollout", "router", "valkey", "apply")


def templates(documents: list[Document]) -> dict[str, Document]:
    """Return the pod templates of the workloads that run on, hooks left out."""
    return {
        f"{document['kind']} {document['metadata']['name']}": document["spec"]["template"]
        for document in documents
        if document["kind"] in ("Deployment", "StatefulSet")
    }


@pytest.mark.parametrize(("chart", "values"), [(MOR, MULTI), (REWARD, CLAIM)], ids=["mor", "mor-reward"])
def test_a_new_version_of_the_chart_alone_rolls_no_pod(chart: Path, values: str, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(chart, newer)
    text = (chart / "Chart.yaml").read_text()
    (newer / "Chart.yaml").write_text(re.sub(r"(?m)^version: .*", "version: 9.9.9", text))
    before, after = charts.render(chart, values), charts.render(newer, values)
    assert templates(before) == templates(after)
    assert json.dumps(before) != json.dumps(after), "objects carry the version"
    for document in after:
        if document["kind"] in WORKLOADS and "selector" in document["spec"]:
            assert "9.9.9" not in json.dumps(document["spec"])


def test_a_changed_config_map_rolls_the_pods_that_read_it_and_no_others() -> None:
    before = templates(charts.render(MOR, HUB))
    after = templates(charts.render(MOR, HUB, "--set=valkey.maxMemory=300mb"))
    assert {name for name in before if before[name] != after[name]} == {"StatefulSet m-mor-valkey"}
    for name, template in before.items():
        mounted = {volume["configMap"]["name"] for volume in template["spec"]["volumes"] if "configMap" in volume}
        assert ("checksum/config" in template["metadata"].get("annotations", {})) == bool(mounted), name


def test_labels_of_all_objects_reach_pods_and_no_selector() -> None:
    for chart, values in ((MOR, MULTI), (REWARD, CLAIM)):
        options = ("--set=commonLabels.team=vision", "--set=metrics.serviceMonitor.labels.team=ops")
        documents = charts.render(chart, values, *options, "--set=metrics.serviceMonitor.enabled=true")
        for document in documents:
            wanted = "ops" if document["kind"] == "ServiceMonitor" else "vision"
            assert document["metadata"]["labels"]["team"] == wanted, document["kind"]
            spec = document.get("spec") or {}
            assert "team" not in json.dumps(spec.get("selector") or {})
            if document["kind"] in WORKLOADS:
                assert spec["template"]["metadata"]["labels"]["team"] == "vision"


OPTIONS: Document = {
    "runtimeClassName": "kata",
    "schedulerName": "volcano",
    "priorityClassName": "high",
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["169.254.20.10"]},
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["proxy.internal"]}],
    "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
}
"""Options that stand in the pod's specification as they are."""
WAIT = {"name": "wait", "image": "busybox", "command": ["true"]}
PROXY = {"name": "proxy", "image": "envoy"}
CONSTRAINT = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
POD: Document = OPTIONS | {
    "topologySpreadConstraints": [CONSTRAINT],
    "initContainers": [WAIT],
    "extraContainers": [PROXY],
    "labels": {"cost": "centre"},
    "annotations": {"mesh": "off"},
    "workloadAnnotations": {"reloader.stakater.com/auto": "true"},
    "podSecurityContext": {"runAsUser": 7, "fsGroup": None},
    "securityContext": {"readOnlyRootFilesystem": False},
    "extraEnvFrom": [{"secretRef": {"name": "tracker"}}],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.internal"}],
    "extraVolumes": [{"name": "extra", "emptyDir": {"sizeLimit": "1Gi"}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
}
RUN = {"name": "first", "model": "owner/name", "prompts": "/data/p.jsonl"}


def with_values(chart: Path, folder: Path, values: Document) -> list[Document]:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    return charts.render(chart, f"--values={folder / 'values.yaml'}")


@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_every_workload_takes_every_option_of_a_pod(chart: Path, tmp_path: Path) -> None:
    if chart == MOR:
        values: Document = {"model": {"name": "owner/name"}, "data": {"existingClaim": "data"}, "runs": [RUN]} | {
            name: {"pod": POD} for name in COMPONENTS
        }
    else:
        values = {"model": {"image": "scores:1"}, "pod": POD}
    known = json.loads((chart / "values.schema.json").read_text())["$defs"]["pod"]["properties"]
    elsewhere = {"affinity", "serviceAccountName", "serviceAccountAnnotations", *PROBES}
    assert set(known) - set(POD) == elsewhere, "tested elsewhere"
    workloads = [
        document
        for document in with_values(chart, tmp_path, values)
        if document["kind"] in WORKLOADS
        and document["metadata"]["labels"]["app.kubernetes.io/component"] in (*COMPONENTS, "reward")
    ]
    components = {workload["metadata"]["labels"]["app.kubernetes.io/component"] for workload in workloads}
    assert components == (set(COMPONENTS) if chart == MOR else {"reward"})
    for workload in workloads:
        name, template = workload["metadata"]["name"], workload["spec"]["template"]
        spec: dict[str, Any] = template["spec"]
        assert workload["metadata"]["annotations"].items() >= POD["workloadAnnotations"].items(), name
        assert template["metadata"]["annotations"]["mesh"] == "off", name
        assert template["metadata"]["labels"]["cost"] == "centre", name
        assert {option: spec[option] for option in OPTIONS} == OPTIONS, name
        assert spec["topologySpreadConstraints"] == [CONSTRAINT], name
        assert spec["initContainers"][0] == WAIT and spec["containers"][1:] == [PROXY], name
        assert spec["securityContext"]["runAsUser"] == 7 and spec["securityContext"]["runAsNonRoot"] is True, name
        assert "fsGroup" not in spec["securityContext"], name
        own = spec["containers"][0]
        assert own["securityContext"]["readOnlyRootFilesystem"] is False, name
        assert own["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert POD["extraEnv"][0] in own["env"] and POD["extraVolumeMounts"][0] in own["volumeMounts"], name
        assert POD["extraVolumes"][0] in spec["volumes"], name
        assert own["envFrom"] == POD["extraEnvFrom"], name


PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_the_timing_of_a_probe_is_changed_field_by_field(chart: Path, tmp_path: Path) -> None:
    pod = {probe: {"timeoutSeconds": 9} for probe in PROBES}
    served = ("control", "rollout", "router") if chart == MOR else ()
    values: Document = {"model": {"existingClaim": "x"}, "pod": pod}
    if chart == MOR:
        values = {"model": {"name": "owner/name"}} | {name: {"pod": pod} for name in served}
        values["valkey"] = {"pod": {probe: pod[probe] for probe in PROBES[1:]}}
    least = HUB if chart == MOR else CLAIM
    before, after = templates(charts.render(chart, least)), templates(with_values(chart, tmp_path, values))
    changed = 0
    for name, template in after.items():
        was, now = before[name]["spec"]["containers"][0], template["spec"]["containers"][0]
        for probe in PROBES:
            if probe in was:
                assert now[probe] == was[probe] | {"timeoutSeconds": 9}, name
                changed += 1
    assert changed == (4 * 3 + 2 if chart == MOR else 3)


@pytest.mark.parametrize(
    ("chart", "value", "message"),
    [
        (MOR, 'control.pod.extraVolumes=[{"name":"tmp"}]', 'the name "tmp" in volumes'),
        (
            MOR,
            'worker.pod.extraVolumeMounts=[{"name":"x","mountPath":"/runs"}]',
            'the mountPath "/runs" in volumeMounts',
        ),
        (MOR, 'router.pod.extraContainers=[{"name":"router"}]', 'the name "router" in containers'),
        (MOR, 'rollout.pod.initContainers=[{"name":"a"},{"name":"a"}]', 'the name "a" in containers'),
        (MOR, 'valkey.pod.extraVolumes=[{"name":"acl"}]', 'the name "acl" in volumes'),
        (MOR, 'apply.pod.extraVolumes=[{"name":"work"}]', 'the name "work" in volumes'),
        (MOR, 'control.pod.hostAliases=[{"ip":"10.0.0.1"},{"ip":"10.0.0.1"}]', 'the ip "10.0.0.1" in hostAliases'),
        (REWARD, 'pod.extraVolumes=[{"name":"secrets"}]', 'the name "secrets" in volumes'),
        (REWARD, 'jobs.extraVolumeMounts=[{"name":"x","mountPath":"/tmp"}]', 'the mountPath "/tmp" in volumeMounts'),
    ],
)
def test_what_a_pod_has_already_is_refused_with_its_name(chart: Path, value: str, message: str) -> None:
    path = value.partition(".pod.")[0] + ".pod" if ".pod." in value else value.partition(".extra")[0]
    with pytest.raises(RuntimeError, match=re.escape(f"{path}: a pod would have two entries with {message}")):
        charts.render(chart, HUB if chart == MOR else CLAIM, f"--set-json={value}")


@pytest.mark.parametrize("value", ["worker.pod.livenessProbe", "apply.pod.readinessProbe", "valkey.pod.startupProbe"])
def test_the_timing_of_a_probe_that_is_not_there_is_refused(value: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"{value} is set")):
        charts.render(MOR, HUB, f"--set={value}.timeoutSeconds=9")


@pytest.mark.parametrize(("chart", "pod"), [(MOR, "apply.pod"), (REWARD, "pod")], ids=["mor", "mor-reward"])
def test_jobs_of_secrets_run_with_the_security_context_of_the_other_jobs(chart: Path, pod: str) -> None:
    least = HUB if chart == MOR else CLAIM
    pods = charts.pods(charts.render(chart, least, f"--set={pod}.securityContext.runAsUser=7"))
    jobs = [found["containers"][0] for found in pods.values() if found["containers"][0]["name"] == "secrets"]
    assert len(jobs) == 3
    assert {
        (job["securityContext"]["runAsUser"], job["securityContext"]["readOnlyRootFilesystem"]) for job in jobs
    } == {(7, True)}


def test_services_answer_on_until_their_address_is_gone_and_end_in_their_time() -> None:
    """The longest end: the wait before SIGTERM, requests in flight, and 20 s for the stage and the engine."""
    deployments = {**templates(charts.render(MOR, MULTI)), **templates(charts.render(REWARD, CLAIM))}
    serving = {name: template["spec"] for name, template in deployments.items() if name.startswith("Deployment")}
    assert len(serving) == 4
    for name, spec in serving.items():
        assert spec["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}, name
        assert spec["terminationGracePeriodSeconds"] >= 5 + 10 + 20, name
    slow = charts.render(MOR, HUB, "--set=control.settings.shutdown_grace_s=99", "--set=preStopSeconds=0")
    spec = templates(slow)["Deployment m-mor-control"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 99 + 20
    assert "lifecycle" not in spec["containers"][0]


def test_a_pod_that_is_not_ready_never_holds_up_a_drain() -> None:
    for chart, values in ((MOR, (MULTI,)), (REWARD, (CLAIM, "--set=replicas=2"))):
        budgets = charts.of(charts.render(chart, *values), "PodDisruptionBudget")
        assert budgets
        for budget in budgets.values():
            assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.anyio
async def test_an_engine_that_starts_while_redis_is_away_is_not_killed(tmp_path: Path) -> None:
    """Its startup probe waits for the engine alone, whereas /readyz waits for engine and queue server."""
    from httpx import ASGITransport, AsyncClient

    for name, template in templates(charts.render(MOR, MULTI)).items():
        container = template["spec"]["containers"][0]
        if probe := container.get("startupProbe"):
            assert probe["httpGet"]["path"] == "/startupz", name
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", name
    settings = RolloutSettings(model=str(tmp_path), redis_url="redis://127.0.0.1:1", weights_dir=tmp_path)
    async with AsyncClient(transport=ASGITransport(create_app(settings)), base_url="http://rollout") as http:
        starting, missing = await http.get("/startupz"), await http.get("/readyz")
    assert set(starting.json()["missing"]) == {"engine"}
    assert set(missing.json()["missing"]) >= {"engine", "streams"}


def test_ranks_of_two_images_never_meet() -> None:
    """A StatefulSet replaces its pods one after the other."""

    def meeting(*options: str) -> str:
        command = templates(charts.render(MOR, HUB, *TOGETHER, *options))["StatefulSet m-mor-worker"]["spec"]
        (found,) = [word for word in command["containers"][0]["args"] if word.startswith("--rdzv-id=")]
        return str(found)

    assert meeting() == meeting("--set=worker.maxRestarts=5")
    others = [meeting(f"--set={option}") for option in ("image.tag=v2", "worker.gpus=2")]
    assert len({meeting(), *others}) == 3


@pytest.mark.parametrize(
    ("chart", "options", "cure"),
    [
        (MOR, ["worker.together=true", "worker.replicas=2"], "set it to ReadWriteMany"),
        (MOR, ["worker.gpus=1", "worker.gpuResource=amd.com/gpu"], "worker.image.tag or worker.image.digest"),
        (MOR, ["rollout.gpus=1", "rollout.gpuResource=gpu.intel.com/i915"], "rollout.image.tag or rollout"),
        (MOR, ["router.settings.shutdown_grace_s=60"], "a pod needs up to 85 s to end"),
        (MOR, ["rollout.terminationGracePeriodSeconds=30"], "a pod needs up to 35 s to end"),
        (REWARD, ["gpus=1", "gpuResource=amd.com/gpu"], "with image.tag or image.digest"),
        (REWARD, ["terminationGracePeriodSeconds=20"], "a pod needs up to 25 s to end"),
    ],
)  # fmt: skip
def test_pods_that_could_not_work_are_refused_with_the_cure(chart: Path, options: list[str], cure: str) -> None:
    least = HUB if chart == MOR else CLAIM
    with pytest.raises(RuntimeError, match=re.escape(cure)):
        charts.render(chart, least, *(f"--set={option}" for option in options))


def test_gpus_of_another_maker_take_the_image_that_is_named_for_them() -> None:
    options = ("worker.gpus=1", "worker.gpuResource=amd.com/gpu", "worker.image.tag=0.1.0-rocm")
    container = templates(charts.render(MOR, HUB, *(f"--set={option}" for option in options)))[
        "Deployment m-mor-worker"
    ]["spec"]["containers"][0]
    assert container["image"] == "localhost/mor/trainer:0.1.0-rocm"
    assert container["resources"]["limits"]["amd.com/gpu"] == "1"


def test_local_disk_is_requested_for_what_fills_it(rendered: list[Document]) -> None:
    """Each emptyDir on disk is bounded, and its container requests disk."""
    for name, pod in charts.pods(rendered).items():
        volumes = [volume for volume in pod.get("volumes", []) if "emptyDir" in volume]
        on_disk = [volume for volume in volumes if "medium" not in volume["emptyDir"]]
        assert all("sizeLimit" in volume["emptyDir"] for volume in on_disk), name
        requests = pod["containers"][0]["resources"]["requests"]
        assert ("ephemeral-storage" in requests) == bool(on_disk), name
        weights = [volume["emptyDir"]["sizeLimit"] for volume in on_disk if volume["name"] == "weights"]
        if weights == ["20Gi"]:
            assert int(requests["ephemeral-storage"].removesuffix("Mi")) >= 21 * 1024
