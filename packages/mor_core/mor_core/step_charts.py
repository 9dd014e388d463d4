"""Charts of step metrics, in the dashboard's order; ``step_metrics`` says which metric is a line of which."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """Chart of the dashboard."""

    id: str
    section: str
    title: str
    unit: str
    note: str
    """Explanation under the title."""
    stacked: bool = False


REWARD = Chart(
    "reward",
    "Reward",
    "Reward",
    "logits",
    "Mean over the responses of a step: fused, and each client's calibrated scores.",
)
SPREAD = Chart(
    "spread",
    "Reward",
    "Reward spread",
    "logits",
    "Standard deviation over a step, and within a group; advantages come from the latter.",
)
WEIGHTS = Chart(
    "weights",
    "Mixture of clients",
    "Mixture weight",
    "share",
    "Mean share of each client in the fused reward.",
    stacked=True,
)
MIXTURE_ENTROPY = Chart(
    "mixture-entropy",
    "Mixture of clients",
    "Mixture entropy",
    "nats",
    "0: one client has all the weight of a group.",
)
KL = Chart("kl", "Policy", "KL to the reference", "nats a token", "How far the policy has moved.")
ENTROPY = Chart("entropy", "Policy", "Entropy", "nats a token", "Falling fast towards 0: the policy stops exploring.")
CLIP = Chart(
    "clip",
    "Policy",
    "Clip fractions",
    "share",
    "Share of tokens whose importance ratio was clipped, or limited by the correction.",
)
GRADIENT = Chart("gradient", "Policy", "Gradient norm", "L2", "Before clipping.")
FLAT = Chart(
    "flat",
    "Policy",
    "Groups without signal",
    "share",
    "Share of groups whose responses all got the same reward.",
)
IDENTICAL = Chart(
    "identical",
    "Policy",
    "Identical responses",
    "share",
    "Share of responses that are the most frequent text, or one token. One text near 1: the policy has collapsed.",
)
SOURCE_GROUPS = Chart(
    "source-groups",
    "Prompt sources",
    "Groups by source",
    "groups",
    "Scored groups of a step from each source of the run's prompts.",
    stacked=True,
)
SOURCE_REWARD = Chart(
    "source-reward", "Prompt sources", "Reward by source", "logits", "Mean fused reward of a step, by source."
)
LENGTH = Chart("length", "Rollouts", "Response length", "tokens", "Mean of a step.")
TRUNCATION = Chart("truncation", "Rollouts", "Truncated responses", "share", "Cut at max_tokens.")
STALENESS = Chart(
    "staleness", "Rollouts", "Staleness", "updates", "Updates between sampling a group and training on it."
)
STEP_TIME = Chart("seconds", "Speed", "Step time", "seconds", "Where a step's time went.", stacked=True)
THROUGHPUT = Chart("throughput", "Speed", "Tokens per second", "tokens/s", "Response tokens trained on.")

CHARTS = (
    *(REWARD, SPREAD),
    *(WEIGHTS, MIXTURE_ENTROPY),
    *(KL, ENTROPY, IDENTICAL, CLIP, GRADIENT, FLAT),
    *(SOURCE_GROUPS, SOURCE_REWARD),
    *(LENGTH, TRUNCATION, STALENESS),
    *(STEP_TIME, THROUGHPUT),
)
"""In the dashboard's order."""
