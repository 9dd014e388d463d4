"""Configuration of the policy optimisation: one class for each loss, advantage, KL estimator and correction.

``mor_trainer.algorithm`` has the mathematics, ``docs/algorithm.md`` the equations, sources and defaults.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mor_core.wire import Documented


class Clip(Documented):
    """Range of the probability ratio (policy over the policy that began the step) within which a gradient counts.

    The first update of a step has ratio 1, so the range matters with ``optimiser.updates_per_step`` over 1, or with
    ``importance.kind`` ``none``.
    """

    low: float = Field(0.2, gt=0, lt=1)
    """Distance below 1: a ratio that fell under ``1 - low`` is not pushed down further."""
    high: float = Field(0.2, gt=0)
    """Distance above 1: a ratio that rose over ``1 + high`` is not pushed up further."""


class WeightClip(Documented):
    """Range to which a ratio that serves as a weight is limited: beyond it the gradient is smaller, never zero."""

    low: float = Field(1.0, gt=0, le=1)
    """Distance below 1: no weight is under ``1 - low``. 1 sets no lower limit."""
    high: float = Field(4.0, gt=0)
    """Distance above 1: no weight is over ``1 + high``."""


class Grpo(Documented):
    """Each response counts the same: mean over its tokens, then over responses (arXiv 2402.03300, eq. 3)."""

    kind: Literal["grpo"] = "grpo"
    clip: Clip = Clip()
    """Clip range of a token's ratio, the same above and below by default."""


class DrGrpo(Documented):
    """Each token counts the same, divided by the constant ``max_tokens`` (arXiv 2503.20783)."""

    kind: Literal["dr_grpo"] = "dr_grpo"
    clip: Clip = Clip()
    """Clip range of a token's ratio, the same above and below by default."""


class Dapo(Documented):
    """Each token of an update counts the same, wider clip above (arXiv 2503.14476).

    The paper's dynamic sampling is ``Algorithm.dynamic_sampling`` and combines with any loss.
    """

    kind: Literal["dapo"] = "dapo"
    clip: Clip = Clip(low=0.2, high=0.28)
    """Clip range of a token's ratio, wider above by default."""


class Gspo(Documented):
    """The ratio of a whole response, normalised by its length, is clipped; responses count the same (2507.18071)."""

    kind: Literal["gspo"] = "gspo"
    clip: Clip = Clip(low=3e-4, high=4e-4)
    """Clip range of a response's ratio: the geometric mean of its tokens' ratios, hence far narrower than a token's."""


class Cispo(Documented):
    """Every token keeps its gradient, weighted by its clipped ratio; tokens count the same (arXiv 2506.13585)."""

    kind: Literal["cispo"] = "cispo"
    clip: WeightClip = WeightClip()
    """Limits of a token's weight; only an upper one by default."""


Loss = Annotated[Grpo | DrGrpo | Dapo | Gspo | Cispo, Field(discriminator="kind")]


class GroupStd(Documented):
    """(R - mean) / max(std, floor) within the group."""

    kind: Literal["group_std"] = "group_std"
    floor: float = Field(0.1, gt=0)
    """Smallest divisor, logits: a group without a preference of any client gets almost no advantage."""


class MeanOnly(Documented):
    """R - mean within the group (Dr.GRPO)."""

    kind: Literal["mean_only"] = "mean_only"


class BatchStd(Documented):
    """(R - mean within the group) / max(std over all responses of the step, floor) (REINFORCE++, arXiv 2501.03262)."""

    kind: Literal["batch_std"] = "batch_std"
    floor: float = Field(0.1, gt=0)
    """Smallest divisor, logits."""


Advantage = Annotated[GroupStd | MeanOnly | BatchStd, Field(discriminator="kind")]


class Kl(Documented):
    """Penalty on the divergence of the policy from the reference policy."""

    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per-token estimator (J. Schulman, "Approximating KL divergence")."""
    beta: float = Field(0.02, ge=0)
    """Weight of the penalty in the loss, per nat; 0 leaves the reference out of the computation."""
    corrected: bool = True
    """Weight each token by the policy/sampler ratio, limited as in ``importance``, so that the expected gradient is the
    gradient of the KL."""

    @model_validator(mode="after")
    def _k1_needs_correction(self) -> Kl:
        if self.estimator == "k1" and not self.corrected and self.beta > 0:
            raise ValueError("k1 without correction has zero expected gradient; set corrected=true or take k2 or k3")
        return self


class Importance(Documented):
    """Correction for the probability ratio of the trainer at the beginning of a step to the engine that sampled.

    The two differ by numerics and, where groups may be stale, by updates.
    """

    kind: Literal["truncate", "mask", "none"] = "truncate"
    """``truncate``: terms are weighted by the ratio, at most ``cap``; ``mask``: by the ratio where it is in
    [1/cap, cap], by 0 elsewhere; ``none``: no weight, and the loss clips the ratio of policy to engine directly."""
    level: Literal["token", "sequence"] = "token"
    """Ratio that a token is weighted by. ``token``: its own, little variance, some bias; ``sequence``: the product over
    the response, no bias up to the cap, variance that grows with the length."""
    cap: float = Field(2.0, gt=1)
    """Largest ratio trainer/engine that is used unchanged."""

    @model_validator(mode="after")
    def _none_has_no_level(self) -> Importance:
        if self.kind == "none" and self.level == "sequence":
            raise ValueError(
                "level='sequence' has no effect with kind='none'; take kind truncate or mask, or drop level"
            )
        return self


class DynamicSampling(Documented):
    """Replacement of groups whose rewards are all alike, and so carry no signal, by groups of further prompts."""

    tolerance: float = Field(0.01, ge=0)
    """Standard deviation of a group's rewards up to which they count as alike, logits."""
    max_factor: float = Field(3.0, gt=1)
    """Most groups that are sampled for a step, in multiples of ``groups_per_step``; beyond it groups are trained on
    whatever their rewards, so that a step ends even where all are alike."""

    def most_groups(self, groups_per_step: int) -> int:
        """Return how many groups are sampled for a step at most."""
        return int(self.max_factor * groups_per_step + 1e-9)


class OverlongMask(Documented):
    """Responses cut at ``max_tokens`` are not trained on: their reward is that of a part (DAPO, overlong filtering)."""

    kind: Literal["mask"] = "mask"


class OverlongPenalty(Documented):
    """Long responses lose reward, the more the nearer they come to ``max_tokens`` (DAPO, arXiv 2503.14476, eq. 13)."""

    kind: Literal["penalty"] = "penalty"
    buffer: int = Field(gt=0)
    """Tokens before ``max_tokens`` in which the penalty grows from 0 to its whole; less than ``max_tokens``."""
    weight: float = Field(1.0, gt=0, le=1e6)
    """Penalty of a response that reaches ``max_tokens``, logits."""


Overlong = Annotated[OverlongMask | OverlongPenalty, Field(discriminator="kind")]


class Algorithm(Documented):
    """Algorithm that turns scored groups into an update."""

    loss: Loss = Grpo()
    """Clipped objective, and the average over its tokens."""
    advantage: Advantage = GroupStd()
    """Baseline and scale of rewards within a group."""
    kl: Kl = Kl()
    """Penalty on the distance from the reference policy, the model that the run started from."""
    importance: Importance = Importance()
    """Correction for the difference between sampling engine and trainer."""
    dynamic_sampling: DynamicSampling | None = None
    """Replace groups whose rewards are all alike; null trains on all groups (their KL penalty still counts)."""
    overlong: Overlong | None = None
    """Treatment of responses that ``max_tokens`` cuts; null trains on them like on others."""
