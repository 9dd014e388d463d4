"""Download of published weights into a bounded local cache: resumable, verified by file and by tensor, atomic."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import stamina
import structlog
from mor_core import disk_full
from mor_core.disk_full import DiskFull
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe, describe_failure
from mor_core.plain_files import newest_first
from mor_core.tasks import forget_failure, stop
from mor_core.weight_checksums import WeightsChecksum, file_checksum
from mor_core.weight_delta import apply_delta
from mor_core.wire import WeightsFile, WeightsManifest, WeightsRef
from pydantic import ValidationError

from mor_rollout import metrics
from mor_rollout.config import RolloutSettings
from mor_rollout.weights import checkpoint_files
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.checkpoint_files import TensorSource
from mor_rollout.weights.download import RETRY, WeightsDamaged, WeightsError, WeightsUnreachable, fetch, get
from mor_rollout.weights.version_check import checked_tensors
from mor_rollout.weights.weights_room import WeightsRoom

_LARGEST_MANIFEST = 32 << 20
"""Bytes. A manifest lists about 200 bytes per tensor, so this allows far more tensors than any model has."""
_LINK, _MADE = ".link-", ".made-"
"""Beginnings of the names of files that are not verified yet: linked ones, and those made of a delta. No manifest can
list such a name, and nothing is ever written to a file that may be a link."""
_DELTA_ATTEMPTS = 2
"""Attempts at a delta. More would take the time from the download of the whole version, which is as good."""
_TIMEOUT = httpx.Timeout(20.0, connect=5.0)
"""Seconds without any data. A trainer that hashes its files may pause for a few seconds."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PreparedWeights:
    """Version of a run's policy, complete and verified on this machine."""

    run: str
    version: int
    kind: Literal["full", "lora"]
    folder: Path | None
    """``None``: the weights came by broadcast and are in the engine only."""
    tensors: Mapping[str, TensorSource]
    """``full``: the tensors that replace the base's, by its names. ``lora``: the adapter's tensors."""
    digest: str
    """SHA-256 over every tensor of the policy, the base's included."""


class WeightsStore:
    """Local cache of the versions pulled from trainers."""

    def __init__(self, settings: RolloutSettings, base: BaseCheckpoint) -> None:
        self._base = base
        self._folder = settings.weights_dir
        self._runs_dir = settings.runs_dir
        self._room = WeightsRoom(settings)
        self._kept = settings.weights_kept
        self._timeout_s = settings.pull_timeout_s
        token = settings.service_token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=4)  # one per version: a version's files are downloaded in turn
        self._control_url = settings.control_url.rstrip("/")
        self._http = httpx.AsyncClient(
            headers=headers, timeout=_TIMEOUT, limits=limits, verify=settings.control_tls(), trust_env=False
        )
        self._pulls: dict[tuple[str, int], asyncio.Task[PreparedWeights]] = {}
        self._protected: Counter[Path] = Counter()
        self._here: dict[tuple[str, int], Path] = {}
        """Folders of versions that this process has verified, by run and version: bases of deltas."""
        self._folder.mkdir(parents=True, exist_ok=True)

    async def aclose(self) -> None:
        await stop(self._pulls.values())
        await self._http.aclose()

    async def pull(self, run: str, ref: WeightsRef, *, in_use: Path | None = None) -> PreparedWeights:
        """Download and verify a version, once for all groups that need it.

        Raises:
            WeightsDamaged: the published files are gone, or differ from the manifest.
            WeightsError: the download was not complete within ``pull_timeout_s``.
            DiskFull: there is no room for it.
        """
        identity = (run, ref.version)
        task = self._pulls.get(identity)
        if task is None:
            task = asyncio.create_task(self._pull(run, ref, in_use), name=f"pull weights {run} {ref.version}")
            self._pulls[identity] = task
            task.add_done_callback(lambda _: self._pulls.pop(identity, None))
            task.add_done_callback(forget_failure)
        return await asyncio.shield(task)

    def _address(self, run: str, version: int) -> str:
        """Return the address of a manifest: run control's of the settings, whatever a record names."""
        return f"{self._control_url}/v1/runs/{run}/weights/{version}"

    async def _pull(self, run: str, ref: WeightsRef, in_use: Path | None) -> PreparedWeights:
        try:
            async with asyncio.timeout(self._timeout_s):
                manifest = await self._manifest(run, ref)
                identity = hashlib.sha256(f"{run}\x1f{manifest.model_dump_json()}".encode()).hexdigest()[:16]
                folder = self._folder / f"{ref.version:08d}-{identity}"
                with self.protected(folder):
                    prepared = await self._fetch_and_prepare(manifest, folder, in_use)
                    self._here[run, ref.version] = folder
        except TimeoutError as error:
            raise WeightsUnreachable(
                f"weights {run} version {ref.version}: {self._control_url} gave no complete answer in"
                f" {self._timeout_s:g} s (MOR_PULL_TIMEOUT_S); check that the trainer's API is up, or raise the limit"
            ) from error
        except OSError as error:
            if not disk_full.is_disk_full(error):
                raise
            raise DiskFull(f"{self._folder}: the disk became full ({describe_failure(error)}); make room") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WeightsUnreachable(
                f"weights {run} version {ref.version}: {self._control_url}: {describe_failure(error)}"
            ) from error
        await asyncio.to_thread(self._trim, in_use)
        return prepared

    @contextmanager
    def protected(self, folder: Path) -> Iterator[None]:
        """Keep a version, and its unfinished download, whatever other pulls remove."""
        self._protected[folder] += 1
        try:
            yield
        finally:
            self._protected[folder] -= 1
            self._protected = +self._protected

    async def _fetch_and_prepare(self, manifest: WeightsManifest, folder: Path, in_use: Path | None) -> PreparedWeights:
        """Verify the version that is here, or download it; one that is damaged here is downloaded once more."""
        if await asyncio.to_thread(folder.is_dir):
            try:
                return await asyncio.to_thread(self._prepare, manifest, folder, {})
            except WeightsDamaged as error:
                log.warning("a version on this machine is damaged; it is downloaded again", reason=str(error))
        hashed = await self._fetch_all(manifest, folder, in_use)
        return await asyncio.to_thread(self._prepare, manifest, folder, hashed)

    async def _manifest(self, run: str, ref: WeightsRef) -> WeightsManifest:
        url = self._address(run, ref.version)
        where = f"weights {run} version {ref.version}: {url}"
        async for attempt in stamina.retry_context(**RETRY):
            with attempt:
                content = b""
                async with get(self._http, url, {}) as response:
                    async for chunk in response.aiter_bytes():
                        content += chunk
                        if len(content) > _LARGEST_MANIFEST:
                            raise WeightsError(
                                f"{where}: the manifest has over {_LARGEST_MANIFEST} bytes, the limit;"
                                " check MOR_CONTROL_URL"
                            )
        try:
            manifest = WeightsManifest.model_validate_json(content, extra="ignore")
        except ValidationError as error:
            raise WeightsError(f"{where}: not a weights manifest ({describe(error)}); check MOR_CONTROL_URL") from error
        if (manifest.run, manifest.version) != (run, ref.version):
            raise WeightsError(
                f"{where}: the manifest is of run {manifest.run!r} version {manifest.version};"
                " publish the version again"
            )
        if not await asyncio.to_thread(self._base.is_same, manifest.base):
            raise WeightsError(
                f"{where}: published for base {manifest.base!r}, this engine has {self._base.model!r};"
                " start a rollout service with that model"
            )
        return manifest

    async def _fetch_all(
        self, manifest: WeightsManifest, folder: Path, in_use: Path | None
    ) -> dict[str, WeightsChecksum]:
        """Download a version, and return the checksums of its files by name.

        Versions that are not in use make room for it where the disk has none.

        Raises:
            DiskFull: there is no room even then.
        """
        partial = _partial(folder)
        partial.mkdir(exist_ok=True)
        names = {file.name for file in manifest.files}
        for left in partial.iterdir():
            if left.name not in names or left.stat().st_nlink > 1:  # the trainer's file, which nobody may change
                left.unlink()
        linked = {file.name: found for file in manifest.files if (found := await self._link(manifest, file, partial))}
        rest = [file for file in manifest.files if file.name not in linked]
        needed = sum(file.bytes for file in rest)
        with disk_full.watched("pulled weights"):
            needed -= sum(left.stat().st_size for left in partial.iterdir() if left.name not in linked)
            if self._room.free() < needed:
                await asyncio.to_thread(self._trim, in_use, 0)
            if self._room.free() < needed:
                raise DiskFull(
                    f"{self._folder}: no room for {needed} bytes of weights beside those in use, of"
                    f" {self._room.total()} bytes in all; free some, raise MOR_WEIGHTS_BYTES where it is the limit, or"
                    " set MOR_WEIGHTS_DIR to another folder"
                )
            hashed = {file.name: await self._bring(manifest, file, partial) for file in rest}
            partial.rename(folder)
        return linked | hashed

    async def _bring(self, manifest: WeightsManifest, file: WeightsFile, folder: Path) -> WeightsChecksum:
        """Make one of a version's files of a delta, or download it."""
        url = f"{self._address(manifest.run, manifest.version)}/{file.name}"
        made = await self._make_from_delta(manifest, file, folder)
        return made or await fetch(self._http, file, url, folder / file.name)

    async def _link(self, manifest: WeightsManifest, file: WeightsFile, folder: Path) -> WeightsChecksum | None:
        """Link a version's file from the folder of all runs; ``None`` where it is not there or cannot be linked."""
        if self._runs_dir is None:
            return None
        source = self._runs_dir / manifest.run / "weights" / str(manifest.version) / file.name
        link = folder / f"{_LINK}{file.name}"
        found = await asyncio.to_thread(_hashed_link, source, link, file)
        if found is not None:
            link.replace(folder / file.name)
        return found

    async def _make_from_delta(
        self, manifest: WeightsManifest, file: WeightsFile, folder: Path
    ) -> WeightsChecksum | None:
        """Make a version's file of the version before and the delta; ``None`` where that is not possible.

        The result is compared with the manifest, so that it is what a download of the whole file would be.
        """
        delta = manifest.delta
        base = self._here.get((manifest.run, delta.base)) if delta is not None else None
        if delta is None or base is None or len(manifest.files) > 1 or not (base / file.name).is_file():
            return None
        if self._room.free() < delta.bytes + file.bytes:
            return None
        url = f"{self._address(manifest.run, manifest.version)}/{delta.name}"
        received, made = folder / delta.name, folder / f"{_MADE}{file.name}"
        try:
            with self.protected(base):
                await fetch(self._http, delta, url, received, _DELTA_ATTEMPTS)
                found = await asyncio.to_thread(apply_delta, base / file.name, received, made, file.algorithm)
            if found.hexdigest() == file.checksum:
                made.replace(folder / file.name)
                metrics.DELTAS.labels("used").inc()
                return found
            reason = "the result differs from the manifest"
        except (MorError, httpx.HTTPError, FileNotFoundError) as error:
            reason = describe_failure(error)
        finally:
            received.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
        metrics.DELTAS.labels("given_up").inc()
        log.warning("a delta is not used; the whole version is pulled", version=manifest.version, reason=reason)
        return None

    def _prepare(
        self, manifest: WeightsManifest, folder: Path, hashed: Mapping[str, WeightsChecksum]
    ) -> PreparedWeights:
        """Verify every file and tensor against the manifest and the base. A damaged version is deleted.

        ``hashed``: checksums of the files that were computed while they were downloaded.

        Raises:
            WeightsDamaged: a file or tensor differs from the manifest.
            WeightsError: the version does not fit the base.
        """
        where = f"weights {manifest.run} version {manifest.version}"
        try:
            tensors = checked_tensors(manifest, folder, hashed)
        except Invalid as error:
            shutil.rmtree(folder)
            raise WeightsDamaged(f"{where}: {error}; publish the version again") from error
        if manifest.kind == "full":
            try:
                self._base.check_replaceable(tensors)
            except Invalid as error:
                raise WeightsError(f"{where}: {error}") from error
        elif not (folder / "adapter_config.json").is_file():
            raise WeightsError(f"{where}: the adapter has no adapter_config.json; publish the whole PEFT folder")
        sums = {name: source.checksum for name, source in (*self._base.tensors.items(), *tensors.items())}
        os.utime(folder)
        return PreparedWeights(
            manifest.run, manifest.version, manifest.kind, folder, tensors, checkpoint_files.digest(sums)
        )

    def _trim(self, in_use: Path | None, count: int | None = None) -> None:
        """Remove all versions except the ``count`` used last, by default as many as are kept, and those in use."""
        folders = newest_first(
            entry for entry in self._folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        for folder in folders[self._kept if count is None else count :]:
            if folder != in_use and folder.with_suffix("") not in self._protected:
                shutil.rmtree(folder, ignore_errors=True)
        self._here = {version: folder for version, folder in self._here.items() if folder.is_dir()}


def _hashed_link(source: Path, link: Path, file: WeightsFile) -> WeightsChecksum | None:
    """Link ``source``; ``None`` if it is not there, is not as listed, or cannot be linked or read."""
    try:
        if not stat.S_ISREG(source.lstat().st_mode):
            return None
        os.link(source, link)
        found = file_checksum(link, file.algorithm)
    except OSError:  # on another machine or file system, or without a right to it
        found = None
    if found is None or found.hexdigest() != file.checksum:
        link.unlink(missing_ok=True)
        if found is not None:
            log.warning("a file of the runs is not as its manifest lists it; it is pulled", file=str(source))
        return None
    return found


def _partial(folder: Path) -> Path:
    """Return the folder of an unfinished download. It stays after a failure: the next attempt resumes it."""
    return folder.with_suffix(".part")
