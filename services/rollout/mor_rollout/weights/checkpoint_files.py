"""Tensors of a checkpoint on disk: their files, their hashes, and which of them a swap must load."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.tensor_headers import read_header
from mor_core.weight_checksums import checksum
from mor_core.weight_files import weight_files

_HASH_THREADS = 2
"""Hashing releases the interpreter lock. More threads would take cores from the engine."""


@dataclass(frozen=True)
class TensorSource:
    """Tensor in a safetensors file, with the checksum of its contiguous little-endian bytes."""

    file: Path
    checksum: str
    shape: tuple[int, ...]


def resolve(model: str) -> Path:
    """Return the folder of a checkpoint given by path or hub name. Download a hub name into the hub's own cache.

    Raises:
        Invalid: there is no such checkpoint, or it has no safetensors weights.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
            raise Invalid(
                f"model {model!r}: no such folder; give the path of a checkpoint folder or a hub name 'owner/name'"
            )
        folder = _download(model)
    if not (folder / "config.json").is_file():
        raise Invalid(f"model {model!r}: {folder} has no config.json; give a Hugging Face checkpoint folder")
    try:
        weight_files(folder)
    except Invalid as error:
        raise Invalid(f"model {model!r}: {error}") from error
    return folder.resolve()


def _download(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, allow_patterns=patterns, ignore_patterns="consolidated*.safetensors"
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise Invalid(
            f"model {model!r}: no such folder, and the hub did not return it ({quote_failure(error)}); "
            "check the path or the name"
        ) from error


def tensors_in(file: Path) -> dict[str, TensorSource]:
    """Read and hash every tensor of a safetensors file. Return them by name.

    Raises:
        Invalid: the file is no safetensors file, or is truncated.
    """
    entries, start = read_header(file)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)

        def source(entry: dict[str, Any]) -> TensorSource:
            first, last = entry["data_offsets"]
            with view[start + first : start + last] as data:
                return TensorSource(file, checksum(data, "blake3"), tuple(entry["shape"]))

        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            sources = dict(zip(entries, pool.map(source, entries.values()), strict=True))
        view.release()
    return sources


def tensors_of(folder: Path) -> dict[str, TensorSource]:
    """Read and hash every tensor of an adapter. Return them by the checkpoint's names."""
    return {name: source for file in sorted(folder.glob("*.safetensors")) for name, source in tensors_in(file).items()}


def model_tensors(folder: Path) -> dict[str, TensorSource]:
    """Read and hash every tensor of a checkpoint, and no other that lies beside them.

    Raises:
        Invalid: a file is no safetensors file, or lacks a tensor of the index.
    """
    tensors: dict[str, TensorSource] = {}
    for file, names in weight_files(folder).items():
        found = tensors_in(file)
        if missing := sorted((names or set()) - set(found)):
            raise Invalid(
                f"{file.name}: the index names tensor {missing[0]!r}, which is not in it; copy the file again"
            )
        tensors |= {name: source for name, source in found.items() if names is None or name in names}
    return tensors


def digest(tensors: Mapping[str, str]) -> str:
    """Return one SHA-256 for a set of named tensors, given the checksum of each."""
    lines = "".join(f"{name} {found}\n" for name, found in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def load_unit(name: str) -> str:
    """Return the name of the numbered layer that holds the tensor, or else of its module.

    A swap loads such a unit as a whole, because engines fuse tensors of one layer (query, key and value; all experts).
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1])


def with_load_units(names: Iterable[str], changed: Iterable[str]) -> Iterator[str]:
    """Yield those of ``names`` that share a load unit with a changed tensor, in order."""
    units = {load_unit(name) for name in changed}
    return (name for name in names if load_unit(name) in units)
