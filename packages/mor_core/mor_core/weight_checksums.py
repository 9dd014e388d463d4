"""Checksums of weights, computed from a file's bytes in order: each byte is hashed once.

With BLAKE3 a file of tensors has a tree of hashes. Its leaves are the hashes of the header and of each tensor, in the
order of their bytes; its root, the file's checksum, is the hash of the leaves. The checksum of any other file, and of
all files with SHA-256, which earlier releases read, is the hash of its bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from mor_core.tensor_headers import PREFIX_BYTES, header_length, parse_header
from mor_core.wire import Algorithm

Bytes = bytes | bytearray | memoryview
_TENSORS = ".safetensors"
_CHUNK = 4 << 20
"""Bytes read at a time."""


@dataclass(frozen=True)
class HashedTensor:
    """Tensor of a file."""

    checksum: str
    """Hexadecimal hash of its contiguous little-endian bytes."""
    dtype: str
    shape: tuple[int, ...]


def checksum(content: Bytes, algorithm: Algorithm) -> str:
    """Return the hexadecimal hash of bytes. Other threads run meanwhile."""
    return str(_new(algorithm, content).hexdigest())


class WeightsChecksum:
    """Checksum of a file, and of each tensor in it, from its bytes in order."""

    def __init__(self, name: str, algorithm: Algorithm) -> None:
        """``name``: of the file, whose end says whether it holds tensors."""
        self._algorithm = algorithm
        self._header: bytearray | None = bytearray() if name.endswith(_TENSORS) else None
        """Beginning of a file of tensors, until its header is complete."""
        self._whole = _new("sha256") if algorithm == "sha256" else None
        self._leaves: list[bytes] = []
        self._leaf = _new(algorithm)
        self._begun = False
        self._left: list[tuple[int, str, HashedTensor]] = []
        """End of each tensor that is not complete, its name and itself without a checksum; the next is last."""
        self.bytes = 0
        self.tensors: dict[str, HashedTensor] = {}
        """Complete tensors by name; none of a file whose header is damaged."""

    def update(self, content: Bytes) -> None:
        """Add the next bytes of the file."""
        with memoryview(content) as view:
            if self._whole is not None:
                self._whole.update(view)
            start = 0 if self._header is None else self._take_header(self._header, view)
            while start < len(view):
                end = min(len(view), self._left[-1][0] - self.bytes) if self._left else len(view)
                self._add(view[start:end])
                start = end
                self._close_tensors(self.bytes + end)
            self.bytes += len(view)

    def hexdigest(self) -> str:
        """Return the checksum of the file."""
        if self._whole is not None:
            return str(self._whole.hexdigest())
        if self._header is not None:  # the file ends before its header does
            return checksum(self._header, self._algorithm)
        if not self._leaves:
            return str(self._leaf.hexdigest())
        rest = [self._leaf.digest()] if self._begun else []
        return checksum(b"".join(self._leaves + rest), self._algorithm)

    def _take_header(self, header: bytearray, view: memoryview) -> int:
        """Take bytes of ``view`` that belong to the header, and return how many these were."""
        have = len(header)
        header += view[: max(0, PREFIX_BYTES - have)]
        if len(header) < PREFIX_BYTES:
            return len(view)
        length = header_length(bytes(header[:PREFIX_BYTES]))
        wanted = PREFIX_BYTES + (length or 0)
        header += view[len(header) - have : wanted - have]
        if len(header) < wanted:
            return len(view)
        self._add(header)
        self._header, self._left = None, _regions(bytes(header[PREFIX_BYTES:]), wanted)
        if self._left:
            self._close_leaf()
            self._close_tensors(wanted)
        return len(header) - have

    def _add(self, content: Bytes) -> None:
        self._leaf.update(content)
        self._begun = True

    def _close_leaf(self) -> str:
        self._leaves.append(self._leaf.digest())
        found = str(self._leaf.hexdigest())
        self._leaf, self._begun = _new(self._algorithm), False
        return found

    def _close_tensors(self, end: int) -> None:
        """Take the checksums of the tensors that end here: at most one with bytes, and those without that follow it."""
        while self._left and self._left[-1][0] == end:
            _, name, tensor = self._left.pop()
            self.tensors[name] = HashedTensor(self._close_leaf(), tensor.dtype, tensor.shape)


def file_checksum(path: Path, algorithm: Algorithm) -> WeightsChecksum:
    """Hash a file on this machine."""
    found = WeightsChecksum(path.name, algorithm)
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found.update(memoryview(buffer)[:count])
    return found


def _new(algorithm: Algorithm, content: Bytes = b"") -> Any:
    return hashlib.sha256(content) if algorithm == "sha256" else blake3.blake3(content)


def _regions(header: bytes, start: int) -> list[tuple[int, str, HashedTensor]]:
    """Return end, name, type and shape of each tensor, last one first; none where they leave gaps or overlap."""
    try:
        entries = parse_header(header)
    except ValueError:
        return []
    regions = []
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end:
            return []
        end = last
        regions.append((start + end, name, HashedTensor("", entry["dtype"], tuple(entry["shape"]))))
    return regions[::-1]
