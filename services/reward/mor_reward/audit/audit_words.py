"""Findings of an audit in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from mor_core.wire import MembershipAttack, PrivacyUnit

from mor_reward.audit.audit_job import AuditFindings

HARMLESS_AUC = 0.6
"""AUC below which an attack is of little use: of ten guesses between a member and another, six are right at most."""
_FEW_LABELS = 0.2
"""Share of memorised labels up to which their interval counts as close to none."""
_KNOWN: dict[PrivacyUnit, str] = {
    "pair": "the pair",
    "picture": "the picture, its questions and both answers",
    "person": "the person's pictures, their questions and both answers",
}
"""Knowledge that an attack of each unit needs."""
_FEWEST = 100
"""Non-members below which 1 % of them is less than one."""


def sentences(findings: AuditFindings) -> Iterator[str]:
    """Yield what a router could learn from the model's scores, one statement at a time."""
    record = findings.record
    for attack in record.statement.attacks:
        yield _membership(attack)
    labels = record.labels
    if labels.memorised is not None and labels.memorised_interval is not None:
        low, high = labels.memorised_interval
        share = f"{labels.against_pattern_told:.0%} of the {labels.against_pattern} training pairs"
        verdict = "it memorised labels" if low > 0 else _no_memory(high)
        yield (
            f"Labels: of pairs whose label is unusual, the model tells {share}, and "
            f"{labels.against_pattern_told_held_out:.0%} of the {labels.against_pattern_held_out} held-out ones "
            f"(difference {labels.memorised:+.0%}, 95 % interval {low:+.0%} to {high:+.0%}): {verdict}."
        )
    else:
        yield (
            f"Labels: the model tells {labels.told:.0%} of the training labels and {labels.told_held_out:.0%} of the "
            "held-out ones; which of them it memorised, only shadow models show."
        )
    epsilon = record.statement.epsilon_lower
    if epsilon:
        yield f"No training with differential privacy of ε below {epsilon:.2f} (δ = 0) explains these guesses."
    claim = findings.manifest.privacy
    if epsilon and claim is not None and claim.unit != "pair" and epsilon > claim.epsilon:
        yield (
            f"That contradicts the ε = {claim.epsilon:g} on the card: the start or --dp-public was not public, or the "
            "training has a fault. Do not rely on the claim, and report it."
        )
    if findings.unlike is not None:
        yield (
            f"Models that were trained on neither tell the pairs of --unseen from those of --data (AUC "
            f"{findings.unlike:.2f}): they are of different kinds, and the figures above tell these apart too. Give "
            "--unseen pairs that were collected in the same way."
        )
    if findings.without_shadows is not None:
        yield f"No shadow models were trained, so that stronger attacks are untried: {findings.without_shadows}."


def _membership(attack: MembershipAttack) -> str:
    low, high = attack.auc_interval
    if low <= 0.5 and high <= HARMLESS_AUC:
        verdict = "close to guessing"
    elif low <= 0.5:
        verdict = f"nothing is proven, and there are too few {attack.unit}s to rule it out"
    elif high <= HARMLESS_AUC:
        verdict = "slightly better than guessing"
    else:
        verdict = "better than guessing; consider training with differential privacy, or fewer epochs"
    few = " or none" if attack.non_members < _FEWEST else ""
    return (
        f"Was this {attack.unit} trained on? A router that has {_KNOWN[attack.unit]} guesses right "
        f"{attack.auc:.0%} of the time between a trained and another one (95 % interval {low:.0%} to {high:.0%}): "
        f"{verdict}. It recognises {attack.true_positives:.1%} of the {attack.members} trained ones while it "
        f"mistakes 1 %{few} of the {attack.non_members} others."
    )


def _no_memory(high: float) -> str:
    """Return the verdict on labels where none are proven; ``high``: upper end of the memorised share."""
    return (
        "close to none were memorised" if high <= _FEW_LABELS else "none are proven, and too few pairs to rule it out"
    )
