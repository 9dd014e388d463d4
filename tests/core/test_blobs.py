"""A blob lives as long as a group owns it, in Redis or outside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from mor_core.blobs import INLINE_BYTES, Blobs
from mor_core.errors import BlobMissing, Invalid
from pydantic import ValidationError
from redis.asyncio import Redis

from tests.small_files import largest_file

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


@pytest.mark.parametrize("name", ["../../outside", "0" * 63, "0" * 64 + "/x", "", "A" * 64, "../" * 22])
async def test_a_name_that_is_no_hash_reaches_no_file(redis: Redis, run_name: str, tmp_path: Path, name: str) -> None:
    """Neither by a read, nor by the release of a group that is said to own it."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    blobs = Blobs(redis, run_name, str(tmp_path / "blobs"))
    with pytest.raises(BlobMissing):
        await blobs.get(name)
    await redis.sadd(f"mor:{{{run_name}}}:owned:g1", name, "../../../outside")
    for forged in (name, "../../../outside"):
        await redis.set(f"mor:{{{run_name}}}:blob:{forged}", "@elsewhere")
    await blobs.release("g1")
    assert files(tmp_path) == [outside]
    with pytest.raises(ValidationError):
        Blobs(redis, "../run", str(tmp_path))


async def test_links_in_the_shared_folder_are_not_followed(redis: Redis, run_name: str, tmp_path: Path) -> None:
    content = bytes(INLINE_BYTES + 1)
    digest = hashlib.sha256(content).hexdigest()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / digest).write_bytes(content)
    root = tmp_path / "blobs"
    place = root / run_name / digest[:2]
    place.mkdir(parents=True)
    (place / digest).symlink_to(outside / digest)
    blobs = Blobs(redis, run_name, str(root))
    await redis.set(f"mor:{{{run_name}}}:blob:{digest}", "@elsewhere")
    with pytest.raises(BlobMissing):
        await blobs.get(digest)
    await blobs.put(content, "g1")
    assert not (place / digest).is_symlink()
    assert await blobs.get(digest) == content
    await blobs.release("g1")
    assert files(tmp_path) == [outside / digest]
    place.rmdir()
    place.symlink_to(outside)
    (outside / digest).unlink()
    with pytest.raises(Invalid, match="leads out of MOR_BLOB_DIR"):
        await blobs.put(content, "g2")
    assert files(tmp_path) == []


async def test_an_altered_blob_is_written_anew_with_its_group(redis: Redis, run_name: str, tmp_path: Path) -> None:
    blobs = Blobs(redis, run_name, str(tmp_path))
    for content in (b"picture", bytes(INLINE_BYTES + 1)):
        digest = await blobs.put(content, "g1")
        for path in files(tmp_path):
            path.write_bytes(b"x" * path.stat().st_size)
        if len(content) <= INLINE_BYTES:
            await redis.set(f"mor:{{{run_name}}}:blob:{digest}", b"other")
        with pytest.raises(BlobMissing, match="was altered"):
            await blobs.get(digest)
        await blobs.put(content, "g1")
        assert await blobs.get(digest) == content


async def test_keys_of_another_type_are_begun_anew(redis: Redis, run_name: str) -> None:
    blobs = Blobs(redis, run_name)
    digest = hashlib.sha256(b"picture").hexdigest()
    for kind, write in (("owners", redis.set), ("owned", redis.set), ("blob", redis.rpush)):
        name = "g1" if kind == "owned" else digest
        key = f"mor:{{{run_name}}}:{kind}:{name}"
        await redis.delete(key)
        await write(key, "x")  # type: ignore[operator]
        assert await blobs.put(b"picture", "g1") == digest
        assert await blobs.get(digest) == b"picture"
    await blobs.put(b"picture", "g2")
    await redis.set(f"mor:{{{run_name}}}:owned:g1", "x")
    await blobs.put(b"picture", "g1")
    await blobs.release("g1")
    assert await blobs.get(digest) == b"picture", "the other owner keeps it"
    await redis.delete(f"mor:{{{run_name}}}:owned:g1")
    await redis.set(f"mor:{{{run_name}}}:owned:g1", "x")
    await blobs.release("g1")


async def test_a_release_beside_a_put_loses_no_ownership(redis: Redis, run_name: str) -> None:
    """Both meet the same key of another type; the next release finds what was put."""
    for _ in range(20):
        await redis.set(f"mor:{{{run_name}}}:owned:g1", "x")
        blobs = [Blobs(redis, run_name) for _ in range(4)]
        await asyncio.gather(*(one.release("g1") for one in blobs), blobs[0].put(b"picture", "g1"))
        await blobs[0].release("g1")
        assert [key async for key in redis.scan_iter("*")] == []


async def test_a_blob_with_a_broken_key_keeps_no_other_one(redis: Redis, run_name: str, tmp_path: Path) -> None:
    blobs = Blobs(redis, run_name, str(tmp_path))
    contents = [bytes([number]) * (INLINE_BYTES + 1) for number in range(9)]
    digests = [await blobs.put(content, "g1") for content in contents]
    for kind, digest in (("owners", digests[0]), ("blob", digests[1])):
        await redis.delete(f"mor:{{{run_name}}}:{kind}:{digest}")
        await redis.rpush(f"mor:{{{run_name}}}:{kind}:{digest}", "x")
    await blobs.release("g1")
    assert [path.name for path in files(tmp_path)] == digests[:1]
    assert {key async for key in redis.scan_iter("*")} == {
        f"mor:{{{run_name}}}:{kind}:{digests[0]}".encode() for kind in ("owners", "blob")
    }


async def test_a_blob_that_is_renewed_stays_until_the_new_file_is_whole(
    redis: Redis, run_name: str, tmp_path: Path
) -> None:
    blobs, content = Blobs(redis, run_name, str(tmp_path)), bytes(INLINE_BYTES + 1)
    digest = await blobs.put(content, "g1")
    [path] = files(tmp_path)
    os.utime(path, (1, 1))
    with largest_file(INLINE_BYTES), pytest.raises(OSError):
        await blobs.put(content, "g2")
    assert await blobs.get(digest) == content
    replies = await asyncio.gather(blobs.put(content, "g2"), *(blobs.get(digest) for _ in range(20)))
    assert replies == [digest, *[content] * 20]
    assert files(tmp_path) == [path]
    assert path.stat().st_mtime > 1
