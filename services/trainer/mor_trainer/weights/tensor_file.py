"""Writer of safetensors files: tensor by tensor, hashed on the way, so that memory holds no second copy of a model.

The format (huggingface.co/docs/safetensors): eight bytes with the length of a JSON header; the header, which gives the
type, shape and offsets of each tensor; the little-endian bytes of the tensors without gaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from mor_core.weight_checksums import WeightsChecksum
from mor_core.wire import Algorithm, TensorInfo, WeightsFile
from torch import Tensor

from mor_trainer.weights.published_type import PublishedTensors

_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8
"""Bytes; the header is padded to a multiple, as the format recommends, so that mapped tensors are aligned."""


def write(path: Path, tensors: PublishedTensors, algorithm: Algorithm) -> tuple[WeightsFile, dict[str, TensorInfo]]:
    """Write ``tensors``, of any device, to ``path`` and return the checksums of the file and of each tensor.

    While a tensor is converted, and copied to main memory if it is not there, the one before is hashed and written; so
    there are at most two copies of tensors at a time.
    """
    names = sorted(tensors, key=lambda name: (-tensors.type_of(name).itemsize, name))  # widest first: all stay aligned
    found = WeightsChecksum(path.name, algorithm)
    under_way: tuple[Future[object], ...] = ()
    with path.open("wb") as out, ThreadPoolExecutor(2) as pool:  # hashing and writing let other threads run
        for content in chain([memoryview(_header(names, tensors))], (_content(tensors[name]) for name in names)):
            for each in under_way:
                each.result()
            under_way = (pool.submit(found.update, content), pool.submit(out.write, content))
        for each in under_way:
            each.result()
    infos = {
        name: TensorInfo(dtype=one.dtype, shape=one.shape, **{algorithm: one.checksum})
        for name, one in found.tensors.items()
    }
    return WeightsFile(name=path.name, bytes=found.bytes, **{algorithm: found.hexdigest()}), infos


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
