"""Kubernetes' own control plane on loopback: etcd, API server, controller manager and scheduler, without containers.

The folder in ``MOR_TEST_KUBERNETES`` holds the four programs: ``make kubernetes`` downloads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.certificates import self_signed
from tests.ports import free_port

FOLDER = "MOR_TEST_KUBERNETES"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_START_S = 180  # the API server takes 10 s on a free core, and more beside other tests


def missing() -> str | None:
    """Return the reason why no control plane can start here, or None."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return f"no control plane: set {FOLDER} to a folder with {', '.join(PROGRAMS)} (docs/contributing.md)"
    absent = [name for name in PROGRAMS if not os.access(Path(folder) / name, os.X_OK)]
    return f"{folder} lacks {', '.join(absent)} (docs/contributing.md)" if absent else None


class ControlPlane:
    """The four processes, and an administrator's kubeconfig."""

    def __init__(self, folder: Path) -> None:
        self._programs = Path(os.environ[FOLDER])
        self._folder = folder
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.token = secrets.token_urlsafe()
        certificate, key = self_signed("localhost")
        self.authority = folder / "tls.crt"
        self.authority.write_bytes(certificate)
        (folder / "tls.key").write_bytes(key)
        (folder / "accounts.key").write_bytes(_rsa_key())
        (folder / "tokens.csv").write_text(f"{self.token},admin,admin,system:masters\n")
        self.kubeconfig = folder / "kubeconfig"
        try:
            self.url = f"https://127.0.0.1:{self._start_servers()}"
            self._await("/readyz")
            self._write_kubeconfig()
            self._start_controllers()
            # The controllers make this account, and no pod before they have.
            self._await("/api/v1/namespaces/default/serviceaccounts/default")
        except BaseException:
            self.stop()
            raise

    def tls(self) -> ssl.SSLContext:
        """Return a context that trusts the API server."""
        return ssl.create_default_context(cafile=str(self.authority))

    def _start_servers(self) -> int:
        """Start etcd and the API server, and return the latter's port."""
        etcd, peers, port = (free_port() for _ in range(3))
        self._start(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-cluster=default=http://127.0.0.1:{peers}",
            "--unsafe-no-fsync",
        )
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={port}",
            f"--cert-dir={self._folder / 'served'}",
            f"--tls-cert-file={self._folder / 'tls.crt'}",
            f"--tls-private-key-file={self._folder / 'tls.key'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://mor.test",
            f"--service-account-key-file={self._folder / 'accounts.key'}",
            f"--service-account-signing-key-file={self._folder / 'accounts.key'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            # Pods leave a lost node after 5 s instead of 300, so that a test sees it.
            "--default-not-ready-toleration-seconds=5",
            "--default-unreachable-toleration-seconds=5",
        )
        return port

    def _start_controllers(self) -> None:
        own = (f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1")
        self._start(
            "kube-controller-manager",
            *own,
            f"--secure-port={free_port()}",
            f"--cert-dir={self._folder / 'controllers'}",
            f"--service-account-private-key-file={self._folder / 'accounts.key'}",
            f"--root-ca-file={self._folder / 'tls.crt'}",
            "--pvclaimbinder-sync-period=1s",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=20s",
        )
        self._start("kube-scheduler", *own, f"--secure-port={free_port()}", f"--cert-dir={self._folder / 'scheduler'}")

    def _start(self, program: str, *options: str) -> None:
        with (self._folder / f"{program}.log").open("ab") as log:
            command = [str(self._programs / program), *options]
            self._processes.append((program, subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)))

    def _await(self, path: str) -> None:
        deadline = time.monotonic() + _START_S
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"})
        while time.monotonic() < deadline:
            for program, process in self._processes:
                if process.poll() is not None:
                    log = (self._folder / f"{program}.log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{program} ended with {process.returncode}:\n{log}")
            with contextlib.suppress(OSError):  # refused, not ready (a status), or slow beside other tests
                if urllib.request.urlopen(request, timeout=5, context=self.tls()).status == 200:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{path} did not answer in {_START_S} s; the logs are in {self._folder}")

    def _write_kubeconfig(self) -> None:
        cluster = {"server": self.url, "certificate-authority": str(self.authority)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
        }
        self.kubeconfig.write_text(json.dumps(document))
        self.kubeconfig.chmod(0o600)

    def stop(self) -> None:
        for _, process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _rsa_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
