"""Guards of a run: the figures by which run control notices a collapse, and what it does then."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mor_core.run_alerts import AlertName
from mor_core.wire import Documented

GuardAction = Literal["alert", "pause", "off"]
"""``alert`` raises an alert; ``pause`` also pauses the run, once; ``off`` does nothing."""
GuardName = Literal["kl", "entropy", "identical", "divergence", "zero_variance", "truncation"]

ALERT_OF_GUARD: dict[GuardName, AlertName] = {
    "kl": "kl_over_bound",
    "entropy": "entropy_collapse",
    "identical": "identical_responses",
    "divergence": "reward_diverges",
    "zero_variance": "groups_without_signal",
    "truncation": "responses_truncated",
}


class Guards(Documented):
    """Guards of a run. Each judges the median of the latest ``window`` steps, so that one noisy step decides nothing.

    A guard pauses a run once. A run that is resumed goes on, and the guard raises alerts from then on.
    """

    window: int = Field(10, ge=1, le=1000)
    """Steps that are judged together. A shorter run is not judged."""
    kl: GuardAction = "pause"
    """KL of the policy to the reference is over ``kl_nats``."""
    kl_nats: float = Field(1.0, gt=0)
    """Largest KL to the reference, nats a token."""
    entropy: GuardAction = "pause"
    """Entropy is under ``entropy_nats``, and under ``entropy_share`` of what it was at the beginning of the run."""
    entropy_nats: float = Field(0.05, ge=0)
    """Smallest entropy, nats a token."""
    entropy_share: float = Field(0.1, gt=0, le=1)
    """Smallest share of the entropy at the beginning, so that a policy that was certain from the start is none."""
    identical: GuardAction = "pause"
    """One text is more than ``identical_share`` of the responses to different prompts; or that share is single tokens,
    and one text more than half of it. Neither was so at the beginning."""
    identical_share: float = Field(0.9, gt=0, le=1)
    """Largest share of responses that are the same text, or a single token."""
    divergence: GuardAction = "alert"
    """The reward rises, while the evaluations or the agreement of the clients fall."""
    divergence_logits: float = Field(0.2, gt=0)
    """Fall of two evaluations in a row below the best one, and rise of the reward, that count, logits."""
    divergence_agreement: float = Field(0.3, gt=0, le=2)
    """Fall of ``client_agreement``, a correlation, that counts."""
    zero_variance: GuardAction = "alert"
    """More than ``zero_variance_share`` of the groups have rewards that are all alike."""
    zero_variance_share: float = Field(0.9, gt=0, le=1)
    """Largest share of groups without a signal."""
    truncation: GuardAction = "alert"
    """More than ``truncation_share`` of the responses are cut at ``sampling.max_tokens``."""
    truncation_share: float = Field(0.5, gt=0, le=1)
    """Largest share of truncated responses."""

    def action(self, guard: GuardName) -> GuardAction:
        """Return what is done when a guard finds a collapse."""
        found: GuardAction = getattr(self, guard)
        return found
