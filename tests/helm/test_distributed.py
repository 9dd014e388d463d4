"""Runs over several pods: JobSet with Kueue, Kubeflow's TrainJob, and engines with addresses of their own."""

from __future__ import annotations

import json
import warnings
from typing import Any

import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import get_args_parser

from tests.helm import charts
from tests.helm.charts import Document
from tests.helm.scheduler import Cluster, Node

MOR = charts.CHARTS / "mor"
MULTI = f"--values={MOR / 'ci' / 'multi-gpu-values.yaml'}"
JOB_SET = "--set=worker.jobSet.enabled=true"
NCCL = "--set=rollout.settings.weight_transfer=nccl"


def one(documents: list[Document], kind: str) -> Document:
    (found,) = charts.of(documents, kind).values()
    return found


def check_job(template: Document) -> None:
    """Check the template of a Job by the schema of Kubernetes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": template["spec"]}
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_the_pods_of_a_job_set_meet_and_start_again_together() -> None:
    documents = charts.render(MOR, MULTI, JOB_SET, "--set=worker.queueName=training")
    jobs = one(documents, "JobSet")
    assert jobs["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    check_job(replicated["template"])
    assert (job["parallelism"], job["completions"], job["completionMode"], job["backoffLimit"]) == (2, 2, "Indexed", 0)
    pod = job["template"]
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["torchrun"]
    options = get_args_parser().parse_args(container["args"])
    assert (options.nnodes, options.nproc_per_node) == ("2", "4")
    first, _, service = options.rdzv_endpoint.partition(":")[0].partition(".")
    assert first == f"{jobs['metadata']['name']}-{replicated['name']}-0-0"
    network = jobs["spec"]["network"]
    assert (network["enableDNSHostnames"], network["subdomain"]) == (True, service)
    headless = charts.of(documents, "Service")[service]["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["selector"].items() <= pod["metadata"]["labels"].items()
    (disruption,) = job["podFailurePolicy"]["rules"]
    assert disruption["action"] == "FailJob"
    (rule,) = jobs["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    assert "m-mor-worker" not in charts.of(documents, "StatefulSet")


def test_a_job_set_cannot_change_so_that_another_one_has_another_name() -> None:
    name, same, other = (
        one(charts.render(MOR, MULTI, JOB_SET, option), "JobSet")["metadata"]["name"]
        for option in ("--set=router.replicas=3", "--set=router.replicas=4", "--set=worker.image.tag=v2")
    )
    assert name == same != other
    for option in ("worker.jobSet.maxRestarts=5", "worker.queueName=training"):
        changed = one(charts.render(MOR, MULTI, JOB_SET, f"--set={option}"), "JobSet")["metadata"]["name"]
        assert changed != name, f"{option} changes what no JobSet may change"
    with pytest.raises(RuntimeError, match="set fullnameOverride to at most 32 characters"):
        charts.render(MOR, MULTI, JOB_SET, f"--set=fullnameOverride={'x' * 33}")
    longest = one(charts.render(MOR, MULTI, JOB_SET, f"--set=fullnameOverride={'x' * 32}"), "JobSet")
    assert len(f"{longest['metadata']['name']}-pod-0-99-abcde") <= 63, "the longest name of a pod"
    with pytest.raises(RuntimeError, match=r"set worker\.together and worker\.replicas"):
        charts.render(MOR, "--set=model.name=a/b", JOB_SET)


def test_the_pods_of_a_job_set_are_placed() -> None:
    large = {"cpu": 64.0, "memory": 512 * 2**30, "ephemeral-storage": 500 * 2**30, "nvidia.com/gpu": 4.0}
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    gpus = [Node(f"gpu-{number}", large, {"accelerator": "h100"}, (taint,)) for number in range(4)]
    cluster = Cluster([Node("cpu", {"cpu": 16.0, "memory": 64 * 2**30, "ephemeral-storage": 500 * 2**30}), *gpus])
    cluster.create(charts.render(MOR, MULTI, JOB_SET))
    assert cluster.schedule() == {}
    assert sum("-worker-" in name for name in cluster.placed) == 2


@pytest.mark.parametrize(
    ("options", "kind"),
    [((), "Deployment"), (("worker.together=true", "control.runs.accessMode=ReadWriteMany"), "StatefulSet")],
)
def test_kueue_admits_workers_of_every_form(options: tuple[str, ...], kind: str) -> None:
    values = ("model.name=a/b", "worker.replicas=2", "worker.queueName=training", *options)
    documents = charts.render(MOR, *(f"--set={value}" for value in values))
    worker = charts.of(documents, kind)["m-mor-worker"]
    assert worker["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"


def test_a_train_job_trains_with_the_pods_of_the_chart() -> None:
    options = (MULTI, "--set=worker.trainingRuntime.enabled=true")
    documents = charts.render(MOR, *options)
    runtime = one(documents, "TrainingRuntime")
    policy = runtime["spec"]["mlPolicy"]
    assert policy == {"numNodes": 1, "torch": {}}, "Kubeflow Trainer 2.2 refuses more"
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    check_job(replicated["template"])
    labels = replicated["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = replicated["template"]["spec"]["template"]
    usual = charts.of(documents, "StatefulSet")["m-mor-worker"]["spec"]["template"]
    assert pod["metadata"] == usual["metadata"], "the network policies are those of a worker"
    (container,), (other,) = pod["spec"]["containers"], usual["spec"]["containers"]
    assert container["name"] == replicated["name"] == "node", "Kubeflow finds it by this name"
    assert {key: container[key] for key in ("image", "env", "resources", "volumeMounts")} == {
        key: other[key] for key in ("image", "env", "resources", "volumeMounts")
    }
    parsed = get_args_parser().parse_args(container["args"])
    assert [parsed.training_script, *parsed.training_script_args] == ["mor-trainer", "work", "--once"]
    assert parsed.nproc_per_node == "4"
    assert not any(argument.startswith(("--nnodes", "--rdzv", "--standalone")) for argument in container["args"])
    assert "m-mor-between-workers" in charts.of(
        charts.render(MOR, "--set=model.name=a/b", "--set=worker.trainingRuntime.enabled=true"), "NetworkPolicy"
    )

    example = yaml.safe_load((charts.ROOT / "examples" / "kubeflow" / "trainjob.yaml").read_text())
    reference = example["spec"]["runtimeRef"]
    group, _, _ = runtime["apiVersion"].partition("/")
    assert (reference["apiGroup"], reference["kind"]) == (group, runtime["kind"])
    text = charts.helm("template", "mor", str(MOR), *options)
    named = charts.of([document for document in yaml.safe_load_all(text) if document], "TrainingRuntime")
    assert set(named) == {reference["name"]}


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (("numNodes=2",), "divides a run over 2 pods"),
        (("numNodes=1", "replicas=0", "gpus=1"), "must run on run control's node, which may have no GPU"),
    ],
)
def test_a_train_job_that_could_not_reach_the_volume_is_refused(options: tuple[str, ...], cure: str) -> None:
    worker = dict(option.split("=") for option in options)
    values = ["trainingRuntime.enabled=true", f"trainingRuntime.numNodes={worker.pop('numNodes')}"]
    values += [f"{name}={value}" for name, value in worker.items()]
    given = ("--set=model.name=a/b", *(f"--set=worker.{value}" for value in values))
    with pytest.raises(RuntimeError, match=cure):
        charts.render(MOR, *given)
    charts.render(MOR, *given, "--set=control.runs.accessMode=ReadWriteMany")


def test_engines_that_weights_are_broadcast_to_have_addresses_of_their_own() -> None:
    documents = charts.render(MOR, MULTI, NCCL)
    engines = charts.of(documents, "StatefulSet")["m-mor-rollout"]["spec"]
    headless = charts.of(documents, "Service")[engines["serviceName"]]["spec"]
    labels = engines["template"]["metadata"]["labels"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    assert headless["selector"].items() <= labels.items()
    worker = charts.pods(documents)["m-mor-worker"]
    assert json.loads(charts.variables(worker)["MOR_TRANSFER_ENGINES"]) == [
        f"http://m-mor-rollout-{number}.{engines['serviceName']}:8200" for number in range(engines["replicas"])
    ]
    policies = charts.of(documents, "NetworkPolicy")
    for one_side, other in (("worker", "rollout"), ("rollout", "worker")):
        spec: dict[str, Any] = policies[f"m-mor-broadcast-{one_side}"]["spec"]
        assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == one_side
        for rule, peers in ((spec["ingress"][0], "from"), (spec["egress"][0], "to")):
            assert rule[peers][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == other
            assert "ports" not in rule
    usual = charts.of(charts.render(MOR, MULTI), "NetworkPolicy")
    assert len(policies) == len(usual) + 2, "nothing else is opened"
    without = charts.render(MOR, MULTI)
    assert "m-mor-rollout" in charts.of(without, "Deployment")
    assert "m-mor-engines" not in charts.of(without, "Service")
    with pytest.raises(RuntimeError, match=r"broadcasts from GPU to GPU: set worker\.gpus and rollout\.gpus"):
        charts.render(MOR, "--set=model.name=a/b", NCCL)
