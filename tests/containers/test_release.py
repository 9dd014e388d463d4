"""The tiny profile as `helm install` leaves it and `helm test` finds it, in containers made from what is rendered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman import Podman
from tests.containers.release import IMAGES, Release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def release(podman: Podman, folder: Path, tiny_vlm: Path) -> Iterator[Release]:
    absent = [image for image in IMAGES.values() if podman.image(image) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)}: not here; `make images` builds them")
    made = Release(folder, podman, tiny_vlm)
    made.start("valkey")
    for name in ("reward", "control", "router", "rollout", "worker"):
        made.start(name)
    for name in ("reward", "control", "router", "rollout"):
        made.ready(name)
    yield made


def test_the_release_installs_and_passes_helm_test(release: Release) -> None:
    """The client's job enrols it; the server's makes the objective, fits its gate and creates the run of the values;
    `helm test` finds all of it ready and has another run of two steps made."""
    assert "length" in release.job("reward-register", 120)
    applied = release.job("apply", 300)
    assert "objective helpful: gate version 1 in force" in applied
    (run,) = release.get("control", "/v1/runs")
    snapshot = release.finished(run["id"], 240)
    assert (snapshot["state"], snapshot["step"]) == ("finished", 2), snapshot
    points = release.get("control", f"/v1/runs/{run['id']}/metrics")["points"]
    assert set(points[-1]["clients"]) == {"length"}

    said = release.job("test", 300)
    assert "client length: active" in said
    assert "reward of a group of two" in said
    assert said.rstrip().endswith("finished")


def test_a_client_leaves_when_its_chart_is_uninstalled(release: Release) -> None:
    release.job("reward-deregister", 120)
    assert release.get("router", "/v1/clients") == []
