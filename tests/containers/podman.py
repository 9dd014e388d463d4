"""Pods by podman, for the tests and ``bench/containers.py``."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

SUBNET = "10.89.77.0/24"
"""Inside of 10.0.0.0/8, which the tiny profile's router may connect to."""
_NETWORK = "mor-test"


def missing() -> str | None:
    """Return the reason why pods cannot run here, or None."""
    if os.geteuid() != 0:
        return "volumes get their groups from root only"
    if shutil.which("podman") is None:
        return "podman is not here"
    return None


class Podman:
    """Pods on a network that resolves the names of Services."""

    def __init__(self, folder: Path) -> None:
        """``folder`` takes the configuration: podman's own limits are above what some machines allow, and its first
        choice, crun, refuses hybrid cgroups."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        ulimits = [f"nofile={files}:{files}", "nproc=4096:4096"]
        runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""
        (folder / "containers.conf").write_text(
            f"[containers]\ndefault_ulimits = {json.dumps(ulimits)}\n[engine]\n{runtime}"
        )
        self._environment = os.environ | {"CONTAINERS_CONF": str(folder / "containers.conf")}
        self._folder = folder
        self._pods: list[str] = []

    def up(self) -> None:
        """Create the network of the pods after removing leftovers of an earlier process; ``down`` removes both."""
        self("network", "rm", "--force", _NETWORK)
        self("network", "create", "--subnet", SUBNET, _NETWORK)

    def __call__(self, *arguments: str, given: str = "", timeout_s: float = 600) -> str:
        """Run a command and return its standard output.

        Raises:
            RuntimeError: it failed, with its standard error.
        """
        done = subprocess.run(
            ["podman", *arguments],
            env=self._environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"podman {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def play(self, pod: dict[str, Any], alias: str | None) -> str:
        """Start a pod of one container under the name ``alias``, and return the container's name."""
        name = pod["metadata"]["name"]
        file = self._folder / f"{name}.yaml"
        self._pods.append(name)
        # Podman 4 publishes each port of a container on the machine, where two pods cannot have the same one.
        unpublished = [
            {key: value for key, value in one.items() if key != "ports"} for one in pod["spec"]["containers"]
        ]
        pod = pod | {"spec": pod["spec"] | {"containers": unpublished}}
        file.write_text(yaml.safe_dump(pod))
        self("kube", "play", "--network", f"{_NETWORK}:alias={alias}" if alias else _NETWORK, str(file))
        return f"{name}-{pod['spec']['containers'][0]['name']}"

    def address(self, container: str) -> str:
        (infra,) = self("inspect", "--format", "{{.Pod}}", container).split()
        (infra,) = self("pod", "inspect", "--format", "{{.InfraContainerID}}", infra).split()
        networks = json.loads(self("inspect", infra))[0]["NetworkSettings"]["Networks"]
        return str(networks[_NETWORK]["IPAddress"])

    def started(self, container: str) -> float:
        """Return the start of its process, Unix time in seconds."""
        state = json.loads(self("inspect", container))[0]["State"]
        return datetime.fromisoformat(state["StartedAt"]).timestamp()

    def wait(self, container: str, timeout_s: float) -> int:
        """Wait for a container that ends by itself, and return its exit status."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            state = json.loads(self("inspect", container))[0]["State"]
            if state["Status"] == "exited":
                return int(state["ExitCode"])
            time.sleep(0.5)
        raise TimeoutError(f"{container} has not ended in {timeout_s:g} s:\n{self.logs(container)}")

    def logs(self, container: str) -> str:
        done = subprocess.run(
            ["podman", "logs", container],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout[-6000:]

    def restart(self, pod: str) -> None:
        """Stop the process and start another one at a new address, as an upgrade does."""
        # The process before its pod, which would take the network away from it.
        self("stop", "--time", "30", *self._containers(pod)[1:])
        self("pod", "stop", "--time", "30", pod)
        self._start_again(pod)

    def kill(self, pod: str) -> None:
        """Kill the process and start another one at once, as after a crash."""
        self("pod", "kill", pod)
        self._start_again(pod)

    def _start_again(self, pod: str, timeout_s: float = 60) -> None:
        """Wait until podman has removed an ended pod; its removal would end the new pod too."""
        deadline = time.monotonic() + timeout_s
        while True:
            states = {found["State"]["Status"] for found in json.loads(self("inspect", *self._containers(pod)))}
            if states == {"exited"}:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"containers of {pod} are {sorted(states)} after {timeout_s:g} s")
            time.sleep(0.05)
        self("pod", "start", pod)

    def _containers(self, pod: str) -> list[str]:
        """Return the ids of a pod's containers, the one of its network first."""
        found = json.loads(self("pod", "inspect", pod))
        infra = found["InfraContainerID"]
        return [infra, *(one["Id"] for one in found["Containers"] if one["Id"] != infra)]

    def pid(self, container: str) -> int:
        return int(json.loads(self("inspect", container))[0]["State"]["Pid"])

    def image(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self("image", "inspect", name))[0])
        except RuntimeError:
            return None

    def unusable(self, name: str) -> str | None:
        """Return the reason why an image is not of this commit, or None."""
        found = self.image(name)
        if found is None:
            return f"{name} is not here: `make images` builds it"
        built = (found["Config"].get("Labels") or {}).get("org.opencontainers.image.revision", "nobody knows which")
        if built != _commit():
            return f"{name} is of commit {built[:10]}, this is {_commit()[:10]}: `make images` builds it again"
        return None

    def down(self) -> None:
        for name in reversed(self._pods):
            self("pod", "rm", "--force", "--ignore", "--time", "10", name)
        self("network", "rm", "--force", _NETWORK)


@functools.cache
def _commit() -> str:
    git = ("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD")
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
