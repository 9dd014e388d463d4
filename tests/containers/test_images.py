"""Content of the images, and the restrictions they run under."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.containers.podman import Podman
from tests.containers.release import FOR_GPUS, IMAGES

GB = 1e9
MOST = {
    "router": 1.6 * GB,
    "reward": 1.6 * GB,
    "trainer": 1.6 * GB,
    "rollout": 2.2 * GB,
    "trainer-cuda": 6 * GB,
    "rollout-cuda": 16 * GB,
}
ALL = IMAGES | FOR_GPUS
TRITON_NEEDS = {"cc", "gcc", "strip"}
"""A compiler for the launchers of its kernels, and the linker's package."""
RESTRICTED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none")


@pytest.fixture(params=ALL)
def image(request: pytest.FixtureRequest, podman: Podman) -> tuple[str, dict[str, Any]]:
    if reason := podman.unusable(ALL[request.param]):
        pytest.skip(reason)
    found = podman.image(ALL[request.param])
    assert found is not None
    return request.param, found


def test_an_image_is_small_labelled_and_runs_as_nobody_on_a_read_only_root(
    image: tuple[str, dict[str, Any]], podman: Podman
) -> None:
    name, found = image
    assert found["Size"] <= MOST[name]
    assert found["Config"]["User"] == "10001:10001"
    assert "Healthcheck" not in found["Config"]
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == f"mor-{name.removesuffix('-cuda')}"
    assert {"version", "revision", "licenses", "description"} <= {label.rpartition(".")[2] for label in labels}
    assert "serve" in podman("run", "--rm", *RESTRICTED, ALL[name], "--help")


def test_an_image_holds_neither_compiler_nor_tests_nor_pip(image: tuple[str, dict[str, Any]], podman: Podman) -> None:
    name, _ = image
    look = "for tool in cc gcc c++ strip pip; do command -v $tool; done; true"
    found = podman("run", "--rm", *RESTRICTED, "--entrypoint=sh", ALL[name], "-c", look).split()
    assert {Path(tool).name for tool in found} <= (TRITON_NEEDS if name == "rollout-cuda" else set())
    tests = ("find", "/opt/mor", "-type", "d", "(", "-name", "tests", "-o", "-name", "test", ")")
    assert podman("run", "--rm", *RESTRICTED, f"--entrypoint={tests[0]}", ALL[name], *tests[1:]) == ""


def test_torch_is_built_for_what_the_image_is_for(image: tuple[str, dict[str, Any]], podman: Podman) -> None:
    name, _ = image
    script = "import torch; print(torch.version.cuda)"
    cuda = podman("run", "--rm", *RESTRICTED, "--entrypoint=python", ALL[name], "-c", script).strip()
    assert (cuda != "None") == (name in FOR_GPUS)


def test_the_bill_of_materials_names_what_is_installed(image: tuple[str, dict[str, Any]], podman: Podman) -> None:
    name, _ = image
    read = ("run", "--rm", *RESTRICTED, "--entrypoint=cat", ALL[name], "/opt/mor/sbom.cdx.json")
    bill = json.loads(podman(*read))
    assert bill["bomFormat"] == "CycloneDX"
    listed = {component["name"].lower().replace("_", "-"): component for component in bill["components"]}
    script = "import importlib.metadata as m, json; print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"
    python = ("run", "--rm", *RESTRICTED, "--entrypoint=python", ALL[name], "-c", script)
    installed = {found.lower().replace("_", "-") for found in json.loads(podman(*python))}
    assert installed <= set(listed)
    assert set(listed) - installed <= {"pip"}
