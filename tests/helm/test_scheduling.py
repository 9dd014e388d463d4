"""Every profile is placed completely on CPU nodes and tainted GPU nodes, and again after a node is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helm import charts
from tests.helm.scheduler import Cluster, Node

GIB = 2**30
MOR = charts.CHARTS / "mor"
GPU = MOR / "ci" / "single-gpu-values.yaml"
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
CHANCES = range(12)
"""Seeds of the scheduler's choices, enough that each wrong first choice of the former chart occurs."""


def cluster(seed: int) -> Cluster:
    small = {"cpu": 8.0, "memory": 32 * GIB, "ephemeral-storage": 500 * GIB}
    large = {"cpu": 64.0, "memory": 512 * GIB, "ephemeral-storage": 500 * GIB, "nvidia.com/gpu": 4.0}
    nodes = [Node(f"cpu-{number}", small) for number in range(3)]
    nodes += [Node(f"gpu-{number}", large, {"accelerator": "h100"}, (TAINT,)) for number in range(5)]
    return Cluster(nodes, seed)


@pytest.mark.parametrize("profile", charts.PROFILES, ids=charts.named)
def test_every_profile_is_placed_whatever_the_scheduler_prefers(profile: Path) -> None:
    documents = charts.render(charts.chart_of(profile), f"--values={profile}")
    for seed in CHANCES:
        nodes = cluster(seed)
        nodes.create(documents)
        assert nodes.schedule() == {}


@pytest.mark.parametrize("options", [(), ("worker.replicas=3",), ("worker.pod.nodeSelector.accelerator=h100",)])
def test_run_control_follows_the_workers_to_the_gpus(options: tuple[str, ...]) -> None:
    documents = charts.render(MOR, f"--values={GPU}", *(f"--set={option}" for option in options))
    for seed in CHANCES:
        nodes = cluster(seed)
        nodes.create(documents)
        assert nodes.schedule() == {}
        workers = {where for name, where in nodes.placed.items() if name.startswith("m-mor-worker")}
        assert {nodes.placed["m-mor-control-0"]} == workers
        assert all(where.startswith("gpu-") for where in workers)


def test_without_workers_run_control_starts_alone() -> None:
    nodes = cluster(0)
    nodes.create(charts.render(MOR, f"--values={GPU}", "--set=worker.replicas=0"))
    assert nodes.schedule() == {}


def test_a_worker_that_starts_again_returns_to_the_volume_of_its_runs() -> None:
    documents = charts.render(MOR, f"--values={GPU}")
    for seed in CHANCES:
        nodes = cluster(seed)
        nodes.create(documents)
        nodes.schedule()
        before = nodes.placed["m-mor-worker-0"]
        pod = nodes.pods["m-mor-worker-0"]
        nodes.remove(pod.name)
        nodes.pods[pod.name] = pod
        assert nodes.schedule() == {}
        assert nodes.placed[pod.name] == before


def test_a_worker_whose_node_is_lost_is_replaced_and_run_control_follows() -> None:
    documents = charts.render(MOR, f"--values={GPU}")
    for seed in CHANCES:
        nodes = cluster(seed)
        nodes.create(documents)
        nodes.schedule()
        lost = nodes.lose(nodes.placed["m-mor-worker-0"])
        assert {"m-mor-worker-0", "m-mor-control-0"} <= set(lost)
        assert nodes.schedule() == {}
        assert nodes.placed["m-mor-worker-0"] == nodes.placed["m-mor-control-0"]


def test_routers_are_on_any_nodes_and_one_of_them_has_the_volume_of_a_single_node() -> None:
    documents = charts.render(MOR, f"--values={GPU}", "--set=router.replicas=3")
    deployments = charts.of(documents, "Deployment")
    names = ("m-mor-router", "m-mor-router-state")
    assert [deployments[name]["spec"]["replicas"] for name in names] == [2, 1]
    pods = charts.pods(documents)
    others, keeper = (pods[name] for name in names)
    assert "affinity" not in others and "affinity" not in keeper
    assert charts.variables(keeper)["MOR_ROUTER_STATE_DIR"] == "/state"
    assert charts.variables(others)["MOR_ROUTER_STATE_ELSEWHERE"] == "true"
    assert not any(volume["name"] == "state" for volume in others["volumes"])
    service = charts.of(documents, "Service")["m-mor-router"]["spec"]["selector"]
    for name in names:
        template = deployments[name]["spec"]["template"]["metadata"]["labels"]
        assert deployments[name]["spec"]["selector"]["matchLabels"].items() <= template.items()
        assert service.items() <= template.items()
    kept = deployments["m-mor-router-state"]["spec"]["selector"]["matchLabels"]
    assert not kept.items() <= deployments["m-mor-router"]["spec"]["template"]["metadata"]["labels"].items()
    rolled = deployments["m-mor-router-state"]["spec"]["strategy"]["rollingUpdate"]
    assert rolled == {"maxSurge": 0, "maxUnavailable": 1}, "the new pod may get another node, where the volume is not"

    alone = charts.render(MOR, f"--values={GPU}", "--set=router.replicas=1")
    assert "m-mor-router-state" not in charts.of(alone, "Deployment")
    [router] = [pod for name, pod in charts.pods(alone).items() if name == "m-mor-router"]
    assert charts.variables(router)["MOR_ROUTER_STATE_DIR"] == "/state"
    assert "affinity" not in router, "while its node is drained, another one must take it"
    assert charts.of(alone, "Deployment")["m-mor-router"]["spec"]["strategy"]["rollingUpdate"] == rolled


def test_affinities_and_tolerations_of_the_values_are_added_to_the_charts() -> None:
    mine = {"labelSelector": {"matchLabels": {"app": "mine"}}, "topologyKey": "kubernetes.io/hostname"}
    documents = charts.render(
        MOR,
        f"--values={GPU}",
        "--set-json=control.pod.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution="
        '[{"labelSelector":{"matchLabels":{"app":"mine"}},"topologyKey":"kubernetes.io/hostname"}]',
        '--set-json=worker.pod.tolerations=[{"key":"team","operator":"Exists","effect":"NoExecute"}]',
    )
    pods = charts.pods(documents)
    follows, own = pods["m-mor-control"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert follows["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"
    assert own == mine
    team = {"key": "team", "operator": "Exists", "effect": "NoExecute"}
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert pods["m-mor-worker"]["tolerations"] == pods["m-mor-control"]["tolerations"] == [team, gpu]
    assert pods["m-mor-rollout"]["tolerations"] == [gpu]
    assert "tolerations" not in pods["m-mor-router"]
