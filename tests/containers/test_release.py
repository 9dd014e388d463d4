"""The tiny profile installs and passes `helm test` in containers of the rendered pods, with TLS between services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman import Podman
from tests.containers.release import IMAGES, Release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def release(podman: Podman, tmp_path_factory: pytest.TempPathFactory, tiny_vlm: Path) -> Iterator[Release]:
    for image in IMAGES.values():
        if reason := podman.unusable(image):
            pytest.skip(reason)
    podman.up()
    try:
        made = Release(tmp_path_factory.mktemp("release"), podman, tiny_vlm, tls=True)
        for name in ("valkey", "reward", "control", "router", "rollout", "worker"):
            made.start(name)
        for name in ("reward", "control", "router", "rollout"):
            made.ready(name)
        yield made
        made.close()
    finally:
        podman.down()


def test_the_release_installs_and_passes_helm_test(release: Release) -> None:
    """The client's job enrols it; the server's job creates the objective, its gate and the run of the values."""
    assert "length" in release.job("reward-register", 600)
    applied = release.job("apply", 600)
    assert "objective helpful: gate version 1 is active" in applied
    (run,) = release.get("control", "/v1/runs")
    snapshot = release.finished(run["id"], 600)
    assert (snapshot["state"], snapshot["step"]) == ("finished", 2), snapshot
    points = release.get("control", f"/v1/runs/{run['id']}/metrics")["points"]
    assert set(points[-1]["clients"]) == {"length"}

    log = release.job("test", 600)
    assert "client length: active" in log
    assert "reward of a group of two" in log
    assert log.rstrip().endswith("finished")


def test_run_control_resolves_a_clients_token_with_the_router(release: Release) -> None:
    assert [run["name"] for run in release.get("control", "/v1/runs", release.secret("m-mor-reward", "page-token"))]


def test_the_router_samples_the_policy_for_a_refit(release: Release) -> None:
    checker = {"kind": "checker", "url": "http://m-mor-reward:8400", "token": release.secret("m-mor-reward", "token")}
    release.call("PUT", "router", "/v1/objectives/helpful/labeller", checker)
    gate = release.call("POST", "router", "/v1/objectives/helpful/refit")
    assert gate["refitted"]["labelled"] >= 8


def test_the_routers_state_is_exported_and_imported(release: Release) -> None:
    """The commands of docs/installation.md."""
    state = release.execute("router", "mor-router export /tmp/state.json >&2 && cat /tmp/state.json")
    assert "helpful" in json.loads(state)["hashes"]["objectives"]
    assert "1 clients imported" in release.execute(
        "router", "cat > /tmp/state.json && mor-router import /tmp/state.json --replace", state
    )
    assert [client["name"] for client in release.get("router", "/v1/clients")] == ["length"]


def test_a_client_leaves_when_its_chart_is_uninstalled(release: Release) -> None:
    release.job("reward-deregister", 600)
    assert release.get("router", "/v1/clients") == []
