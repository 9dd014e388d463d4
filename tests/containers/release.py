"""Tiny profile of the server's chart, and a client of the other chart, as local containers."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
from mor_core import bundled_valkey

from tests.certificates import self_signed
from tests.containers.kubelet import Kubelet, service_of
from tests.containers.podman import Podman
from tests.helm import charts
from tests.shapes import copy_questions, write_rows

TAG = "0.1.0"
IMAGES = {name: f"localhost/mor/{name}:{TAG}" for name in ("router", "reward", "trainer", "rollout")}
FOR_GPUS = {f"{name}-cuda": f"{IMAGES[name]}-cuda" for name in ("trainer", "rollout")}
_VALKEY = "localhost/mor/valkey"
_PORTS = {"control": 8300, "router": 8100, "rollout": 8200, "reward": 8400}
_SCORER = '''"""A client that likes long answers."""


def score(messages, responses, images):
    return [len(text) / 10 for text in responses]
'''


class Release:
    """Pods of the release ``m``, each started on demand."""

    def __init__(self, folder: Path, podman: Podman, model: Path, *, tls: bool) -> None:
        """``model`` is a tiny checkpoint; the data are pictures and questions of easy-vqa."""
        self.podman = podman
        self._scheme = "https" if tls else "http"
        shutil.copytree(model, folder / "models" / "tiny")
        write_data(folder / "data", 48)
        (folder / "runs").mkdir()
        (folder / "router-state").mkdir()
        (folder / "valkey").mkdir()
        registry, _, repository = _VALKEY.partition("/")
        image = {"registry": registry, "repository": repository, "tag": TAG}
        valkey = tuple(f"--set=valkey.image.{name}={value}" for name, value in image.items())
        secure = ("--set=tls.existingSecret=mor-tls",) if tls else ()
        self._mor = charts.render(charts.CHARTS / "mor", f"--values={charts.TINY}", *valkey, *secure)
        registration = {
            "enabled": True,
            "router": f"{self._scheme}://m-mor-router:8100",
            "name": "length",
            "url": "http://m-mor-reward:8400",
            "existingSecret": "m-mor-auth",
            "existingCaSecret": "mor-tls" if tls else "",
        }
        options = ("--set=function.existingConfigMap=scorer", f"--set-json=registration={json.dumps(registration)}")
        self._reward = charts.render(charts.CHARTS / "mor-reward", *options)
        scorer = {"kind": "ConfigMap", "metadata": {"name": "scorer"}, "data": {"scorer.py": _SCORER}}
        claims = {
            "models": folder / "models",
            "data": folder / "data",
            "m-mor-runs": folder / "runs",
            "m-mor-history": folder / "history",
            "m-mor-router-state": folder / "router-state",
            "data-m-mor-valkey-0": folder / "valkey",
        }
        certificate, key = (
            content.decode() for content in self_signed("m-mor-control", "m-mor-router", "m-mor-rollout")
        )
        files = {"tls.crt": certificate, "tls.key": key, "ca.crt": certificate}
        secret = {"kind": "Secret", "metadata": {"name": "mor-tls"}, "stringData": files}
        self._kubelet = Kubelet(folder / "pods", [*self._mor, *self._reward, scorer, secret], claims)
        self._http = httpx.Client(verify=False, timeout=300)  # here services are called by their addresses
        self._containers: dict[str, str] = {}
        self._addresses: dict[str, str] = {}
        self._build_valkey(folder)

    def _build_valkey(self, folder: Path) -> None:
        """Build an image with the queue server from the embedded binary, without a registry."""
        context = folder / "valkey-image"
        context.mkdir()
        shutil.copy(bundled_valkey.server_binary(), context / "valkey-server")
        file = f"FROM {IMAGES['router']}\nCOPY valkey-server /usr/local/bin/valkey-server\nENTRYPOINT []\n"
        (context / "Dockerfile").write_text(file)
        self.podman("build", "--isolation", "chroot", "--tag", f"{_VALKEY}:{TAG}", str(context))

    def start(self, name: str) -> str:
        """Start the pod of a component, named without the release, and return its container."""
        documents = self._reward if name.startswith("reward") else self._mor
        pod = self._kubelet.pod(documents, f"m-mor-{name}")
        self._containers[name] = self.podman.play(pod, service_of(documents, pod))
        self._find(name)
        return self._containers[name]

    def _find(self, name: str) -> None:
        if name in _PORTS:
            self._addresses[name] = self.podman.address(self._containers[name])

    def ready(self, name: str, timeout_s: float = 600) -> float:
        """Wait for a service, and return the seconds from the start of its process to readiness."""
        container = self._containers[name]
        started = self.podman.started(container)
        deadline = time.monotonic() + timeout_s
        reply = "no answer"
        while time.monotonic() < deadline:
            try:
                answer = self._http.get(f"{self.url(name)}/readyz", timeout=2)
                if answer.is_success:
                    return time.time() - started
                reply = answer.text
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"{name} was not ready in {timeout_s:g} s: {reply}\n{self.podman.logs(container)}")

    def url(self, name: str) -> str:
        scheme = "http" if name == "reward" else self._scheme
        return f"{scheme}://{self._addresses[name]}:{_PORTS[name]}"

    def job(self, name: str, timeout_s: float) -> str:
        """Run a job or a test of the charts to its end, and return its log.

        Raises:
            RuntimeError: it failed, with its log.
        """
        container = self.start(name)
        if self.podman.wait(container, timeout_s):
            raise RuntimeError(f"{name} failed:\n{self.podman.logs(container)}")
        return self.podman.logs(container)

    def execute(self, name: str, script: str, given: str = "") -> str:
        """Run a shell command in the container, as `kubectl exec -i` does, and return its output."""
        return self.podman("exec", "--interactive", self._containers[name], "sh", "-c", script, given=given)

    def restart(self, name: str) -> None:
        self.podman.restart(f"m-mor-{name}")
        self._find(name)

    def kill(self, name: str) -> None:
        self.podman.kill(f"m-mor-{name}")
        self._find(name)

    def pid(self, name: str) -> int:
        return self.podman.pid(self._containers[name])

    def logs(self, name: str) -> str:
        return self.podman.logs(self._containers[name])

    def close(self) -> None:
        self._http.close()

    def secret(self, name: str, key: str) -> str:
        return self._kubelet.content(name, key)

    def get(self, name: str, path: str, token: str | None = None) -> Any:
        return self.call("GET", name, path, token=token)

    def call(self, method: str, name: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Call a service with the administrator's token or with ``token``, and return its answer."""
        headers = {"Authorization": f"Bearer {token or self.secret('m-mor-auth', 'admin-token')}"}
        answer = self._http.request(method, f"{self.url(name)}{path}", json=body, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def finished(self, run: str, timeout_s: float) -> dict[str, Any]:
        """Wait for the end of a run, and return its snapshot."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            snapshot: dict[str, Any] = self.get("control", f"/v1/runs/{run}")
            if snapshot["state"] in ("finished", "failed", "stopped"):
                return snapshot
            time.sleep(0.2)
        raise TimeoutError(f"run {run} goes on after {timeout_s:g} s: {snapshot}\n{self.logs('worker')}")


def write_data(folder: Path, count: int) -> None:
    """Write ``prompts.jsonl``, and ``anchors.jsonl`` in which the longer answer is the better one."""
    folder.mkdir()
    prompts = copy_questions(folder, count)
    anchors = [{**row, "chosen": f"A long answer, {i}.", "rejected": "No."} for i, row in enumerate(prompts)]
    for name, rows in (("prompts", prompts), ("anchors", anchors)):
        write_rows(folder / f"{name}.jsonl", rows)
