"""Blobs by SHA-256: images and token arrays, sent once and kept until every group that owns them is settled.

A blob of up to ``INLINE_BYTES`` lives in Redis, a larger one on a shared path or object store (``MOR_BLOB_DIR``, any
fsspec URL). Ownership is a set of group ids: putting the same blob twice for the same group changes nothing, and
releasing the last owner deletes the blob. A missing blob is a separate error (``BlobMissing``); the trainer then
issues the group again.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import fsspec
from redis.asyncio import Redis

from mor_core.errors import BlobMissing
from mor_core.streams import key

INLINE_BYTES = 256 << 10
"""Largest blob in Redis: most photographs and token arrays fit, and 256 groups of them stay within 64 MB."""

_ELSEWHERE = b"@elsewhere"

# KEYS: blob, owners of the blob, blobs of the owner. ARGV: owner, digest, content.
_PUT = """
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2])
return redis.call('SET', KEYS[1], ARGV[3], 'NX') and 1 or 0
"""

# KEYS: blobs of the owner. ARGV: owner, prefix of blob keys, prefix of owners keys. All in the run's slot.
_RELEASE = """
local gone = {}
for _, digest in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local owners = ARGV[3] .. digest
  redis.call('SREM', owners, ARGV[1])
  if redis.call('SCARD', owners) == 0 then
    if redis.call('GETRANGE', ARGV[2] .. digest, 0, 10) == '@elsewhere' then gone[#gone + 1] = digest end
    redis.call('DEL', ARGV[2] .. digest)
  end
end
redis.call('DEL', KEYS[1])
return gone
"""


class Blobs:
    """Blobs of one run."""

    def __init__(self, redis: Redis, run: str, directory: str | None = None) -> None:
        self._redis = redis
        self._run = run
        self._directory = directory
        self._put_script = redis.register_script(_PUT)
        self._release_script = redis.register_script(_RELEASE)

    def _key(self, digest: str) -> str:
        return key(self._run, f"blob:{digest}")

    def _owners_key(self, digest: str) -> str:
        return key(self._run, f"owners:{digest}")

    def _owned_key(self, owner: str) -> str:
        return key(self._run, f"owned:{owner}")

    def _path(self, digest: str) -> str:
        return f"{self._directory}/{self._run}/{digest[:2]}/{digest}"

    async def put(self, content: bytes, owner: str) -> str:
        """Store ``content`` for group ``owner`` and return its SHA-256 in hexadecimal."""
        digest = hashlib.sha256(content).hexdigest()
        elsewhere = self._directory is not None and len(content) > INLINE_BYTES
        if elsewhere:
            await asyncio.to_thread(self._write, digest, content)
        await self._put_script(
            keys=[self._key(digest), self._owners_key(digest), self._owned_key(owner)],
            args=[owner, digest, _ELSEWHERE if elsewhere else content],
        )
        return digest

    async def get(self, digest: str) -> bytes:
        """Return the blob's bytes, checked against its hash.

        Raises:
            BlobMissing: there is no such blob, or its bytes changed.
        """
        content: Any = await self._redis.get(self._key(digest))
        if content == _ELSEWHERE:
            content = await asyncio.to_thread(self._read, digest)
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            state = "is gone" if content is None else "was altered"
            raise BlobMissing(f"blob {digest[:12]} of run {self._run} {state}; the trainer issues its group again")
        return bytes(content)

    async def release(self, owner: str) -> None:
        """End the ownership of group ``owner``, and delete the blobs that no other group owns."""
        gone = await self._release_script(
            keys=[self._owned_key(owner)], args=[owner, self._key(""), self._owners_key("")]
        )
        for digest in gone:
            await asyncio.to_thread(self._remove, digest.decode())

    def _write(self, digest: str, content: bytes) -> None:
        fs, path = fsspec.url_to_fs(self._path(digest))
        if not fs.exists(path):
            fs.makedirs(fs._parent(path), exist_ok=True)
            fs.pipe_file(f"{path}.part", content)
            fs.mv(f"{path}.part", path)

    def _read(self, digest: str) -> bytes | None:
        fs, path = fsspec.url_to_fs(self._path(digest))
        try:
            return bytes(fs.cat_file(path))
        except FileNotFoundError:
            return None

    def _remove(self, digest: str) -> None:
        fs, path = fsspec.url_to_fs(self._path(digest))
        if fs.exists(path):
            fs.rm_file(path)
