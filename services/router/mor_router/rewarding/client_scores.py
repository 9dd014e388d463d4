"""Lines of a group's explanation, one for each client: scores, weight, reason without weight; the group's metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mor_core.wire import ClientScore, ModelRef

from mor_router import metrics
from mor_router.clients.responses import ClientResponse
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, ood_score
from mor_router.mathematics.quorum import NoQuorum
from mor_router.rewarding.scoring_plan import ScoringPlan, stale_reason


def weighted(
    plan: ScoringPlan,
    gate_weights: Mapping[str, float],
    answers: Mapping[str, ClientResponse],
    outcome: FusedGroup | NoQuorum,
) -> tuple[ClientScore, ...]:
    """List the clients with weight in this group, in the gate's order."""
    fitted_on = [part.models for part in plan.gates.parts]
    scores = []
    for name, share in gate_weights.items():
        answer = answers[name]
        stale = stale_reason(name, answer.model, fitted_on)
        used: dict[str, Any] = {}
        if isinstance(outcome, FusedGroup) and name in outcome.clients:
            k = outcome.clients.index(name)
            used = {
                "standardised": tuple(outcome.standardised[k].tolist()),
                "calibrated": tuple(outcome.calibrated[k].tolist()),
                "weight": float(outcome.weights[k]),
            }
        scores.append(
            ClientScore(
                client=name,
                model=answer.model,
                status=answer.status,
                detail=stale or answer.detail,
                raw=answer.scores,
                gate_weight=share,
                seconds=answer.seconds,
                **used,
            )
        )
    return tuple(scores)


def not_called(plan: ScoringPlan, called: Collection[str]) -> tuple[ClientScore, ...]:
    """List the clients with weight in other groups that were not called for this one."""
    return tuple(
        ClientScore(client=name, status="not_asked", detail=plan.reason_without_weight(name))
        for name in plan.weighted_clients
        if name not in called
    )


def unweighted(plan: ScoringPlan, answers: Mapping[str, ClientResponse]) -> tuple[ClientScore, ...]:
    """List the clients that have no weight in any group of this plan, and why."""
    scores = []
    for name, record in plan.records.items():
        answer = answers.get(name)
        if answer is not None and answer.status == "not_asked":  # the rule came after the plan
            scores.append(ClientScore(client=name, status="not_asked", detail=answer.detail))
        elif name in plan.shadows:
            why = plan.reason_without_weight(name)
            if answer is None:
                why += "; slower than the weighted clients"
            elif answer.status != "ok":
                why += f"; {answer.status}: {answer.detail}"
            given = answer or ClientResponse("ok")
            scores.append(
                ClientScore(
                    client=name, status="shadow", detail=why, model=given.model, raw=given.scores, seconds=given.seconds
                )
            )
        elif name in plan.unasked or record.state in ("paused", "quarantined", "probation"):
            scores.append(ClientScore(client=name, status="not_asked", detail=plan.reason_without_weight(name)))
    return tuple(scores)


def observe_models(plan: ScoringPlan, serves: Mapping[str, ModelRef]) -> None:
    """Show in the metrics which weighted clients serve another model than the gate was fitted on."""
    fitted_on = [part.models for part in plan.gates.parts]
    for name in plan.weighted_clients:
        if name in serves:
            metrics.STALE_CALIBRATION.labels(name).set(stale_reason(name, serves[name], fitted_on) is not None)


def observe(fused: FusedGroup, objective_weights: Sequence[ObjectiveWeights]) -> None:
    """Count a scored group in the metrics."""
    metrics.OOD_SCORE.observe(ood_score(objective_weights))
    means, deviations = fused.calibrated.mean(axis=1).tolist(), fused.calibrated.std(axis=1).tolist()
    lines = zip(fused.clients, means, deviations, fused.weights.tolist(), fused.slopes.tolist(), strict=True)
    for client, mean, deviation, weight, slope in lines:
        metrics.CLIENT_REWARD.labels(client).observe(mean)
        metrics.CLIENT_REWARD_STD.labels(client).observe(deviation)
        metrics.WEIGHT.labels(client).observe(weight)
        metrics.SLOPE.labels(client).observe(slope)
    metrics.REWARD.observe(float(fused.rewards.mean()))
    metrics.REWARD_STD.observe(float(fused.rewards.std()))
    metrics.ENTROPY.observe(fused.entropy)
    metrics.DISAGREEMENT.observe(fused.disagreement)
    if len(set(fused.rewards.tolist())) == 1:
        metrics.ZERO_VARIANCE.inc()
