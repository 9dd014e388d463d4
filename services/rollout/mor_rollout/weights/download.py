"""Download of a version's files: resumable, and hashed on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import stamina
from mor_core.errors import MorError
from mor_core.weight_checksums import WeightsChecksum, file_checksum
from mor_core.wire import Algorithm, WeightsFile

_CHUNK = 1 << 20
"""Bytes written at a time: hashing and writing one chunk overlap with the download of the next."""
_NAMES = {"sha256": "SHA-256", "blake3": "BLAKE3"}


class WeightsError(MorError):
    """Published weights could not be downloaded or differ from their manifest. The weights in use stay in use."""

    status = 502
    title = "Weights not usable"


class WeightsUnreachable(WeightsError):
    """Run control does not give the files now. No group is at fault."""


class WeightsDamaged(WeightsError):
    """The published files are damaged or gone: the trainer must publish the version again."""


class _Transient(WeightsUnreachable):
    """Failure that a retry may cure: a broken connection, a server error."""


class _FileDiffers(WeightsDamaged):
    """A downloaded file differs from the manifest, after a broken transfer or because the published one is damaged."""


RETRY: dict[str, Any] = {
    "on": (_Transient, _FileDiffers, httpx.TransportError),
    "attempts": 5,
    "wait_initial": 0.1,
    "wait_max": 5.0,
    "timeout": None,
}
"""Retries of one file, in seconds; ``pull_timeout_s`` bounds all files and attempts together."""


async def fetch(
    http: httpx.AsyncClient, file: WeightsFile, url: str, target: Path, attempts: int = RETRY["attempts"]
) -> WeightsChecksum:
    """Download one file into ``target``. Resume where an interrupted attempt stopped."""
    async for attempt in stamina.retry_context(**RETRY | {"attempts": attempts}):
        with attempt:
            part = await asyncio.to_thread(_Part, target, file.algorithm)
            try:
                if part.length < file.bytes:
                    await _download(http, file, url, part)
            finally:
                part.close()
            part.check(file, url)
    return part.hashed


async def _download(http: httpx.AsyncClient, file: WeightsFile, url: str, part: _Part) -> None:
    """Write and hash each chunk while the next one is downloaded."""
    headers = {"Range": f"bytes={part.length}-"} if part.length else {}
    async with get(http, url, headers) as response:
        if response.status_code != 206:
            part.empty()
        written = asyncio.create_task(asyncio.to_thread(part.add, b""))
        try:
            async for chunk in response.aiter_bytes(_CHUNK):
                await written
                have = part.length
                written = asyncio.create_task(asyncio.to_thread(part.add, chunk[: file.bytes - have]))
                if have + len(chunk) >= file.bytes:
                    break
        finally:
            await written
    if part.length < file.bytes:
        raise _Transient(f"{url}: received {part.length} bytes, the manifest lists {file.bytes}")


@asynccontextmanager
async def get(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    """Send a GET and yield the streamed response if its status is 200 or 206."""
    async with http.stream("GET", url, headers=headers) as response:
        if response.status_code not in (200, 206):
            message = f"{url} answered {response.status_code}"
            if response.is_redirect:
                raise WeightsError(f"{message}; the service token follows no redirect: set MOR_CONTROL_URL to its end")
            if response.status_code >= 500 or response.status_code in (408, 429):
                raise _Transient(message)
            if response.status_code in (401, 403):
                raise WeightsUnreachable(
                    f"{message}; set the service token (MOR_SERVICE_TOKEN) to one that run control accepts"
                )
            if response.status_code == 404:
                raise WeightsDamaged(f"{message}; check that the version is published, and its files are whole")
            raise WeightsError(f"{message}; check that the version is published and the service token is right")
        yield response


class _Part:
    """Partially downloaded file. Hashes the bytes that an earlier attempt left, then every chunk that is added."""

    def __init__(self, path: Path, algorithm: Algorithm) -> None:
        self._path = path
        self._algorithm = algorithm
        self._file = path.open("ab")
        self.hashed = file_checksum(path, algorithm)

    @property
    def length(self) -> int:
        """Bytes of the file so far."""
        return self.hashed.bytes

    def add(self, content: bytes) -> None:
        self._file.write(content)
        self.hashed.update(content)

    def empty(self) -> None:
        self._file.truncate(0)
        self.hashed = WeightsChecksum(self._path.name, self._algorithm)

    def close(self) -> None:
        self._file.close()

    def check(self, file: WeightsFile, url: str) -> None:
        """Check size and hash. Remove the file if they differ, so that the next attempt starts again.

        Raises:
            WeightsDamaged: the file differs from the manifest.
        """
        found = self.hashed.hexdigest()
        if found != file.checksum or self.length != file.bytes:
            self._path.unlink()
            raise _FileDiffers(f"{url}: its {_NAMES[file.algorithm]} is {found}, the manifest lists {file.checksum}")
