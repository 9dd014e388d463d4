"""Sizes of a run on disk and in memory, from the parameters of its model and its specification.

Parameters, gradients and optimiser are float32: a parameter has 4 bytes, AdamW's two moments have 8. The size of a
version of the weights depends on the number format in which engines compute.
"""

from __future__ import annotations

from dataclasses import dataclass

from mor_core.optimisation import FullTuning
from mor_core.runs import RunSpec
from mor_core.weight_delta import LARGEST_SHARE

FORMAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by format."""
_FLOAT32 = 4
_MOMENTS = 8
_RUNTIME = 1 << 30
"""Main memory of Python, PyTorch and its libraries in one process, bytes."""


@dataclass(frozen=True)
class RunSize:
    """Bytes of what a run writes."""

    version: int
    """One version of the weights."""
    checkpoint: int
    """One checkpoint: trained parameters and optimiser."""
    final: int
    """The final model."""

    @classmethod
    def of(cls, parameters: int, trained: int, dtype: str) -> RunSize:
        """``dtype``: number format of the engines. ``trained``: parameters of ``parameters``, or of adapters."""
        return cls(
            version=FORMAT_BYTES[dtype] * trained,
            checkpoint=(_FLOAT32 + _MOMENTS) * trained,
            final=_FLOAT32 * parameters,
        )

    def under_way(self, spec: RunSpec) -> int:
        """Return the most that a run has on the disk: a new file is written before the oldest is deleted."""
        checkpoints = (spec.keep_checkpoints + 1) * self.checkpoint
        return checkpoints + (spec.keep_weights + 1) * self._with_delta() + self.final

    def ended(self, spec: RunSpec) -> int:
        """Return what an ended run leaves, without its final model, until run control deletes it."""
        return spec.keep_checkpoints * self.checkpoint + spec.keep_weights * self._with_delta()

    def pulled(self, kept: int) -> int:
        """Return the most that a rollout service has on its disk, ``MOR_WEIGHTS_KEPT`` versions and the next."""
        return (kept + 1) * self.version

    def _with_delta(self) -> int:
        """Return the bytes of a version and the largest delta."""
        return int((1 + LARGEST_SHARE) * self.version)


def rank_memory(parameters: int, trained: int, spec: RunSpec, ranks: int) -> int:
    """Return the device memory of one of ``ranks`` ranks, bytes, without activations."""
    training = _FLOAT32 * parameters + (_FLOAT32 + _MOMENTS) * trained
    return (training + _reference(trained, spec)) // ranks


def loading_memory(parameters: int, trained: int, spec: RunSpec) -> int:
    """Return the main memory of one rank while it loads the model, before the model goes to a device, bytes."""
    return _FLOAT32 * parameters + _reference(trained, spec) + _RUNTIME


def _reference(trained: int, spec: RunSpec) -> int:
    """Return the bytes of the reference's own copy; adapters need none."""
    has_copy = isinstance(spec.tuning, FullTuning) and spec.algorithm.kl.beta > 0
    return _FLOAT32 * trained if has_copy else 0
