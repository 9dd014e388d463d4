"""Published versions of the policy: address, files and tensors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mor_core.wire.base import Sha256, Wire


class WeightsRef(Wire):
    """Reference to a published version of the policy."""

    version: Annotated[int, Field(ge=0)]
    url: str
    """Address of the version's manifest, ``…/v1/runs/{run}/weights/{version}``."""


class WeightsFile(Wire):
    name: str
    bytes: int
    sha256: Sha256


class TensorInfo(Wire):
    dtype: str
    """Name of the type in safetensors: ``F32``, ``BF16``."""
    shape: tuple[int, ...]
    sha256: Sha256
    """Hash of the tensor's contiguous little-endian bytes."""


class WeightsManifest(Wire):
    """Files and tensors of a published version of the policy."""

    run: str
    version: int
    base: str
    """Checkpoint that holds every tensor that is not listed here: local path or hub name."""
    kind: Literal["full", "lora"]
    """``full``: ``tensors`` replace the base's by name. ``lora``: the files are a PEFT adapter folder."""
    files: tuple[WeightsFile, ...]
    """Each is served at ``{manifest url}/{name}``."""
    tensors: dict[str, TensorInfo]
    """By the names of the base checkpoint (``full``) or of the adapter file (``lora``)."""
