"""What a step tells: its metrics and a few sample groups, as JSON values. Not known is null, never 0."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mor_core.wire import RewardRecord

from mor_trainer.algorithm.dynamic_sampling import zero_variance
from mor_trainer.groups.scored import Taken
from mor_trainer.reporting import thumbnails
from mor_trainer.update.updater import UpdateReport

_SAMPLES = 2
_TEXT_CHARACTERS = 2000
_ALIKE = 1e-6
"""Spread of rewards, logits, under which a group teaches nothing."""


def mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def reward_metrics(records: Sequence[RewardRecord]) -> dict[str, Any]:
    """Rewards, mixture weights and failures, fused and for each client and domain label."""
    rewards = [reward for record in records for reward in record.rewards]
    weights: dict[str, list[float]] = defaultdict(list)
    calibrated: dict[str, list[float]] = defaultdict(list)
    raw: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    failures: dict[str, Counter[str]] = defaultdict(Counter)
    domains: dict[str, list[RewardRecord]] = defaultdict(list)
    for record in records:
        domains[record.rollout.prompt.domain or ""].append(record)
        for score in record.clients:
            weights[score.client].append(score.weight)
            calibrated[score.client].extend(score.calibrated or ())
            raw[score.client].extend(score.raw or ())
            if score.seconds is not None and score.raw is not None:
                seconds[score.client].append(score.seconds)
            if score.status not in ("ok", "shadow"):
                failures[score.client][score.status] += 1
    flat = [record for record in records if zero_variance(record.rewards, _ALIKE)]
    return {
        "reward_mean": mean(rewards),
        "reward_std": statistics.pstdev(rewards) if rewards else None,
        "group_reward_std": mean([statistics.pstdev(record.rewards) for record in records]),
        "zero_variance_ratio": len(flat) / len(records) if records else None,
        "mixture_entropy": mean([record.entropy for record in records]),
        "clients": {
            client: {
                "reward_mean": mean(calibrated[client]),
                "raw_mean": mean(raw[client]),
                "weight": mean(weights[client]),
                "seconds": mean(seconds[client]),
                "failures": dict(failures[client]),
            }
            for client in sorted(weights)
        },
        "domains": {
            domain: {
                "groups": len(group),
                "reward_mean": mean([reward for record in group for reward in record.rewards]),
                "weights": _mean_weights(group),
            }
            for domain, group in sorted(domains.items())
            if domain
        },
    }


def _mean_weights(records: Sequence[RewardRecord]) -> dict[str, float | None]:
    weights: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for score in record.clients:
            weights[score.client].append(score.weight)
    return {client: mean(values) for client, values in sorted(weights.items())}


def update_metrics(report: UpdateReport) -> dict[str, Any]:
    """Optimisation metrics."""
    sums = report.sums
    return {
        "kl": finite(report.kl),
        "entropy": finite(report.entropy),
        "loss": finite(report.loss),
        "objective": finite(sums.objective),
        "clip_low_ratio": sums.clipped_low / sums.tokens if sums.tokens else None,
        "clip_high_ratio": sums.clipped_high / sums.tokens if sums.tokens else None,
        "grad_norm": finite(report.grad_norm),
        "lr": report.lr,
        "importance_limited_ratio": sums.limited / sums.tokens if sums.tokens else None,
        "importance_ratio_mean": finite(sums.ratio.mean),
        "importance_ratio_max": finite(sums.ratio.largest) if sums.tokens else None,
        "effective_sample_share": finite(sums.ratio.effective_sample_share),
        "skipped_updates": report.skipped,
        "response_tokens": sums.tokens,
        "processed_tokens": report.processed_tokens,
    }


def group_metrics(taken: Sequence[Taken]) -> dict[str, Any]:
    """Lengths, truncation, staleness, and seconds from scored to read."""
    lengths = [len(ids) for item in taken for ids in item.group.tokens.response_token_ids]
    reasons = [reason for item in taken for reason in item.group.record.rollout.finish_reasons]
    staleness = [item.staleness for item in taken]
    waits = [
        max(0.0, item.group.received_at - item.group.record.stamps["router"])
        for item in taken
        if "router" in item.group.record.stamps
    ]
    return {
        "staleness_mean": mean(staleness),
        "staleness_max": max(staleness, default=None),
        "response_length_mean": mean(lengths),
        "queue_wait": mean(waits),
        "truncation_ratio": reasons.count("length") / len(reasons) if reasons else None,
    }


def stages(taken: Sequence[Taken], updates: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """When a step's groups left each stage, first and last in Unix time, and what share of them left it while one of
    ``updates``, from beginning to end, was being computed."""
    updates = list(updates)
    times: dict[str, list[float]] = {}
    for name, stamp in (("sampled", "rollout"), ("scored", "router")):
        found = [item.group.record.stamps[stamp] for item in taken if stamp in item.group.record.stamps]
        if found:
            times[name] = found
    during = {name: [any(begin < at < end for begin, end in updates) for at in found] for name, found in times.items()}
    return {
        "stages": {name: [min(found), max(found)] for name, found in times.items()},
        "overlap": {name: sum(within) / len(within) for name, within in during.items()},
    }


def finite(value: float | None) -> float | None:
    """JSON has no NaN; a number that is none is not known."""
    return value if value is not None and math.isfinite(value) else None


def samples(
    taken: Sequence[Taken],
    advantages: Sequence[Sequence[float]],
    step: int,
    images: Callable[[int], Mapping[str, bytes]],
) -> dict[str, Any]:
    """A few groups of the step with everything that led to their advantages, and thumbnails of their pictures.

    ``images``: encoded pictures of a group's prompt, by its number.
    """
    chosen = sorted(random.Random(step).sample(range(len(taken)), min(_SAMPLES, len(taken))))
    pictures = {digest: content for index in chosen for digest, content in images(taken[index].number).items()}
    return {
        "groups": [_sample(taken[index].group.record, advantages[index]) for index in chosen],
        "thumbnails": thumbnails.encoded(pictures),
    }


def _sample(record: RewardRecord, advantages: Sequence[float]) -> dict[str, Any]:
    prompt = record.rollout.prompt
    return {
        "group_id": record.group_id,
        "prompt_id": prompt.prompt_id,
        "domain": prompt.domain,
        "prompt": "\n".join(f"{message.role}: {message.text}" for message in prompt.messages)[:_TEXT_CHARACTERS],
        "images": [digest for message in prompt.messages for digest in message.image_hashes],
        "weights_version": record.rollout.weights_version,
        "gate_version": record.gate_version,
        "fusion": record.fusion,
        "responses": [text[:_TEXT_CHARACTERS] for text in record.rollout.responses],
        "rewards": list(record.rewards),
        "advantages": list(advantages),
        "clients": [
            {
                "client": score.client,
                "status": score.status,
                "detail": score.detail,
                "weight": score.weight,
                "raw": score.raw,
                "calibrated": score.calibrated,
            }
            for score in record.clients
        ],
    }
