"""What a client's scores did to the latest rewards, by objective.

With W_k the client's weight and c_ki its calibrated scores of a group, M_i = Σ_k W_k c_ki is the mixture (the reward
itself with the default fusion) and

    share_k = Σ_groups Cov_i( W_k c_ki, M_i ) / Σ_groups Var_i( M_i )

the client's share of the within-group variance: what GRPO learns from. Shares sum to 1 over clients; one that pulls
against the others has a negative share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from mor_core.clients import Influence, ObjectiveInfluence
from mor_core.wire import ClientScore, Finite, ObjectiveShare, Wire
from numpy import ndarray
from pydantic import TypeAdapter
from redis.asyncio import Redis

from mor_router.store import key

_LATEST = 2000
_TTL_S = 7 * 86400
_NONE = "(none)"


class Trace(Wire):
    """What one client did to one group."""

    at: float
    objective: str
    weight: Finite
    covariance: Finite
    """Of its part with the mixture, over the group's responses, squared logits."""
    variance: Finite
    """Of the mixture."""
    left_out: str | None
    """The status of its answer where it does not count."""


_TRACE = TypeAdapter(Trace)


def label(objectives: Sequence[ObjectiveShare]) -> str:
    """The word that a group's objectives are counted under."""
    return "+".join(line.name for line in objectives) or _NONE


def traces(objective: str, clients: Sequence[ClientScore], at: float) -> dict[str, Trace]:
    """What each client did to one rewarded group."""
    parts = {line.client: line.weight * np.array(line.calibrated) for line in clients if line.calibrated is not None}
    mixture: Float[ndarray, " group"] = np.sum(list(parts.values()), axis=0)
    centred = mixture - mixture.mean()
    return {
        line.client: Trace(
            at=at,
            objective=objective,
            weight=line.weight,
            covariance=float(np.mean(parts[line.client] * centred)) if line.client in parts else 0.0,
            variance=float(np.mean(centred**2)),
            left_out=None if line.client in parts else line.status,
        )
        for line in clients
    }


def summary(client: str, seen: Sequence[Trace]) -> Influence:
    """The traces of one client, added up."""
    found = []
    for objective in sorted({trace.objective for trace in seen}):
        lines = [trace for trace in seen if trace.objective == objective]
        variance = sum(trace.variance for trace in lines)
        missed = [trace.left_out for trace in lines if trace.left_out is not None]
        found.append(
            ObjectiveInfluence(
                objective=objective,
                groups=len(lines),
                counted=len(lines) - len(missed),
                mean_weight=sum(trace.weight for trace in lines) / len(lines),
                variance_share=sum(trace.covariance for trace in lines) / variance if variance else None,
                left_out={status: missed.count(status) for status in sorted(set(missed))},
            )
        )
    return Influence(client=client, since=min((trace.at for trace in seen), default=None), objectives=tuple(found))


class Influences:
    """The latest traces in the store."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def note(self, groups: Sequence[tuple[Sequence[ObjectiveShare], Sequence[ClientScore]]]) -> None:
        """Count rewarded groups: what each was rewarded for, and its account."""
        if not groups:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for objectives, clients in groups:
                for client, trace in traces(label(objectives), clients, time.time()).items():
                    name = key("influence", client)
                    pipe.lpush(name, trace.model_dump_json())
                    pipe.ltrim(name, 0, _LATEST - 1)
                    pipe.expire(name, _TTL_S)
            await pipe.execute()

    async def of(self, client: str) -> Influence:
        values: Any = await self._redis.lrange(key("influence", client), 0, _LATEST - 1)
        return summary(client, [_TRACE.validate_json(value) for value in values])
