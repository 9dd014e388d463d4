"""Limits on the prompts of a run: of the rollout services that sample for it, its model and its specification."""

from __future__ import annotations

from collections.abc import Sequence

from mor_core.model_family import model_length
from mor_core.prompt_limits import PromptLimits
from mor_core.run_status import EngineLimits
from mor_core.runs import RunSpec


def run_limits(spec: RunSpec, engines: Sequence[EngineLimits]) -> PromptLimits:
    """Return the narrowest limits. Without a rollout service of the run's model, the model's own length counts.

    ``engines``: limits that rollout services have reported.
    """
    own = [engine for engine in engines if engine.model == spec.model]
    lengths = [engine.max_model_len for engine in own]
    if not lengths and (length := model_length(spec.model)) is not None:
        lengths = [length]
    usual = PromptLimits()
    return PromptLimits(
        model_len=min(lengths, default=None),
        images=min((engine.max_images for engine in own), default=None),
        response=spec.sampling.max_tokens,
        image_bytes=min([usual.image_bytes, *(engine.max_image_bytes for engine in own)]),
        micro_batch_tokens=spec.micro_batch_tokens,
    )
