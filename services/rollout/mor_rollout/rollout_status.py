"""Response schemas of ``/v1/status`` and ``/v1/models``."""

from __future__ import annotations

from typing import Literal

from mor_core.wire import Documented


class WeightsCheck(Documented):
    """Result of the read-back after the last swap."""

    run: str | None
    version: int | None
    digest: str
    """SHA-256 over every tensor of the policy."""
    verified: int
    """Tensors whose copy in the engine was compared and is the same."""
    unverified: int
    """Tensors that could not be compared."""
    mismatched: tuple[str, ...]


class SwapSeconds(Documented):
    pull_s: float
    drain_s: float
    swap_s: float


class RolloutStatus(Documented):
    """State of the service. Unknown values are null."""

    state: Literal["starting", "self-test", "ready", "failed"]
    failure: str | None
    model: str
    backend: Literal["vllm", "transformers"]
    dtype: str
    run: str | None
    """Run whose policy is in use; null for the base checkpoint."""
    weights_version: int | None
    weights: WeightsCheck | None
    swaps: int
    last_swap: SwapSeconds | None
    groups_in_flight: int
    tokens_per_second: float | None
    """Mean over the last minute."""


class ServedModel(Documented):
    id: str
    object: Literal["model"]
    owned_by: str
    root: str
    """Base checkpoint."""


class ModelList(Documented):
    object: Literal["list"]
    data: list[ServedModel]
