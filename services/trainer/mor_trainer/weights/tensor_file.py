"""Writer of safetensors files: tensor by tensor, hashed on the way, so that memory holds no second copy of a model.

The format (huggingface.co/docs/safetensors): eight bytes with the length of a JSON header; the header, which gives the
type, shape and offsets of each tensor; the little-endian bytes of the tensors without gaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from mor_core.errors import Invalid
from mor_core.weight_checksums import WeightsChecksum
from mor_core.weight_delta import DeltaFile
from mor_core.wire import Algorithm, TensorInfo, WeightsFile
from torch import Tensor

from mor_trainer.weights.published_type import PublishedTensors

_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8
"""Bytes; the header is padded to a multiple, as the format recommends, so that mapped tensors are aligned."""


@dataclass(frozen=True)
class TensorFile:
    """File of tensors and its checksums."""

    file: WeightsFile
    tensors: dict[str, TensorInfo]
    has_delta: bool
    """True if the delta was written."""


def write(
    path: Path, tensors: PublishedTensors, algorithm: Algorithm, *, base: Path | None = None, delta: Path | None = None
) -> TensorFile:
    """Write ``tensors``, of any device, to ``path``, and to ``delta`` what changed since the file ``base``.

    While a tensor is converted, and copied to main memory if it is not there, the one before is hashed, compared and
    written; so there are at most two copies of tensors at a time. There is no delta if the tensors of ``base`` are
    others, or if it would be large.
    """
    names = sorted(tensors, key=lambda name: (-tensors.type_of(name).itemsize, name))  # widest first: all stay aligned
    header = _header(names, tensors)
    found = WeightsChecksum(path.name, algorithm)
    changes = _changes(base, delta, header)
    under_way: list[Future[object]] = []
    with path.open("wb") as out, ThreadPoolExecutor(3) as pool:  # hashing and writing let other threads run
        out.write(header)
        found.update(header)
        for content in (_content(tensors[name]) for name in names):
            for each in under_way:
                each.result()
            under_way = [pool.submit(found.update, content), pool.submit(out.write, content)]
            if changes is not None:
                under_way.append(pool.submit(changes.add, content))
        for each in under_way:
            each.result()
    infos = {
        name: TensorInfo(dtype=one.dtype, shape=one.shape, **{algorithm: one.checksum})
        for name, one in found.tensors.items()
    }
    file = WeightsFile(name=path.name, bytes=found.bytes, **{algorithm: found.hexdigest()})
    return TensorFile(file, infos, changes is not None and changes.close())


def _changes(base: Path | None, delta: Path | None, header: bytes) -> DeltaFile | None:
    """Return a writer of the delta; ``None`` if ``base`` cannot be the base of a file with this header."""
    if base is None or delta is None:
        return None
    try:
        with base.open("rb") as file:
            if file.read(len(header)) != header:
                return None
        return DeltaFile(delta, base)
    except (Invalid, OSError):  # damaged, deleted meanwhile, or another user's
        return None


def _header(names: Sequence[str], tensors: PublishedTensors) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors.bytes_of(name)
        dtype = _TYPES[tensors.type_of(name)]
        entries[name] = {"dtype": dtype, "shape": list(tensors.shape_of(name)), "data_offsets": [begin, end]}
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % _ALIGNMENT)
    return struct.pack("<Q", len(content)) + content


def _content(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
