"""Comparison of a pulled version with its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.wire import WeightsManifest

from mor_rollout.weights import checkpoint_files
from mor_rollout.weights.checkpoint_files import TensorSource


def checked_tensors(manifest: WeightsManifest, folder: Path) -> Mapping[str, TensorSource]:
    """Return the tensors of a version whose files and tensors are as its manifest lists them.

    Raises:
        Invalid: one is missing, was added, or differs.
    """
    _check_files(manifest, folder)
    tensors = checkpoint_files.tensors_of(folder)
    _check_tensors(manifest, tensors)
    return tensors


def _check_files(manifest: WeightsManifest, folder: Path) -> None:
    """Check that a version's files are there; tensors have hashes of their own.

    Raises:
        Invalid: one is missing or differs.
    """
    for file in manifest.files:
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else None
        same = size == file.bytes
        if same and path.suffix != ".safetensors":
            same = hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
        if not same:
            raise Invalid(f"{file.name} is {'missing' if size is None else 'not as the manifest lists it'}")


def _check_tensors(manifest: WeightsManifest, tensors: Mapping[str, TensorSource]) -> None:
    """Compare tensors with the manifest.

    Raises:
        Invalid: one is missing, was added, or differs.
    """
    for name in sorted(set(manifest.tensors) | set(tensors)):
        listed, found = manifest.tensors.get(name), tensors.get(name)
        if listed is None or found is None:
            raise Invalid(f"tensor {name!r} is {'not listed in the manifest' if found else 'in no file'}")
        if found.sha256 != listed.sha256 or found.shape != listed.shape:
            raise Invalid(f"tensor {name!r} differs from the manifest in hash or shape")
