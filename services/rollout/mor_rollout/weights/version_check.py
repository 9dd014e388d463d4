"""Comparison of a pulled version with its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.tensor_headers import read_header
from mor_core.weight_checksums import HashedTensor, WeightsChecksum, file_checksum
from mor_core.wire import WeightsManifest

from mor_rollout.weights.checkpoint_files import TensorSource


def checked_tensors(
    manifest: WeightsManifest, folder: Path, hashed: Mapping[str, WeightsChecksum]
) -> Mapping[str, TensorSource]:
    """Return the tensors of a version whose files and tensors are as its manifest lists them.

    ``hashed``: checksums of its files that are known, by name; the others are read.

    Raises:
        Invalid: one is missing, was added, or differs.
    """
    tensors: dict[str, TensorSource] = {}
    for file in manifest.files:
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.bytes:
            raise Invalid(f"{file.name} is {'missing' if size is None else 'not as the manifest lists it'}")
        found = hashed.get(file.name) or file_checksum(path, file.algorithm)
        _check_tensors(manifest, found.tensors)
        if found.hexdigest() != file.checksum:
            raise Invalid(f"{file.name} is not as the manifest lists it")
        if found.tensors:
            read_header(path)  # engines load no file with bytes after its tensors
        tensors |= {name: TensorSource(path, one.checksum, one.shape) for name, one in found.tensors.items()}
    if missing := sorted(manifest.tensors.keys() - tensors.keys()):
        raise Invalid(f"tensor {missing[0]!r} is in no file")
    return tensors


def _check_tensors(manifest: WeightsManifest, tensors: Mapping[str, HashedTensor]) -> None:
    """Compare a file's tensors with the manifest.

    Raises:
        Invalid: one was added or differs.
    """
    for name, found in sorted(tensors.items()):
        listed = manifest.tensors.get(name)
        if listed is None:
            raise Invalid(f"tensor {name!r} is not listed in the manifest")
        if found.checksum != listed.checksum or found.shape != listed.shape:
            raise Invalid(f"tensor {name!r} differs from the manifest in hash or shape")
