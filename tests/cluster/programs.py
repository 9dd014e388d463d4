"""Download what the tests on a real control plane need: ``python -m tests.cluster.programs FOLDER``.

Kubernetes' programs and etcd as their projects release them, checked against the SHA-256 that is published beside them;
and operators' resource types, checked against the SHA-256 that is pinned here. envtest's archives do not suffice: they
lack the controller manager and the scheduler.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import platform
import tarfile
from pathlib import Path

import httpx

KUBERNETES = "v1.36.2"
ETCD = "v3.6.8"
_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}


_GATEWAY = "kubernetes-sigs/gateway-api/v1.6.1/config/crd/standard/gateway.networking.k8s.io"
_PROMETHEUS = "prometheus-operator/prometheus-operator/v0.93.0/example/prometheus-operator-crd/monitoring.coreos.com"
_TRAINER = "kubeflow/trainer/v2.3.0/manifests/base/crds/trainer.kubeflow.org"
_TYPES = {
    "kubernetes-sigs/jobset/v0.12.0/config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml": (
        "d022b87624512cf0b6741b31b24a2bea9945b5a838b50713af29332c878bb6fe"
    ),
    "kedacore/keda/v2.20.2/config/crd/bases/keda.sh_scaledobjects.yaml": (
        "af35555862a83933b074af14ad439c4b4ceabaf4daa3e9338e9b23e36d308d80"
    ),
    f"{_GATEWAY}_httproutes.yaml": "a424a0d6c953b162e71d1d97bb7e75012d8f1ac264e7274f2763d1b96ab39852",
    f"{_GATEWAY}_backendtlspolicies.yaml": "0d48c9e4b53dd9510cf615b9b1192d9d7afb07a1cc0498c9515627cb1c075419",
    f"{_TRAINER}_trainingruntimes.yaml": "69b8dbdf60a18e28cddcc2b8dfc4ce72a943e14b531b9389d593118faee4919f",
    f"{_TRAINER}_trainjobs.yaml": "a742cafc5b5582640c7e0b7467c024fc237256fbca5ba0a9f0531dfb66d64416",
    f"{_PROMETHEUS}_prometheusrules.yaml": "78be98554b9c8506ab2b4f4feb91c5f3a56e536a0a510f3a8e876a459970d56d",
    f"{_PROMETHEUS}_servicemonitors.yaml": "a99047972c9dd7679ce2050b9968e8a08773492e671b3e17abd476d42aa78a32",
}
"""SHA-256 of each definition, by its place: repository, released version, path."""


def download(url: str, sha256: str, client: httpx.Client) -> bytes:
    """Return what an address has.

    Raises:
        SystemExit: its SHA-256 is another one.
    """
    content = client.get(url).raise_for_status().content
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SystemExit(f"{url} has SHA-256 {found}; {sha256} was expected. Download it again, or check the source")
    return content


def kubernetes(program: str, client: httpx.Client, site: str = "https://dl.k8s.io/release") -> bytes:
    """Return one of Kubernetes' programs."""
    url = f"{site}/{KUBERNETES}/bin/linux/{processor()}/{program}"
    return download(url, client.get(f"{url}.sha256").raise_for_status().text.strip(), client)


def etcd(client: httpx.Client, site: str = "https://github.com/etcd-io/etcd/releases/download") -> bytes:
    """Return etcd, out of its archive."""
    name = f"etcd-{ETCD}-linux-{processor()}"
    sums = client.get(f"{site}/{ETCD}/SHA256SUMS").raise_for_status().text
    by_file = {file: digest for digest, file in (line.split() for line in sums.splitlines())}
    archive = download(f"{site}/{ETCD}/{name}.tar.gz", by_file[f"{name}.tar.gz"], client)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        program = files.extractfile(f"{name}/etcd")
        assert program is not None, "etcd is a file in its archive"
        return program.read()


def fetch_all(folder: Path) -> None:
    """Download what the folder lacks."""
    types = folder / "types"
    types.mkdir(parents=True, exist_ok=True)
    with httpx.Client(follow_redirects=True, timeout=300) as client:
        for program in _PROGRAMS:
            if not (folder / program).exists():
                _install(folder / program, kubernetes(program, client))
        if not (folder / "etcd").exists():
            _install(folder / "etcd", etcd(client))
        for place, sha256 in _TYPES.items():
            if not (file := types / Path(place).name).exists():
                file.write_bytes(download(f"https://raw.githubusercontent.com/{place}", sha256, client))


def _install(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(path)


def processor() -> str:
    """Return the name that releases give this machine's processor."""
    machine = platform.machine()
    if machine not in _PROCESSORS:
        raise SystemExit(f"Kubernetes' programs are released for {', '.join(_PROCESSORS)}, and this is {machine}")
    return _PROCESSORS[machine]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder that takes the programs and, in types, the definitions")
    fetch_all(parser.parse_args().folder)


if __name__ == "__main__":
    main()
