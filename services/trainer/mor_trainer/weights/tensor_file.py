"""Writer of safetensors files: tensor by tensor, hashed on the way, so that memory holds no second copy of a model.

The format (huggingface.co/docs/safetensors): eight bytes with the length of a JSON header; the header, which gives the
type, shape and offsets of each tensor; the little-endian bytes of the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from mor_core.wire import TensorInfo, WeightsFile
from torch import Tensor

from mor_trainer.weights.published_type import PublishedTensors

_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8
"""Bytes; the header is padded to a multiple, as the format recommends, so that mapped tensors are aligned."""


def write(path: Path, tensors: PublishedTensors) -> tuple[WeightsFile, dict[str, TensorInfo]]:
    """Write ``tensors``, of any device, to ``path`` and return the hashes of the file and of each tensor.

    One tensor at a time is copied to main memory, and only if it is not contiguous and of its published type there.
    """
    names = sorted(tensors, key=lambda name: (-tensors.type_of(name).itemsize, name))  # widest first: all stay aligned
    header = _header(names, tensors)
    file_hash = hashlib.sha256(header)
    infos = {}
    with path.open("wb") as out, ThreadPoolExecutor(2) as pool:  # hashlib and write let other threads run
        out.write(header)
        for name in names:
            content = _content(tensors[name])
            whole, own = pool.submit(file_hash.update, content), pool.submit(hashlib.sha256, content)
            out.write(content)
            whole.result()
            infos[name] = TensorInfo(
                dtype=_TYPES[tensors.type_of(name)], shape=tensors.shape_of(name), sha256=own.result().hexdigest()
            )
    return WeightsFile(name=path.name, bytes=path.stat().st_size, sha256=file_hash.hexdigest()), infos


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
