"""Number format of published weights: that in which engines compute, because more digits are rounded there anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from mor_core.adapted_layers import is_expert_router
from mor_core.run_status import EngineLimits
from mor_core.wire import Algorithm
from torch import Tensor

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLAKE3_FORMAT = 2
"""First of ``mor_core.wire.WEIGHTS_FORMAT`` with BLAKE3."""


class PublishedType:
    """Number format of the matrices that a run publishes, and the checksums of its versions."""

    def __init__(self, setting: str, model: str, engines: Callable[[], Sequence[EngineLimits]]) -> None:
        """``setting``: ``MOR_PUBLISHED_DTYPE``. ``engines`` returns what rollout services have reported."""
        self._setting = setting
        self._model = model
        self._engines = engines
        self._reported: Sequence[EngineLimits] = ()

    def current(self) -> torch.dtype:
        """Return the format of the next version.

        ``auto``: that of the rollout services which hold the run's model; float32 where they differ or are not known.
        """
        if self._setting != "auto":
            return _TYPES[self._setting]
        formats = {engine.dtype for engine in self._known_engines() if engine.model == self._model}
        return _TYPES.get(formats.pop() or "", torch.float32) if len(formats) == 1 else torch.float32

    def algorithm(self) -> Algorithm:
        """Return the hash function that every rollout service knows; SHA-256 while none has reported."""
        oldest = min((engine.weights_format for engine in self._known_engines()), default=1)
        return "blake3" if oldest >= _BLAKE3_FORMAT else "sha256"

    def _known_engines(self) -> Sequence[EngineLimits]:
        self._reported = self._engines() or self._reported  # none while run control is away
        return self._reported


class PublishedTensors(Mapping[str, Tensor]):
    """Tensors of a version, each converted when it is read, so that no second copy of the model is in memory.

    Matrices get the number format of the engines. Vectors are small, and engines compute with some of them, and with
    the routers of experts, in float32: these keep their own format.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._tensors = tensors
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].detach().to(self.type_of(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def type_of(self, name: str) -> torch.dtype:
        """Return the number format in which a tensor is published: never a wider one than it has."""
        tensor = self._tensors[name]
        narrower = tensor.is_floating_point() and self._dtype.itemsize < tensor.dtype.itemsize
        return self._dtype if narrower and tensor.dim() > 1 and not is_expert_router(name) else tensor.dtype

    def shape_of(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def bytes_of(self, name: str) -> int:
        return self._tensors[name].numel() * self.type_of(name).itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as they are published."""
        return sum(map(self.bytes_of, self._tensors))
