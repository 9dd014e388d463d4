"""Signs of a collapse in the figures of a run: medians over a window of steps, against bounds and the run's beginning.

Reward models are trusted near the answers that they were trained on (Gao et al., arXiv 2210.10760): a policy that is
rewarded for leaving them gets more reward and worse. It shows in KL, entropy and sameness first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mor_core.evaluated_steps import EvaluatedStep, best_step, comparable
from mor_core.guards import GuardName, Guards
from mor_core.step_metrics import StepMetrics, StepPoint


@dataclass(frozen=True)
class RunFigures:
    """Figures of a run by which its guards judge."""

    beginning: Sequence[StepPoint]
    """The first steps of the run, as many as a window has."""
    recent: Sequence[StepPoint]
    """The latest steps, oldest first: a window of them."""
    evaluated: Sequence[EvaluatedStep] = ()
    """All evaluations."""
    at_best: Sequence[StepPoint] = ()
    """The steps that end with the best evaluation, a window of them."""


def judge(guard: GuardName, guards: Guards, run: RunFigures) -> str | None:
    """Return what a guard found, for people; ``None`` where all is well, or too little is known."""
    return _JUDGES[guard](guards, run)


def _kl(guards: Guards, run: RunFigures) -> str | None:
    found = _median(run.recent, lambda step: step.kl)
    if found is None or found <= guards.kl_nats:
        return None
    return f"KL to the reference is {found:.2f} nats a token, over guards.kl_nats={guards.kl_nats:g}"


def _entropy(guards: Guards, run: RunFigures) -> str | None:
    found = _median(run.recent, lambda step: step.entropy)
    first = max(_known(run.beginning, lambda step: step.entropy), default=None)
    if found is None or first is None or found >= min(guards.entropy_nats, guards.entropy_share * first):
        return None
    return (
        f"entropy fell from {first:.3g} to {found:.3g} nats a token, under guards.entropy_nats={guards.entropy_nats:g} "
        f"and guards.entropy_share={guards.entropy_share:g} of the beginning"
    )


def _identical(guards: Guards, run: RunFigures) -> str | None:
    one_text = _over(guards.identical_share, run, lambda step: step.identical_ratio)
    if one_text is not None:
        return (
            f"one text is {one_text} of the responses to different prompts, over "
            f"guards.identical_share={guards.identical_share:g}"
        )
    # Where right answers are one word, nearly all responses of a good policy are; it answers with many words, though.
    token = _over(guards.identical_share, run, lambda step: step.single_token_ratio)
    alike = _median(run.recent, lambda step: step.identical_ratio)
    if token is None or alike is None or alike <= guards.identical_share / 2:
        return None
    return (
        f"{token} of the responses are a single token, over guards.identical_share={guards.identical_share:g}, and one "
        f"text is {alike:.0%} of them"
    )


def _over(bound: float, run: RunFigures, figure: Callable[[StepMetrics], float | None]) -> str | None:
    """Return a share that is over a bound, and was not at the beginning, with both values."""
    found = _median(run.recent, figure)
    first = min(_known(run.beginning, figure), default=None)
    if found is None or first is None or not found > bound >= first:
        return None
    return f"{found:.0%} (at the beginning {first:.0%})"


def _divergence(guards: Guards, run: RunFigures) -> str | None:
    if len({step.gate_version for step in (*run.recent, *run.beginning)}) == 1:
        rise = _rise(run.beginning, run.recent, lambda step: step.reward_mean)
        fall = _rise(run.beginning, run.recent, lambda step: step.client_agreement)
        if (
            rise is not None
            and fall is not None
            and rise > guards.divergence_logits
            and -fall > guards.divergence_agreement
        ):
            return (
                f"the reward rose by {rise:.2f} logits, while the clients' agreement (correlation) fell by "
                f"{-fall:.2f}, over guards.divergence_agreement={guards.divergence_agreement:g}"
            )
    if (best := best_step(run.evaluated)) is None:
        return None
    later = [one for one in comparable(run.evaluated) if one.step > best.step][-2:]
    if len({step.gate_version for step in (*run.recent, *run.at_best)}) != 1 or len(later) < 2:
        return None
    rise = _rise(run.at_best, run.recent, lambda step: step.reward_mean)
    if rise is None or rise <= 0 or any(best.reward - one.reward <= guards.divergence_logits for one in later):
        return None
    return (
        f"the reward rose by {rise:.2f} logits since step {best.step}, while the evaluation fell from "
        f"{best.reward:.2f} to {later[0].reward:.2f} and {later[1].reward:.2f}, by more than "
        f"guards.divergence_logits={guards.divergence_logits:g}"
    )


def _zero_variance(guards: Guards, run: RunFigures) -> str | None:
    found = _median(run.recent, lambda step: step.zero_variance_ratio)
    if found is None or found <= guards.zero_variance_share:
        return None
    return (
        f"{found:.0%} of the groups have rewards that are all alike, over "
        f"guards.zero_variance_share={guards.zero_variance_share:g}: there is nothing to learn from them"
    )


def _truncation(guards: Guards, run: RunFigures) -> str | None:
    found = _median(run.recent, lambda step: step.truncation_ratio)
    if found is None or found <= guards.truncation_share:
        return None
    return (
        f"{found:.0%} of the responses are cut at sampling.max_tokens, over "
        f"guards.truncation_share={guards.truncation_share:g}: their reward is that of a fragment"
    )


_JUDGES: dict[GuardName, Callable[[Guards, RunFigures], str | None]] = {
    "kl": _kl,
    "entropy": _entropy,
    "identical": _identical,
    "divergence": _divergence,
    "zero_variance": _zero_variance,
    "truncation": _truncation,
}


def _known(steps: Iterable[StepMetrics], figure: Callable[[StepMetrics], float | None]) -> list[float]:
    return [found for step in steps if (found := figure(step)) is not None]


def _median(steps: Sequence[StepMetrics], figure: Callable[[StepMetrics], float | None]) -> float | None:
    """Return the median of a figure; ``None`` where most steps lack it."""
    known = _known(steps, figure)
    return statistics.median(known) if 2 * len(known) > len(steps) else None


def _rise(
    before: Sequence[StepMetrics], after: Sequence[StepMetrics], figure: Callable[[StepMetrics], float | None]
) -> float | None:
    first, last = _median(before, figure), _median(after, figure)
    return None if first is None or last is None else last - first
