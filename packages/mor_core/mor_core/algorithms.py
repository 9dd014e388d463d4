"""Typed configuration of the policy optimisation: one class for each loss, advantage, KL estimator and correction.

The mathematics is the trainer's (``mor_trainer.loss``, ``.advantage``, ``.kl``, ``.importance``); these are the values
that a run is created with.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from mor_core.wire import Wire


class Config(Wire):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Clip(Config):
    """Range of the probability ratio within which a token's gradient counts in full."""

    low: float = Field(0.2, gt=0, lt=1)
    """Distance below 1: a token whose ratio fell under ``1 - low`` is not pushed down further."""
    high: float = Field(0.2, gt=0)
    """Distance above 1: a token whose ratio rose over ``1 + high`` is not pushed up further."""


class Grpo(Config):
    """Each response counts the same: mean over its tokens, then over responses (arXiv 2402.03300, eq. 3)."""

    kind: Literal["grpo"] = "grpo"
    clip: Clip = Clip()
    """Clip range of the ratio, the same above and below by default."""


class DrGrpo(Config):
    """Each token counts the same, divided by the constant ``max_tokens`` (arXiv 2503.20783)."""

    kind: Literal["dr_grpo"] = "dr_grpo"
    clip: Clip = Clip()
    """Clip range of the ratio, the same above and below by default."""


class Dapo(Config):
    """Each token of an update counts the same, wider clip above (arXiv 2503.14476)."""

    kind: Literal["dapo"] = "dapo"
    clip: Clip = Clip(low=0.2, high=0.28)
    """Clip range of the ratio, wider above by default."""


Loss = Annotated[Grpo | DrGrpo | Dapo, Field(discriminator="kind")]


class GroupStd(Config):
    """(R - mean) / max(std, floor) within the group."""

    kind: Literal["group_std"] = "group_std"
    floor: float = Field(0.1, gt=0)
    """Smallest divisor, logits: a group all clients are indifferent to gets almost no advantage."""


class MeanOnly(Config):
    """R - mean within the group (Dr.GRPO)."""

    kind: Literal["mean_only"] = "mean_only"


Advantage = Annotated[GroupStd | MeanOnly, Field(discriminator="kind")]


class Kl(Config):
    """Penalty on the divergence of the policy from the reference policy."""

    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per-token estimator (J. Schulman, "Approximating KL divergence")."""
    beta: float = Field(0.02, ge=0)
    """Weight of the penalty in the loss, per nat; 0 leaves the reference out of the computation."""
    corrected: bool = True
    """Weight each token by the policy/sampler ratio, so that the expected gradient is the gradient of the KL."""

    @model_validator(mode="after")
    def _k1_needs_correction(self) -> Kl:
        if self.estimator == "k1" and not self.corrected and self.beta > 0:
            raise ValueError("k1 without correction has zero expected gradient; set corrected=true or take k2 or k3")
        return self


class Importance(Config):
    """What happens to tokens whose probability differs much between the sampling engine and the trainer."""

    kind: Literal["truncate", "mask", "none"] = "truncate"
    """``truncate``: the ratio counts as ``cap`` at most; ``mask``: tokens outside [1/cap, cap] get no gradient."""
    cap: float = Field(2.0, gt=1)
    """Largest ratio trainer/engine that is taken at face value."""


class Algorithm(Config):
    """How scored groups become an update."""

    loss: Loss = Grpo()
    """Clipped token-level objective."""
    advantage: Advantage = GroupStd()
    """Baseline and scale of rewards within a group."""
    kl: Kl = Kl()
    """Penalty towards the reference policy, which is the model that the run started from."""
    importance: Importance = Importance()
    """Correction between the engine that sampled and the trainer."""
