"""Published versions of the policy: address, files and tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from mor_core.patterns import matching
from mor_core.wire.base import Count, RunId, Sha256, Wire

WEIGHTS_FORMAT = 2
"""Newest format of published weights. 1: SHA-256 of each file and tensor. 2: BLAKE3, and deltas."""

Algorithm = Literal["sha256", "blake3"]
"""Hash function of a version's checksums."""
Blake3 = Annotated[str, matching(r"^[0-9a-f]{64}$", "64 lower-case hexadecimal digits")]

FileName = Annotated[str, matching(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$", "a plain name of a file, without a folder")]
"""Plain name, so that a manifest cannot lead out of its folder."""


class WeightsRef(Wire):
    """Reference to a published version of the policy. Each reader knows run control's address by its own settings."""

    version: Count

    @model_validator(mode="before")
    @classmethod
    def _without_address(cls, given: Any) -> Any:
        """Drop the address that records of earlier versions, such as those of a replay log, carry."""
        return {name: value for name, value in given.items() if name != "url"} if isinstance(given, dict) else given


class HashedEntry(Wire):
    """Bytes with their checksum, by one of two hash functions."""

    sha256: Sha256 | None = None
    blake3: Blake3 | None = None

    @model_validator(mode="after")
    def _one_checksum(self) -> Self:
        if (self.sha256 is None) == (self.blake3 is None):
            raise ValueError("one checksum is wanted, sha256 or blake3; publish the version again")
        return self

    @property
    def algorithm(self) -> Algorithm:
        return "sha256" if self.blake3 is None else "blake3"

    @property
    def checksum(self) -> str:
        return self.sha256 or self.blake3 or ""


class WeightsFile(HashedEntry):
    """File of a version. ``mor_core.weight_checksums`` says what its checksum covers."""

    name: FileName
    bytes: Count


class WeightsDelta(WeightsFile):
    """Delta, see ``mor_core.weight_delta``, that makes a version's only file of that of an earlier version."""

    base: Count
    """The earlier version."""


class TensorInfo(HashedEntry):
    """Tensor of a version; its checksum covers the contiguous little-endian bytes."""

    dtype: str
    """Name of the type in safetensors: ``F32``, ``BF16``."""
    shape: tuple[Count, ...]


class WeightsManifest(Wire):
    """Files and tensors of a published version of the policy."""

    run: RunId
    version: Count
    base: str
    """Checkpoint that holds every tensor that is not listed here: local path or hub name."""
    kind: Literal["full", "lora"]
    """``full``: ``tensors`` replace the base's by name. ``lora``: the files are a PEFT adapter folder."""
    files: tuple[WeightsFile, ...]
    """Each is served at ``{manifest url}/{name}``."""
    tensors: dict[str, TensorInfo]
    """By the names of the base checkpoint (``full``) or of the adapter file (``lora``)."""
    delta: WeightsDelta | None = None
    """Served like ``files``. Whoever has its base may apply it; ``files`` hold the version whole all the same."""

    @model_validator(mode="after")
    def _each_file_once(self) -> WeightsManifest:
        if len({file.name for file in self.served}) < len(self.served):
            raise ValueError("a file is listed twice; publish the version again")
        return self

    @property
    def served(self) -> tuple[WeightsFile, ...]:
        """Files of the version, its delta included."""
        return self.files if self.delta is None else (*self.files, self.delta)
