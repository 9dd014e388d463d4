"""Checksums of weights: the same however the bytes arrive, and another for every other content."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mor_core.weight_checksums import HashedTensor, WeightsChecksum, checksum, file_checksum
from mor_core.wire import Algorithm, TensorInfo
from pydantic import ValidationError

NAME = "model.safetensors"
HEADER = {
    "__metadata__": {"format": "pt"},
    "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "none": {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]},
    "a": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
}


def file_of(header: object, body: bytes) -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + body


BODY = bytes(range(22))
FILE = file_of(HEADER, BODY)
START = len(FILE) - len(BODY)


def hashed(content: bytes, algorithm: Algorithm, cuts: list[int] | None = None, name: str = NAME) -> WeightsChecksum:
    found = WeightsChecksum(name, algorithm)
    ends = [*sorted(cuts or []), len(content)]
    for first, last in zip([0, *ends], ends, strict=False):
        found.update(content[first:last])
    return found


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
@given(cuts=st.lists(st.integers(0, len(FILE)), max_size=8))
def test_cuts_make_no_difference(algorithm: Algorithm, cuts: list[int]) -> None:
    found = hashed(FILE, algorithm, cuts)
    assert found.hexdigest() == hashed(FILE, algorithm).hexdigest()
    assert (found.bytes, found.tensors) == (
        len(FILE),
        {
            "b": HashedTensor(checksum(BODY[:16], algorithm), "F32", (2, 2)),
            "none": HashedTensor(checksum(b"", algorithm), "F32", (0,)),
            "a": HashedTensor(checksum(BODY[16:], algorithm), "BF16", (3,)),
        },
    )


def test_the_root_is_the_hash_of_the_leaves() -> None:
    leaves = [FILE[:START], BODY[:16], b"", BODY[16:]]
    root = blake3.blake3(b"".join(blake3.blake3(leaf).digest() for leaf in leaves)).hexdigest()
    assert hashed(FILE, "blake3").hexdigest() == root
    assert hashed(FILE, "sha256").hexdigest() == hashlib.sha256(FILE).hexdigest()
    assert hashed(FILE, "blake3", name="adapter_config.json").hexdigest() == blake3.blake3(FILE).hexdigest()


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
@given(position=st.integers(0, len(FILE) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_seen_and_its_tensor_named(algorithm: Algorithm, position: int, bit: int) -> None:
    damaged = bytearray(FILE)
    damaged[position] ^= 1 << bit
    found, whole = hashed(bytes(damaged), algorithm), hashed(FILE, algorithm)
    assert found.hexdigest() != whole.hexdigest()
    if position >= START:
        differing = {name for name in whole.tensors if found.tensors[name] != whole.tensors[name]}
        assert differing == {"b" if position < START + 16 else "a"}


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
@given(content=st.binary(max_size=100), cuts=st.lists(st.integers(0, 100), max_size=3))
def test_no_bytes_are_an_error(algorithm: Algorithm, content: bytes, cuts: list[int]) -> None:
    within = [cut for cut in cuts if cut <= len(content)]
    for damaged in (content, file_of({"a": [1]}, content), file_of(HEADER, content), FILE + content):
        found = hashed(damaged, algorithm, within)
        assert (found.hexdigest() == hashed(FILE, algorithm).hexdigest()) == (damaged == FILE)


def test_tensors_with_gaps_have_no_checksums() -> None:
    gap = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}
    assert hashed(file_of(gap, bytes(8)), "blake3").tensors == {}


@pytest.mark.parametrize("content", [b"", b"abc", bytes([16, *bytes(7)]) + b"{}"])
def test_a_file_that_ends_before_its_header_does_is_hashed_as_bytes(content: bytes) -> None:
    assert hashed(content, "blake3").hexdigest() == checksum(content, "blake3")


def test_a_file_is_read_in_parts(tmp_path: Path) -> None:
    large = {"a": {"dtype": "U8", "shape": [9 << 20], "data_offsets": [0, 9 << 20]}}
    content = file_of(large, bytes(9 << 20))
    (tmp_path / NAME).write_bytes(content)
    assert file_checksum(tmp_path / NAME, "blake3").hexdigest() == hashed(content, "blake3").hexdigest()


@pytest.mark.parametrize("given_checksums", [{}, {"sha256": "0" * 64, "blake3": "0" * 64}, {"blake3": "no"}])
def test_a_tensor_has_one_checksum(given_checksums: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        TensorInfo(dtype="F32", shape=(1,), **given_checksums)
