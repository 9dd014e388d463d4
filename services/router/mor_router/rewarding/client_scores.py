"""The account of a group: what every client said, what it counted for, why one was left out; and the metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mor_core.wire import ClientScore, ModelRef

from mor_router import metrics
from mor_router.clients.registry import ClientRecord
from mor_router.clients.responses import ClientResponse
from mor_router.mathematics.fuse import Fused, Lens, NoQuorum, beyond


def stale(serves: ModelRef | None, fitted: ModelRef) -> str:
    """What is told of a client whose calibration was fitted on another model."""
    now = f"serves {serves.name} {serves.version}; " if serves is not None else ""
    return f"{now}its calibration was fitted on {fitted.name} {fitted.version}; fit the objective again"


def voters(
    gate_weights: Mapping[str, float],
    answers: Mapping[str, ClientResponse],
    outcome: Fused | NoQuorum,
    fitted_on: Sequence[Mapping[str, ModelRef]],
) -> tuple[ClientScore, ...]:
    """The clients with a say, in the gate's order. ``fitted_on``: client -> model, for each objective."""
    scores = []
    for name, share in gate_weights.items():
        answer = answers[name]
        fitted_before = [
            models[name]
            for models in fitted_on
            if name in models and answer.model is not None and answer.model != models[name]
        ]
        metrics.STALE_CALIBRATION.labels(name).set(bool(fitted_before))
        detail = answer.detail
        if fitted_before:
            detail = stale(answer.model, fitted_before[0])
        score = ClientScore(
            client=name,
            model=answer.model,
            status=answer.status,
            detail=detail,
            raw=answer.scores,
            gate_weight=share,
            seconds=answer.seconds,
        )
        if isinstance(outcome, Fused) and name in outcome.clients:
            k = outcome.clients.index(name)
            used = {
                "standardised": tuple(outcome.standardised[k].tolist()),
                "calibrated": tuple(outcome.calibrated[k].tolist()),
                "weight": float(outcome.weights[k]),
            }
            score = score.model_copy(update=used)
        scores.append(score)
    return tuple(scores)


LESS_TRUSTED = "others have more weight for this input, and MOR_MOST_CLIENTS limits how many are asked"


def unasked(voters: Collection[str], asked: Collection[str]) -> tuple[ClientScore, ...]:
    """The clients that had a say elsewhere, and were not asked about this group."""
    return tuple(
        ClientScore(client=name, status="not_asked", detail=LESS_TRUSTED) for name in voters if name not in asked
    )


def others(
    records: Mapping[str, ClientRecord],
    shadows: Sequence[str],
    outdated: Mapping[str, str],
    answers: Mapping[str, ClientResponse],
) -> tuple[ClientScore, ...]:
    """The clients without a say, and why."""
    scores = []
    for name, record in records.items():
        answer = answers.get(name)
        if name in shadows:
            missing = outdated.get(name, "not in the gate; fit the objective again")
            why = "on probation" if record.state == "probation" else missing
            if answer is None:
                why += "; slower than the clients with a say"
            elif answer.status != "ok":
                why += f"; {answer.status}: {answer.detail}"
            heard = answer or ClientResponse("ok")
            scores.append(
                ClientScore(
                    client=name, status="shadow", detail=why, model=heard.model, raw=heard.scores, seconds=heard.seconds
                )
            )
        elif record.state in ("paused", "quarantined"):
            why = f"{record.state}: {record.reason or 'no reason given'}"
            scores.append(ClientScore(client=name, status="not_asked", detail=why))
    return tuple(scores)


def observe(fused: Fused, lenses: Sequence[Lens]) -> None:
    """Count a scored group in the metrics."""
    metrics.OOD_SCORE.observe(beyond(lenses))
    for k, client in enumerate(fused.clients):
        metrics.CLIENT_REWARD.labels(client).observe(fused.calibrated[k].mean())
        metrics.CLIENT_REWARD_STD.labels(client).observe(fused.calibrated[k].std())
        metrics.WEIGHT.labels(client).observe(fused.weights[k])
        metrics.SLOPE.labels(client).observe(fused.slopes[k])
    metrics.REWARD.observe(fused.rewards.mean())
    metrics.REWARD_STD.observe(fused.rewards.std())
    metrics.ENTROPY.observe(fused.entropy)
    metrics.DISAGREEMENT.observe(fused.disagreement)
    if len(set(fused.rewards.tolist())) == 1:
        metrics.ZERO_VARIANCE.inc()
