"""Settings that cannot work in the chart's pods are refused with their cure, and those that can have what they need."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helm import charts

MOR = charts.CHARTS / "mor"
MODEL = "model.name=a/b"
KEDA = "rollout.autoscaling.prometheus.serverAddress=http://prometheus:9090"
NCCL = ("rollout.settings.weight_transfer=nccl", "worker.gpus=1", "rollout.gpus=1")
ALL = ("control", "worker", "rollout", "router")
SPACES = "router.discovery.namespaces"
SPACE = ("name=clinic", "secrets={token}")
NETWORKS = ["router.discovery.networks={10.0.0.0/8}"]


def blobs(place: str, components: tuple[str, ...] = ALL) -> list[str]:
    return [f"{name}.settings.blob_dir={place}" for name in components]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([NCCL[0]], "set worker.gpus and rollout.gpus"),
        ([*NCCL, "rollout.autoscaling.enabled=true", KEDA], "needs engines with known addresses"),
        (["worker.settings.transfer_address=10.0.0.1"], "need rollout.settings.weight_transfer=nccl"),
        (blobs("ftp://x/y"), "the images have no library for ftp://"),
        (blobs("s3://x/y", ALL[:2]), "must be the same in control, worker, rollout and router"),
        (blobs("s3://x/y"), "name it in networkPolicy.extraEgress"),
        (blobs("/runs/blobs"), "rollout.settings.blob_dir=/runs/blobs is on no volume of these pods"),
        (["control.settings.tensorboard_dir=/var/tb"], "mount one there by control.pod.extraVolumes"),
        (["worker.settings.index_dir=/runs2/x"], "worker.settings.index_dir=/runs2/x is on no volume"),
        (["control.settings.mlflow_tracking_uri=http://mlflow:5000"], "networkPolicy.extraEgress"),
        (["control.settings.push_destinations={hf://team}"], "networkPolicy.extraEgress"),
        (["tracing.endpoint=http://collector:4318"], "tracing.endpoint is set, and the network policy permits"),
        (["rollout.settings.backend=transformers", "rollout.gpus=2"], "set rollout.gpus=1 and raise rollout.replicas"),
        (["router.settings.refit_interval_s=60", "rollout.replicas=0"], "there is no engine"),
        (["runs[0].name=x", "runs[0].model=a/b", "runs[0].prompts=/data/p"], 'the prompts of "x" are below /data'),
        ([f"objectives[{place}].{part}" for place in "01" for part in ("name=x", "text=y")], 'names "x" twice'),
        ([*NETWORKS, *(f"{SPACES}[{place}].{part}" for place in "01" for part in SPACE)], 'names "clinic" twice'),
        (["valkey.maxMemory=2gb"], "or raise the limit"),
        (["valkey.maxMemory=0mb"], "or raise the limit"),
        (["valkey.maxMemory=384Mi"], "which Valkey does not read: write a number with kb, mb or gb"),
        (["valkey.resources.limits.memory=256Mi"], "set it to at most three quarters of that"),
        (["ingress.enabled=true", "ingress.hosts.control=h", "ingress.hosts.router=h"], "one host for two services"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        charts.render(MOR, *(f"--set={option}" for option in (MODEL, *options)))


def environment(component: str, *options: str) -> dict[str, Any]:
    pods = charts.pods(charts.render(MOR, *(f"--set={option}" for option in (MODEL, *options))))
    return {found["name"]: found for found in pods[f"m-mor-{component}"]["containers"][0]["env"]}


def test_a_worker_that_broadcasts_names_its_own_address() -> None:
    found = environment("worker", *NCCL)
    assert found["MOR_TRANSFER_ADDRESS"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert "MOR_TRANSFER_ADDRESS" not in environment("worker")
    named = environment("worker", *NCCL, "worker.settings.transfer_address=10.0.0.1")
    assert named["MOR_TRANSFER_ADDRESS"] == {"name": "MOR_TRANSFER_ADDRESS", "value": "10.0.0.1"}
    own = ("worker.pod.extraEnv[0].name=MOR_TRANSFER_ADDRESS", "worker.pod.extraEnv[0].value=10.0.0.2")
    assert environment("worker", *NCCL, *own)["MOR_TRANSFER_ADDRESS"]["value"] == "10.0.0.2"


def test_blobs_may_be_in_an_object_store_or_on_a_shared_volume() -> None:
    rule = "networkPolicy.extraEgress[0].ports[0].port=443"
    assert environment("router", *blobs("s3://x/y"), rule)["MOR_BLOB_DIR"]["value"] == "s3://x/y"
    mounts = [f"{name}.pod.extraVolumeMounts[0].{part}" for name in ALL for part in ("name=blobs", "mountPath=/blobs")]
    assert environment("rollout", *blobs("/blobs/x"), *mounts)["MOR_BLOB_DIR"]["value"] == "/blobs/x"


def test_libraries_take_the_threads_of_the_settings() -> None:
    assert environment("rollout", "rollout.settings.threads=4")["OMP_NUM_THREADS"]["value"] == "4"
    assert environment("worker", "worker.settings.torch_threads=3")["OMP_NUM_THREADS"]["value"] == "3"
    assert environment("router")["OMP_NUM_THREADS"]["value"] == "1"
