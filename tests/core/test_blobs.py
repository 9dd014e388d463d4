"""A blob lives as long as a group owns it, in Redis or outside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from mor_core.blobs import INLINE_BYTES, Blobs
from mor_core.errors import BlobMissing
from redis.asyncio import Redis

pytestmark = pytest.mark.anyio


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_blob_is_named_by_its_hash_and_comes_back(redis: Redis, run_name: str) -> None:
    blobs = Blobs(redis, run_name)
    digest = await blobs.put(b"picture", "g1")
    assert digest == hashlib.sha256(b"picture").hexdigest()
    assert await blobs.get(digest) == b"picture"


async def test_a_shared_blob_goes_with_its_last_owner(redis: Redis, run_name: str) -> None:
    blobs = Blobs(redis, run_name)
    digest = await blobs.put(b"picture", "g1")
    await blobs.put(b"picture", "g2")
    await blobs.put(b"picture", "g2")
    await blobs.release("g1")
    assert await blobs.get(digest) == b"picture"
    await blobs.release("g2")
    with pytest.raises(BlobMissing, match="issues its group again"):
        await blobs.get(digest)
    assert [key async for key in redis.scan_iter("*")] == []


async def test_large_blobs_live_outside_redis(redis: Redis, run_name: str, tmp_path: Path) -> None:
    blobs = Blobs(redis, run_name, str(tmp_path))
    content = bytes(INLINE_BYTES + 1)
    digest = await blobs.put(content, "g1")
    assert await redis.strlen(f"mor:{{{run_name}}}:blob:{digest}") < 100
    assert await blobs.get(digest) == content
    await blobs.release("g1")
    assert files(tmp_path) == []


async def test_altered_bytes_are_never_handed_out(redis: Redis, run_name: str) -> None:
    blobs = Blobs(redis, run_name)
    digest = await blobs.put(b"picture", "g1")
    await redis.set(f"mor:{{{run_name}}}:blob:{digest}", b"other")
    with pytest.raises(BlobMissing, match="was altered"):
        await blobs.get(digest)
