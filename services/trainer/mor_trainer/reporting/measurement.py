"""Measurement of a finished step: scored groups and the report of the update in, ``StepMetrics`` out."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from mor_core.step_metrics import (
    ClientFigures,
    DomainFigures,
    Overlap,
    PhaseSeconds,
    SourceFigures,
    StageTimes,
    StepMetrics,
)
from mor_core.wire import RewardRecord

from mor_trainer.algorithm.dynamic_sampling import zero_variance
from mor_trainer.groups.ledger import GroupCounts
from mor_trainer.groups.prompt_order import PromptOrder
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.reporting.response_figures import agreement, identical_ratio
from mor_trainer.update.updater import UpdateReport

_FLAT_LOGITS = 1e-6
"""Standard deviation of a group's rewards, logits, up to which they count as all alike: no more than rounding."""
_STAMP_OF_STAGE = {"sampled": "rollout", "scored": "router"}


@dataclass(frozen=True)
class RunTotals:
    """Counts of the run so far."""

    weights_version: int
    """Newest published version."""
    groups_drawn: int
    """Groups that were ever issued."""
    groups_applied: int
    groups_skipped: int
    groups_dropped: int
    groups_retried: int
    groups_duplicate: int

    @classmethod
    def of(cls, weights_version: int, groups: GroupCounts) -> Self:
        """Return the counts by which the exchange and the policy stand now."""
        return cls(
            weights_version=weights_version,
            groups_drawn=groups.drawn,
            groups_applied=groups.applied,
            groups_skipped=groups.skipped,
            groups_dropped=groups.dropped,
            groups_retried=groups.retried,
            groups_duplicate=groups.duplicate,
        )


@dataclass(frozen=True)
class FinishedStep:
    """A training step with everything that is reported of it."""

    taken: Sequence[ScoredGroup]
    """Groups that were trained on."""
    skipped: Sequence[ScoredGroup]
    """Groups that were replaced because their rewards were all alike."""
    update: UpdateReport
    began_at: float
    """Unix time, seconds."""
    trained: tuple[float, float]
    """Unix times at which the update began and ended."""
    seconds: float
    phases: PhaseSeconds
    totals: RunTotals
    order: PromptOrder
    """Order in which the run draws its prompts."""

    @property
    def scored(self) -> list[RewardRecord]:
        """Records of all groups, the skipped ones included."""
        return [item.record for item in (*self.taken, *self.skipped)]


def measure(
    step: FinishedStep,
    *,
    gate_version: int,
    failures_total: Mapping[str, Mapping[str, int]],
    updates: Iterable[tuple[float, float]],
) -> StepMetrics:
    """Compute the metrics of a step.

    Args:
        gate_version: newest gate version that scored a group of the step.
        failures_total: groups of the run that each client failed, by status.
        updates: Unix times of beginning and end of the latest updates, for the overlap with them.
    """
    records, update, sums = step.scored, step.update, step.update.sums
    lengths = [len(ids) for item in step.taken for ids in item.tokens.response_token_ids]
    reasons = [reason for item in step.taken for reason in item.record.rollout.finish_reasons]
    staleness = [item.staleness for item in step.taken]
    rewards = [reward for record in records for reward in record.rewards]
    flat = sum(zero_variance(record.rewards, _FLAT_LOGITS) for record in records)
    left = _left_at(step.taken)
    return StepMetrics(
        reward_mean=_mean(rewards),
        reward_std=statistics.pstdev(rewards) if rewards else None,
        group_reward_std=_mean([statistics.pstdev(record.rewards) for record in records]),
        zero_variance_ratio=_share(flat, len(records)),
        client_agreement=_mean([found for record in records if (found := agreement(record)) is not None]),
        mixture_entropy=_mean([record.entropy for record in records]),
        clients=_client_figures(records, failures_total),
        domains=_domain_figures(records),
        sources=_source_figures(step),
        kl=update.kl,
        entropy=update.entropy,
        loss=update.loss,
        objective=sums.objective,
        clip_low_ratio=_share(sums.clipped_low, sums.tokens),
        clip_high_ratio=_share(sums.clipped_high, sums.tokens),
        importance_limited_ratio=_share(sums.limited, sums.tokens),
        importance_ratio_mean=sums.ratio.mean,
        importance_ratio_max=sums.ratio.largest if sums.tokens else None,
        engine_difference=update.engine_difference,
        effective_sample_share=sums.ratio.effective_sample_share,
        grad_norm=update.grad_norm,
        lr=update.lr,
        skipped_updates=update.skipped,
        response_tokens=sums.tokens,
        processed_tokens=update.processed_tokens,
        response_length_mean=_mean(lengths),
        truncation_ratio=_share(reasons.count("length"), len(reasons)),
        identical_ratio=identical_ratio(records),
        single_token_ratio=_share(
            sum(length - (reason == "stop") <= 1 for length, reason in zip(lengths, reasons, strict=True)), len(reasons)
        ),
        staleness_mean=_mean(staleness),
        staleness_max=max(staleness, default=None),
        queue_wait=_mean(_waits(step.taken)),
        weights_version=step.totals.weights_version,
        gate_version=gate_version,
        groups_applied=step.totals.groups_applied,
        groups_skipped=step.totals.groups_skipped,
        groups_dropped=step.totals.groups_dropped,
        groups_retried=step.totals.groups_retried,
        groups_duplicate=step.totals.groups_duplicate,
        applied=tuple(item.record.group_id for item in step.taken),
        sampled_by=tuple(sorted({one for item in step.taken for one in item.record.rollout.versions})),
        step_seconds=step.seconds,
        seconds=step.phases,
        tokens_per_second=sums.tokens / step.seconds,
        begun_at=step.began_at,
        stages=StageTimes(trained=step.trained, **{stage: (min(at), max(at)) for stage, at in left.items()}),
        overlap=Overlap(**_overlap(left, list(updates))),
    )


def client_failures(records: Iterable[RewardRecord]) -> dict[str, Counter[str]]:
    """Count the groups that each client failed, by status; a shadow client cannot fail a group."""
    failures: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for score in record.clients:
            if score.status not in ("ok", "shadow"):
                failures[score.client][score.status] += 1
    return failures


def _client_figures(
    records: Sequence[RewardRecord], failures_total: Mapping[str, Mapping[str, int]]
) -> dict[str, ClientFigures]:
    scores = defaultdict(list)
    for record in records:
        for score in record.clients:
            scores[score.client].append(score)
    failures = client_failures(records)
    return {
        client: ClientFigures(
            reward_mean=_mean([value for score in own for value in score.calibrated or ()]),
            raw_mean=_mean([value for score in own for value in score.raw or ()]),
            weight=_mean([score.weight for score in own]),
            seconds=_mean([score.seconds for score in own if score.seconds is not None and score.raw is not None]),
            failures=dict(failures.get(client, {})),
            failures_total=dict(failures_total.get(client, {})),
        )
        for client, own in sorted(scores.items())
    }


def _domain_figures(records: Iterable[RewardRecord]) -> dict[str, DomainFigures]:
    by_domain: dict[str, list[RewardRecord]] = defaultdict(list)
    for record in records:
        if record.rollout.prompt.domain:
            by_domain[record.rollout.prompt.domain].append(record)
    return {
        domain: DomainFigures(
            groups=len(own),
            reward_mean=_mean([reward for record in own for reward in record.rewards]),
            weights=_mean_weights(own),
        )
        for domain, own in sorted(by_domain.items())
    }


def _source_figures(step: FinishedStep) -> dict[str, SourceFigures]:
    rewards: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for item in (*step.taken, *step.skipped):
        rewards[step.order.draw(item.number).source].append(item.record.rewards)
    draws = step.totals.groups_drawn
    return {
        source.name: SourceFigures(
            groups=len(rewards[place]),
            reward_mean=_mean([reward for group in rewards[place] for reward in group]),
            drawn=step.order.drawn(place, draws),
            drawn_ratio=_share(step.order.drawn(place, draws), draws),
            expected_ratio=_share(step.order.expected(place, draws), draws),
            epochs=step.order.epochs(place, draws),
        )
        for place, source in enumerate(step.order.sources)
        if source.name
    }


def _mean_weights(records: Iterable[RewardRecord]) -> dict[str, float | None]:
    weights: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for score in record.clients:
            weights[score.client].append(score.weight)
    return {client: _mean(values) for client, values in sorted(weights.items())}


def _waits(taken: Iterable[ScoredGroup]) -> list[float]:
    """List the seconds from scored to read; clocks of two machines may differ, so none is less than 0."""
    return [
        max(0.0, item.received_at - item.record.stamps["router"]) for item in taken if "router" in item.record.stamps
    ]


def _left_at(taken: Sequence[ScoredGroup]) -> dict[str, list[float]]:
    """List the Unix times at which groups left each stage, for the stages that stamped any."""
    times = {
        stage: [item.record.stamps[stamp] for item in taken if stamp in item.record.stamps]
        for stage, stamp in _STAMP_OF_STAGE.items()
    }
    return {stage: found for stage, found in times.items() if found}


def _overlap(left: Mapping[str, Sequence[float]], updates: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return by stage the share of groups that left it during one of ``updates``."""
    return {
        stage: statistics.fmean(any(begin < at < end for begin, end in updates) for at in times)
        for stage, times in left.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
