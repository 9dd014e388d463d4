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
OPENSHIFT = (*RESTRICTED, "--tmpfs=/tmp", "--user=1000770000:0")
"""As OpenShift runs a container: a user of the namespace's range, without an entry in /etc/passwd, and group 0."""
_CALL = """
import getpass, json, os, subprocess, sys, time, urllib.request
tokens = [{"name": "router", "scope": "scorer", "sha256": "0" * 64}]
open("/tmp/tokens.json", "w").write(json.dumps(tokens))
open("/tmp/scorer.py", "w").write("def score(messages, responses, images):\\n    return [0.0 for _ in responses]\\n")
own = {"MOR_FUNCTION": "/tmp/scorer.py:score", "MOR_TOKENS_FILE": "/tmp/tokens.json", "MOR_DEVICE": "cpu"}
own["MOR_PORT"] = "8400"
server = subprocess.Popen(["mor-reward", "serve"], env=os.environ | own, stderr=sys.stderr)
deadline = time.monotonic() + 240
while True:
    try:
        status = urllib.request.urlopen("http://127.0.0.1:8400/readyz", timeout=5).status
        break
    except OSError:
        if time.monotonic() > deadline or server.poll() is not None:
            raise
        time.sleep(0.2)
server.terminate()
print(os.getuid(), os.getgid(), getpass.getuser(), status, server.wait(60))
"""


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


def test_an_image_runs_as_any_user_of_group_0(image: tuple[str, dict[str, Any]], podman: Podman) -> None:
    """Imports of torch and transformers ask for the user's name and home, and write there."""
    name, _ = image
    assert "serve" in podman("run", "--rm", *OPENSHIFT, ALL[name], "--help")
    script = (
        "import getpass, os, tempfile, torch, transformers; tempfile.NamedTemporaryFile(dir=os.path.expanduser('~'))"
    )
    script += "; print(os.getuid(), os.getgid(), getpass.getuser())"
    said = podman("run", "--rm", *OPENSHIFT, "--entrypoint=python", ALL[name], "-c", script)
    assert said.split() == ["1000770000", "0", "mor"]


def test_the_reward_service_serves_as_any_user(podman: Podman) -> None:
    if reason := podman.unusable(ALL["reward"]):
        pytest.skip(reason)
    said = podman("run", "--rm", *OPENSHIFT, "--entrypoint=python", ALL["reward"], "-c", _CALL)
    assert said.split()[:4] == ["1000770000", "0", "mor", "200"]


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
