"""A checkpoint on disk as named tensors: where they lie, what they hash to, which of them a swap must move."""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid

_LONGEST_HEADER = 100 << 20
_HASH_THREADS = 2


@dataclass(frozen=True)
class TensorSource:
    """A tensor in a safetensors file and the SHA-256 of its contiguous little-endian bytes."""

    file: Path
    sha256: str
    shape: tuple[int, ...]


def resolve(model: str) -> Path:
    """Folder of a checkpoint given by path or hub name; a hub name is downloaded into the hub's own cache.

    Raises:
        Invalid: there is none, or it has no safetensors weights.
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
    if not list(folder.glob("*.safetensors")):
        raise Invalid(f"model {model!r}: {folder} has no *.safetensors; save it with save_pretrained")
    return folder.resolve()


def _download(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise Invalid(
            f"model {model!r}: no such folder, and not to be had from the hub ({error}); check the path or the name"
        ) from error


def read_header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Entries of a safetensors file by tensor name, and the offset of the first tensor's bytes.

    Raises:
        Invalid: not a safetensors file, or cut short.
    """
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _LONGEST_HEADER + 1
        content = stream.read(length) if length <= _LONGEST_HEADER else b""
    try:
        entries = json.loads(content)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Invalid(f"{file.name}: not a safetensors file") from error
    if file.stat().st_size != 8 + length + end:
        raise Invalid(f"{file.name}: {file.stat().st_size} bytes, its header says {8 + length + end}: cut short")
    return entries, 8 + length


def tensors_in(file: Path) -> dict[str, TensorSource]:
    """Every tensor of a safetensors file, by name.

    Raises:
        Invalid: not a safetensors file, or cut short.
    """
    entries, start = read_header(file)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)

        def source(entry: dict[str, Any]) -> TensorSource:
            first, last = entry["data_offsets"]
            with view[start + first : start + last] as data:
                return TensorSource(file, hashlib.sha256(data).hexdigest(), tuple(entry["shape"]))

        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            sources = dict(zip(entries, pool.map(source, entries.values()), strict=True))
        view.release()
    return sources


def tensors_of(folder: Path) -> dict[str, TensorSource]:
    """Every tensor of a checkpoint folder, by the checkpoint's names."""
    return {name: source for file in sorted(folder.glob("*.safetensors")) for name, source in tensors_in(file).items()}


def digest(tensors: Mapping[str, str]) -> str:
    """One SHA-256 for a set of named tensors, from their own."""
    lines = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def unit(name: str) -> str:
    """The smallest part of a model that is loaded as a whole: a numbered layer, else the module that holds the tensor.

    Engines fuse tensors of one layer (query, key and value; all experts) into one, so a layer is moved whole.
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1])


def with_units(names: Iterable[str], changed: Iterable[str]) -> Iterator[str]:
    """Those of ``names`` that lie in one unit with a changed tensor, in order."""
    units = {unit(name) for name in changed}
    return (name for name in names if unit(name) in units)
