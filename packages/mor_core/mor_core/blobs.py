"""Blobs by SHA-256: images and token arrays, sent once and kept until every group that owns them is settled.

A blob of up to ``INLINE_BYTES`` lives in Redis, a larger one on a shared path or object store (``MOR_BLOB_DIR``, any
fsspec URL). Ownership is a set of group ids: putting the same blob twice for the same group changes nothing, and
releasing the last owner deletes the blob. So does a week without a new owner, for runs that vanished: in Redis by
itself, elsewhere by ``blob_sweep``. A missing blob is a separate error (``BlobMissing``); the trainer then issues the
group again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import stat
import time
from pathlib import Path
from typing import Any

import fsspec
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from mor_core import disk_full
from mor_core.errors import BlobMissing, Invalid
from mor_core.failures import describe_failure
from mor_core.fence import ATTEMPT, FENCED, REFUSED, UNFENCED, Fence, superseded
from mor_core.stored import LEFTOVER_S, StoredEntries
from mor_core.streams import key
from mor_core.wire import RunId

INLINE_BYTES = 256 << 10
"""Largest blob in Redis: most photographs and token arrays fit, and 256 groups of them stay within 64 MB."""

LARGEST_BYTES = 64 << 20
"""Largest blob that is read: as large as a request may be, far above any picture or token array."""

BLOB, OWNERS, OWNED = "blob", "owners", "owned"
"""Kinds of keys: content, owners of a blob, blobs of an owner."""

_ELSEWHERE = b"@elsewhere"
_DIGEST = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(_DIGEST.pattern + r"(\.[0-9a-f]{8}\.part)?")
"""Name of a blob's file, or of one that is being written."""
_RUN_ID: TypeAdapter[str] = TypeAdapter(RunId)
_RENEWED_S = 86400
"""Age at which a file is written anew with its next owner, seconds: well below the age at which ``blob_sweep`` deletes
files of runs that it does not know."""
_TAMPERED = (Invalid, IsADirectoryError, NotADirectoryError, RuntimeError)
"""Errors of a path in the shared folder that is no file of ours; ``RuntimeError`` is a circle of links."""
_BLOBS = StoredEntries("blobs", largest=LARGEST_BYTES)

# KEYS: blob, owners of the blob, blobs of the owner, newest attempt. ARGV: owner, digest, content, attempt.
_PUT = f"""{FENCED}
local is_anew = 0
local function add(name, member)
  local reply = redis.pcall('SADD', name, member)
  if type(reply) ~= 'table' then return end
  if not reply.err:find('WRONGTYPE') then error(reply) end
  redis.call('DEL', name)
  redis.call('SADD', name, member)
  is_anew = 1
end
add(KEYS[2], ARGV[1])
add(KEYS[3], ARGV[2])
redis.call('SET', KEYS[1], ARGV[3])
for place = 1, 3 do redis.call('EXPIRE', KEYS[place], {LEFTOVER_S}) end
return is_anew
"""

# KEYS: blobs of the owner, newest attempt. ARGV: owner, prefix of blob keys, prefix of owners keys, attempt. All in the
# run's slot. Returns the number of keys of another type, and the blobs whose files are to be removed. A blob stays
# whose owners cannot be read.
_RELEASE = f"""{FENCED}
local broken, gone = 0, {{}}
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not reply.err:find('WRONGTYPE') then error(reply) end
  broken = broken + 1
end
for _, digest in ipairs(try('SMEMBERS', KEYS[1]) or {{}}) do
  local owners, blob = ARGV[3] .. digest, ARGV[2] .. digest
  if try('SREM', owners, ARGV[1]) and redis.call('SCARD', owners) == 0 then
    if (try('GETRANGE', blob, 0, 10) or '@elsewhere') == '@elsewhere' then gone[#gone + 1] = digest end
    redis.call('DEL', blob)
  end
end
redis.call('DEL', KEYS[1])
return {{broken, gone}}
"""


class Blobs:
    """Blobs of one run."""

    def __init__(self, redis: Redis, run: str, directory: str | None = None, fence: Fence | None = None) -> None:
        """``fence``: that of the attempt that writes here, if it is one.

        Raises ``ValidationError`` where ``run`` is no id, which may not name a folder then.
        """
        self._redis = redis
        self._run = _RUN_ID.validate_python(run)
        self._directory = directory
        self._fence = fence
        self._put_script = redis.register_script(_PUT)
        self._release_script = redis.register_script(_RELEASE)

    def _key(self, digest: str) -> str:
        return key(self._run, f"{BLOB}:{digest}")

    def _owners_key(self, digest: str) -> str:
        return key(self._run, f"{OWNERS}:{digest}")

    def _owned_key(self, owner: str) -> str:
        return key(self._run, f"{OWNED}:{owner}")

    async def put(self, content: bytes, owner: str, issuer: int | None = None) -> str:
        """Store ``content`` for group ``owner`` and return its SHA-256 in hexadecimal.

        ``issuer``: attempt at the run that issued the group, where a stage stores the blob.

        Raises:
            Superseded: a later attempt at the run has begun; nothing was stored in Redis.
            OSError: the shared folder takes nothing, such as a full disk; no part of the blob is there.
        """
        writer = self._writer(issuer)
        digest = hashlib.sha256(content).hexdigest()
        elsewhere = self._directory is not None and len(content) > INLINE_BYTES
        if elsewhere:
            with disk_full.watched("blobs"):
                await asyncio.to_thread(self._write, digest, content)
        keys = [self._key(digest), self._owners_key(digest), self._owned_key(owner), key(self._run, ATTEMPT)]
        args: list[Any] = [owner, digest, _ELSEWHERE if elsewhere else content, writer]
        reply = await self._put_script(keys=keys, args=args)
        self._check_reply(reply, writer)
        if reply:
            _BLOBS.refuse(keys[0], "a key of its owners has another type; it is written anew")
        return digest

    def _writer(self, issuer: int | None = None) -> int | str:
        """Return the attempt that writes, as scripts take it.

        Raises:
            Superseded: the lease of this process on the run is lost.
        """
        if self._fence is not None:
            self._fence.check()
            return self._fence.attempt
        return UNFENCED if issuer is None else issuer

    def _check_reply(self, reply: object, writer: int | str) -> None:
        """Raise ``Superseded`` where a script refused to write."""
        if reply == REFUSED:
            raise superseded(self._run, int(writer))

    async def get(self, digest: str) -> bytes:
        """Return the blob's bytes, checked against its hash.

        Raises:
            BlobMissing: there is no such blob, or its bytes changed.
        """
        if _DIGEST.fullmatch(digest) is None:
            raise BlobMissing(f"{digest[:80]!r} names no blob; a name is the SHA-256 of its bytes, in hexadecimal")
        name = self._key(digest)
        content: Any = await _BLOBS.read(name, self._redis.getrange(name, 0, LARGEST_BYTES), b"")
        if content == _ELSEWHERE:
            content = await asyncio.to_thread(self._read, digest)
        if hashlib.sha256(content).hexdigest() != digest:
            state = "was altered" if content else "is gone"
            if content:
                _BLOBS.refuse(name, "the content does not have the hash that is its name")
                await asyncio.to_thread(self._remove, digest)  # so that the group's next attempt writes it anew
            raise BlobMissing(f"blob {digest[:12]} of run {self._run} {state}; the trainer issues its group again")
        return bytes(content)

    async def release(self, owner: str) -> None:
        """End the ownership of group ``owner``, and delete the blobs that no other group owns.

        Raises:
            Superseded: a later attempt at the run has begun; nothing was released.
        """
        writer = self._writer()
        keys = [self._owned_key(owner), key(self._run, ATTEMPT)]
        args: list[Any] = [owner, self._key(""), self._owners_key(""), writer]
        reply = await self._release_script(keys=keys, args=args)
        self._check_reply(reply, writer)
        broken, gone = reply
        if broken:
            _BLOBS.refuse(keys[0], "a key of its blobs has another type; such a blob stays until the run's end")
        for found in gone:
            digest = found.decode(errors="replace")
            if _DIGEST.fullmatch(digest) is None:
                _BLOBS.refuse(keys[0], "it lists a name that is no SHA-256")
                continue
            await asyncio.to_thread(self._remove, digest)

    def _place(self, digest: str) -> tuple[Any, str]:
        """Return the file system and the path of a blob in the shared folder.

        Raises:
            Invalid: a link leads out of the shared folder.
        """
        fs, path = fsspec.url_to_fs(f"{self._directory}/{self._run}/{digest[:2]}/{digest}")
        if "file" in fs.protocol:
            root = Path(fsspec.url_to_fs(self._directory)[1]).resolve()
            if not Path(path).parent.resolve().is_relative_to(root):
                raise Invalid(f"{Path(path).parent} leads out of MOR_BLOB_DIR ({root}); remove the link")
        return fs, path

    def _write(self, digest: str, content: bytes) -> None:
        fs, path = self._place(digest)
        if _size(fs, path) != len(content) or (age_s(fs, path) or 0) > _RENEWED_S:
            fs.makedirs(fs._parent(path), exist_ok=True)
            part = f"{path}.{secrets.token_hex(4)}.part"  # another process may write the same blob now
            try:
                fs.pipe_file(part, content)
                if _size(fs, path) is None:
                    _delete(fs, path)  # a link would lead the bytes elsewhere
                fs.mv(part, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    fs.rm_file(part)
                raise

    def _read(self, digest: str) -> bytes:
        """Read a blob from the shared folder; nothing where there is none that may be read."""
        if self._directory is None:
            return b""
        try:
            fs, path = self._place(digest)
            size = _size(fs, path)
            if size is None:
                return b""
            if size > LARGEST_BYTES:
                raise Invalid(f"{size} bytes, at most {LARGEST_BYTES} are read")
            return bytes(fs.cat_file(path, start=0, end=LARGEST_BYTES))
        except FileNotFoundError:
            return b""
        except _TAMPERED as error:
            _BLOBS.refuse(digest, describe_failure(error))
            return b""

    def _remove(self, digest: str) -> None:
        if self._directory is None:
            return
        try:
            fs, path = self._place(digest)
            _delete(fs, path)
        except _TAMPERED as error:
            _BLOBS.refuse(digest, describe_failure(error))


def is_run_id(name: object) -> bool:
    """Return whether a name is the id of a run, so that it may be part of a path or a key."""
    try:
        _RUN_ID.validate_python(name, strict=True)
    except ValidationError:
        return False
    return True


def age_s(fs: Any, path: str) -> float | None:
    """Return the seconds since a file was written; ``None`` where it is gone, or the file system does not know."""
    try:
        return time.time() - float(fs.modified(path).timestamp())
    except (FileNotFoundError, NotImplementedError):
        return None


def _delete(fs: Any, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process may have deleted it
        fs.rm_file(path)


def _size(fs: Any, path: str) -> int | None:
    """Return the size of a regular file; ``None`` where there is none, and for a link, a device or a pipe."""
    try:
        found = fs.info(path)
    except FileNotFoundError:
        return None
    regular = found["type"] == "file" and not found.get("islink") and stat.S_ISREG(found.get("mode", stat.S_IFREG))
    return int(found["size"]) if regular else None
