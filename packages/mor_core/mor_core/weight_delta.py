"""Delta of a file of tensors: the values that changed since a former file with the same header.

In reinforcement learning a step changes few percent of the values in bfloat16, as most changes are smaller than its
resolution. A delta is a zip archive with two members for each tensor in which values changed. ``{number}.gaps``, where
tensors are counted in the order of their bytes, has for each of these values the number of unchanged ones before it, as
bytes: 255 means that the number goes on in the next byte. ``{number}.values`` has the exclusive or of their old and new
bits: the first byte of all of them, the second of all, and so on.
"""

from __future__ import annotations

import errno
import math
import struct
import zlib
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.tensor_headers import read_header
from mor_core.weight_checksums import WeightsChecksum
from mor_core.wire import Algorithm

LARGEST_SHARE = 1 / 8
"""Largest delta, as a share of the file: where more has changed, the file itself is hardly slower to send."""
_ANYWHERE = 1 / 64
"""Share of the file in which all values may have changed, such as vectors in float32."""
_GOES_ON = 255
_WIDTHS = (1, 2, 4, 8)
"""Bytes of a value."""
_LEVEL = 1
"""Effort of compression: higher levels save little of bits that are nearly random."""
_DAMAGED = (BadZipFile, zlib.error, struct.error, EOFError, LookupError, ValueError, RuntimeError, OverflowError)
"""Errors of an archive that is damaged, encrypted or of another kind."""


class DeltaFile:
    """Delta that is written tensor by tensor, and given up where it becomes too large."""

    def __init__(self, path: Path, base: Path) -> None:
        """``base``: file before.

        Raises:
            Invalid: it is no file of tensors.
        """
        self._path = path
        start, self._regions = _regions(base)
        self._old = np.memmap(base, np.uint8, mode="r")
        self.header = self._old[:start].tobytes()
        """Header that the new file must have, too."""
        self._room = int(LARGEST_SHARE * self._old.size)
        self._may_change = _ANYWHERE * self._old.size
        """Bytes of values that may have changed up to here. Where more have, no time is spent on the rest."""
        self._number = 0
        self._archive = ZipFile(path, "w")

    def add(self, content: memoryview) -> None:
        """Add the new bytes of the next tensor."""
        number, self._number = self._number, self._number + 1
        first, last, width = self._regions[number]
        if self._room < 0:
            return
        new = np.frombuffer(content, f"<u{width}")
        old = self._old[first:last].view(new.dtype)
        differs = new != old
        count = int(np.count_nonzero(differs))
        self._may_change += LARGEST_SHARE * new.nbytes - width * count
        if self._may_change < 0:
            self._room = -1
        elif count:
            changed = np.flatnonzero(differs)
            differences = (new[changed] ^ old[changed]).view(np.uint8).reshape(-1, width)
            self._write(f"{number}.gaps", _gaps(changed))
            self._write(f"{number}.values", np.ascontiguousarray(differences.T))

    def _write(self, name: str, content: NDArray[np.uint8]) -> None:
        info = ZipInfo(name)  # without a time, so that equal weights have equal bytes
        self._archive.writestr(info, content.tobytes(), ZIP_DEFLATED, _LEVEL)
        self._room -= self._archive.getinfo(name).compress_size

    def close(self) -> bool:
        """Complete the delta and return true; if it is too large, or lacks tensors, delete it and return false."""
        self._archive.close()
        complete = self._room >= 0 and self._number == len(self._regions)
        if not complete:
            self._path.unlink()
        return complete


def apply_delta(base: Path, delta: Path, target: Path, algorithm: Algorithm) -> WeightsChecksum:
    """Write the file that ``delta`` makes of ``base`` to ``target`` and return its checksum, which the caller compares.

    Raises:
        Invalid: the delta is damaged, or is one of another file.
    """
    start, regions = _regions(base)
    found = WeightsChecksum(target.name, algorithm)
    try:
        with ZipFile(delta) as archive, base.open("rb") as old, target.open("wb") as new:
            members = set(archive.namelist())
            for number, (first, last, width) in enumerate([(0, start, 1), *regions], -1):
                content = bytearray(old.read(last - first))
                if f"{number}.gaps" in members:
                    values = np.frombuffer(content, f"<u{width}")
                    gaps = _member(archive, f"{number}.gaps", 2 * values.size)
                    differences = _member(archive, f"{number}.values", values.nbytes)
                    values[_positions(gaps)] ^= np.ascontiguousarray(differences.reshape(width, -1).T).view(
                        values.dtype
                    )[:, 0]
                found.update(content)
                new.write(content)
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is of a negative offset in the archive
            raise
        raise Invalid(f"{delta.name}: no delta of {base} ({describe_failure(error)})") from error
    return found


def _regions(file: Path) -> tuple[int, list[tuple[int, int, int]]]:
    """Return the end of the header, and for each tensor its first byte, its end and the bytes of a value.

    Raises:
        Invalid: the file is no safetensors file, or has values of unusual size.
    """
    entries, start = read_header(file)
    regions = []
    for entry in sorted(entries.values(), key=lambda entry: entry["data_offsets"]):
        first, last = entry["data_offsets"]
        count = math.prod(entry["shape"])
        width = (last - first) // count if count else 1
        if width not in _WIDTHS or width * count != last - first:
            raise Invalid(f"{file}: a tensor of {entry['dtype']} has values of {width} bytes; publish whole files")
        regions.append((start + first, start + last, width))
    return start, regions


def _gaps(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // _GOES_ON + 1)
    encoded = np.full(int(ends[-1]), _GOES_ON, np.uint8)
    encoded[ends - 1] = gaps % _GOES_ON
    return encoded


def _positions(gaps: NDArray[np.uint8]) -> NDArray[np.int64]:
    passed: NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)[gaps != _GOES_ON]
    return passed + np.arange(passed.size)


def _member(archive: ZipFile, name: str, most: int) -> NDArray[np.uint8]:
    """Read a member of at most ``most`` bytes.

    Raises:
        ValueError: it has more, or is compressed in another way, whose errors are its own.
    """
    if archive.getinfo(name).compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"{name} is neither deflated nor stored")
    with archive.open(name) as member:
        content = member.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} has over {most} bytes")
    return np.frombuffer(content, np.uint8)
