"""Pulls published weights over HTTP into a bounded local cache: resumable, checked per file and per tensor, atomic."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import stamina
from mor_core.errors import Invalid, MorError
from mor_core.problems import describe
from mor_core.tasks import stop
from mor_core.wire import WeightsFile, WeightsManifest, WeightsRef
from pydantic import ValidationError

from mor_rollout.config import RolloutSettings
from mor_rollout.weights import checkpoint
from mor_rollout.weights.base import BaseModel
from mor_rollout.weights.checkpoint import TensorSource

_CHUNK = 1 << 20
_LARGEST_MANIFEST = 32 << 20
_TIMEOUT = httpx.Timeout(20.0, connect=5.0)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class WeightsError(MorError):
    """Published weights could not be had or are not what their manifest says. The weights in use stay in use."""

    status = 502
    title = "Weights not usable"


class _Transient(WeightsError):
    """Worth another attempt: a broken connection, a server error, a file that arrived damaged."""


_RETRY: dict[str, Any] = {
    "on": (_Transient, httpx.TransportError),
    "attempts": 5,
    "wait_initial": 0.1,
    "wait_max": 5.0,
    "timeout": None,
}


@dataclass(frozen=True)
class PreparedWeights:
    """A version of a run's policy that lies complete and checked on this machine."""

    run: str
    version: int
    kind: Literal["full", "lora"]
    folder: Path | None
    """``None``: it was broadcast, and is nowhere but in the engine."""
    tensors: Mapping[str, TensorSource]
    """``full``: what replaces the base's tensors, by its names. ``lora``: the adapter's tensors."""
    digest: str
    """SHA-256 over every tensor of the policy, the base's included."""


class WeightsStore:
    """Versions pulled from trainers."""

    def __init__(self, settings: RolloutSettings, base: BaseModel) -> None:
        self._base = base
        self._folder = settings.weights_dir
        self._kept = settings.weights_kept
        self._timeout_s = settings.pull_timeout_s
        token = settings.service_token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=4)
        self._http = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, limits=limits, verify=settings.control_tls())
        self._pulls: dict[tuple[str, int], asyncio.Task[PreparedWeights]] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    async def aclose(self) -> None:
        await stop(self._pulls.values())
        await self._http.aclose()

    async def pull(self, run: str, ref: WeightsRef, *, in_use: Path | None = None) -> PreparedWeights:
        """The version's files, complete and checked; pulled once however many groups ask for it.

        Raises:
            WeightsError: not to be had in ``pull_timeout_s``, or not what the manifest says.
        """
        identity = (run, ref.version)
        task = self._pulls.get(identity)
        if task is None:
            task = asyncio.create_task(self._pull(run, ref, in_use), name=f"pull weights {run} {ref.version}")
            self._pulls[identity] = task
            task.add_done_callback(lambda _: self._pulls.pop(identity, None))
        return await asyncio.shield(task)

    async def _pull(self, run: str, ref: WeightsRef, in_use: Path | None) -> PreparedWeights:
        try:
            async with asyncio.timeout(self._timeout_s):
                manifest = await self._manifest(run, ref)
                identity = hashlib.sha256(f"{run}\x1f{manifest.model_dump_json()}".encode()).hexdigest()[:16]
                folder = self._folder / f"{ref.version:08d}-{identity}"
                if not folder.is_dir():
                    await self._fetch_all(manifest, ref, folder)
                prepared = await asyncio.to_thread(self._prepare, manifest, folder)
        except TimeoutError as error:
            raise WeightsError(
                f"weights {run} version {ref.version}: {ref.url} gave no complete answer in {self._timeout_s:g} s;"
                " is the trainer's API up? (limit: MOR_PULL_TIMEOUT_S)"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WeightsError(
                f"weights {run} version {ref.version}: {ref.url}: {error or type(error).__name__}"
            ) from error
        await asyncio.to_thread(self._trim, {folder, in_use})
        return prepared

    async def _manifest(self, run: str, ref: WeightsRef) -> WeightsManifest:
        where = f"weights {run} version {ref.version}: {ref.url}"
        async for attempt in stamina.retry_context(**_RETRY):
            with attempt:
                content = b""
                async with _get(self._http, ref.url, {}) as response:
                    async for chunk in response.aiter_bytes():
                        content += chunk
                        if len(content) > _LARGEST_MANIFEST:
                            raise WeightsError(f"{where}: the manifest has over {_LARGEST_MANIFEST} bytes")
        try:
            manifest = WeightsManifest.model_validate_json(content)
        except ValidationError as error:
            raise WeightsError(f"{where}: not a weights manifest ({describe(error)})") from error
        if (manifest.run, manifest.version) != (run, ref.version):
            raise WeightsError(f"{where}: the manifest is of run {manifest.run!r} version {manifest.version}")
        if not await asyncio.to_thread(self._base.is_same, manifest.base):
            raise WeightsError(
                f"{where}: published for base {manifest.base!r}, this engine holds {self._base.model!r};"
                " start a rollout service with that model"
            )
        for file in manifest.files:
            if _FILE_NAME.fullmatch(file.name) is None:
                raise WeightsError(f"{where}: file name {file.name!r} is not a plain name")
        return manifest

    async def _fetch_all(self, manifest: WeightsManifest, ref: WeightsRef, folder: Path) -> None:
        partial = folder.with_suffix(".part")
        partial.mkdir(exist_ok=True)
        needed = sum(file.bytes for file in manifest.files)
        if shutil.disk_usage(partial).free < needed:
            raise WeightsError(
                f"{self._folder}: no room for {needed} bytes of weights; free some or set another folder"
            )
        for file in manifest.files:
            await self._fetch(file, f"{ref.url}/{file.name}", partial / file.name)
        partial.rename(folder)

    async def _fetch(self, file: WeightsFile, url: str, target: Path) -> None:
        """Download one file into ``target``, going on where an interrupted attempt stopped."""
        async for attempt in stamina.retry_context(**_RETRY):
            with attempt:
                part = await asyncio.to_thread(_Part, target)
                try:
                    if part.bytes < file.bytes:
                        await self._download(file, url, part)
                finally:
                    part.close()
                part.check(file, url)

    async def _download(self, file: WeightsFile, url: str, part: _Part) -> None:
        """Write and hash each piece while the next one comes."""
        headers = {"Range": f"bytes={part.bytes}-"} if part.bytes else {}
        async with _get(self._http, url, headers) as response:
            if response.status_code != 206:
                part.empty()
            kept = asyncio.create_task(asyncio.to_thread(part.add, b""))
            try:
                async for chunk in response.aiter_bytes(_CHUNK):
                    await kept
                    have = part.bytes
                    kept = asyncio.create_task(asyncio.to_thread(part.add, chunk[: file.bytes - have]))
                    if have + len(chunk) >= file.bytes:
                        break
            finally:
                await kept
        if part.bytes < file.bytes:
            raise _Transient(f"{url}: {part.bytes} bytes came, the manifest says {file.bytes}")

    def _prepare(self, manifest: WeightsManifest, folder: Path) -> PreparedWeights:
        """Check every tensor against manifest and base."""
        where = f"weights {manifest.run} version {manifest.version}"
        try:
            tensors = checkpoint.tensors_of(folder)
            if manifest.kind == "full":
                self._base.check_replaceable(tensors)
        except Invalid as error:
            raise WeightsError(f"{where}: {error}") from error
        for name in sorted(set(manifest.tensors) | set(tensors)):
            listed, found = manifest.tensors.get(name), tensors.get(name)
            if listed is None or found is None:
                raise WeightsError(f"{where}: tensor {name!r} is {'not listed' if found else 'in no file'}")
            if found.sha256 != listed.sha256 or found.shape != listed.shape:
                shutil.rmtree(folder)
                raise WeightsError(f"{where}: tensor {name!r} is not the one that the manifest lists")
        if manifest.kind == "lora" and not (folder / "adapter_config.json").is_file():
            raise WeightsError(f"{where}: an adapter without adapter_config.json; publish the whole PEFT folder")
        sums = {name: source.sha256 for name, source in (*self._base.tensors.items(), *tensors.items())}
        os.utime(folder)
        return PreparedWeights(manifest.run, manifest.version, manifest.kind, folder, tensors, checkpoint.digest(sums))

    def _trim(self, keep: set[Path | None]) -> None:
        """Remove all but the versions used last."""
        folders = sorted(
            (entry for entry in self._folder.iterdir() if entry.is_dir()),
            key=lambda entry: entry.stat().st_mtime,
            reverse=True,
        )
        for folder in folders[self._kept :]:
            if folder not in keep:
                shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _get(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    """A streamed GET that was answered 200 or 206."""
    async with http.stream("GET", url, headers=headers) as response:
        if response.status_code not in (200, 206):
            message = f"{url} answered {response.status_code}"
            if response.status_code >= 500 or response.status_code in (408, 429):
                raise _Transient(message)
            raise WeightsError(f"{message}; is the version published, and the service token right?")
        yield response


class _Part:
    """A file as far as it came. What an earlier attempt left is hashed first, what comes is hashed on its way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b")
        self._file.seek(0)
        self._hash = hashlib.file_digest(self._file, "sha256")
        self.bytes = self._file.tell()

    def add(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.bytes += len(content)

    def empty(self) -> None:
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.bytes = 0

    def close(self) -> None:
        self._file.close()

    def check(self, file: WeightsFile, url: str) -> None:
        """
        Raises:
            _Transient: it is another file than the manifest lists; it is removed.
        """
        if self._hash.hexdigest() != file.sha256 or self.bytes != file.bytes:
            self._path.unlink()
            raise _Transient(f"{url}: SHA-256 is {self._hash.hexdigest()}, the manifest says {file.sha256}")
