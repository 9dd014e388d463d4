"""Influence of each client's scores on the latest rewards, by objective.

It is measured on past rewards, unlike ``regional_slopes.influences``, which follow from a gate alone. With W_k the
client's weight and c_ki its calibrated scores of a group, M_i = Σ_k W_k c_ki is the mixture (the reward itself with
the default fusion) and

    share_k = Σ_groups Cov_i( W_k c_ki, M_i ) / Σ_groups Var_i( M_i )

the client's share of the within-group variance, which is GRPO's learning signal. Shares sum to 1 over clients; a client
that pulls against the others has a negative share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from mor_core.clients import Influence, ObjectiveInfluence
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries, is_wrong_type
from mor_core.wire import ClientScore, Finite, GroupReward, ObjectiveShare, Wire
from numpy import ndarray
from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from mor_router.store import key

_LATEST = 2000
"""Groups kept for each client; ``mor_core.clients.Influence`` documents the number."""
_TTL_S = 7 * 86400
"""Seconds after the last group for which the contributions are kept: a week, to cover pauses between runs."""
_MOST_KNOWN = 256
"""Clients whose summary is remembered: more than any installation has, and a few hundred kilobytes."""
_NONE = "(none)"


class Contribution(Wire):
    """One client's part in one rewarded group."""

    at: float
    objective: str
    weight: Finite
    covariance: Finite
    """Covariance of the client's part with the mixture over the group's responses, squared logits."""
    variance: Finite
    """Variance of the mixture over the group's responses, squared logits."""
    left_out: str | None
    """Status of its answer where it does not count."""


_CONTRIBUTION = TypeAdapter(Contribution)
_LINES = StoredEntries("influence", largest=4 << 10)  # 200 bytes, and the names of a blend's objectives


def _append(pipe: Pipeline, name: str, lines: Sequence[str]) -> None:
    pipe.lpush(name, *lines)
    pipe.ltrim(name, 0, _LATEST - 1)
    pipe.expire(name, _TTL_S)


def label(objectives: Sequence[ObjectiveShare]) -> str:
    """Return the label under which a group's objectives are counted."""
    return "+".join(line.name for line in objectives) or _NONE


def contributions(objective: str, clients: Sequence[ClientScore], at: float) -> dict[str, Contribution]:
    """Compute each client's contribution to one rewarded group."""
    scored = [line for line in clients if line.calibrated is not None]
    parts = np.array([line.weight for line in scored])[:, None] * np.array([line.calibrated for line in scored])
    mixture: Float[ndarray, " group"] = parts.sum(axis=0)
    centred = mixture - mixture.mean()
    variance = float(np.mean(centred**2))
    covariances = dict(zip((line.client for line in scored), (parts * centred).mean(axis=1).tolist(), strict=True))
    return {
        line.client: Contribution(
            at=at,
            objective=objective,
            weight=line.weight,
            covariance=covariances.get(line.client, 0.0),
            variance=variance,
            left_out=None if line.client in covariances else line.status,
        )
        for line in clients
    }


def summary(client: str, seen: Sequence[Contribution]) -> Influence:
    """Add up the contributions of one client."""
    found = []
    for objective in sorted({line.objective for line in seen}):
        lines = [line for line in seen if line.objective == objective]
        variance = sum(line.variance for line in lines)
        missed = [line.left_out for line in lines if line.left_out is not None]
        found.append(
            ObjectiveInfluence(
                objective=objective,
                groups=len(lines),
                counted=len(lines) - len(missed),
                mean_weight=sum(line.weight for line in lines) / len(lines),
                variance_share=sum(line.covariance for line in lines) / variance if variance else None,
                left_out={status: missed.count(status) for status in sorted(set(missed))},
            )
        )
    return Influence(client=client, since=min((line.at for line in seen), default=None), objectives=tuple(found))


class InfluenceLog:
    """The latest contributions of each client, in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reading = asyncio.Lock()
        self._known: dict[str, tuple[object, Influence]] = {}
        """Client -> the newest line of its log at the last summary, and the summary."""

    async def record(self, groups: Sequence[GroupReward]) -> None:
        """Record the clients' contributions to rewarded groups."""
        if not groups:
            return
        lines: dict[str, list[str]] = {}
        for group in groups:
            for client, line in contributions(label(group.objectives), group.clients, SERVER_CLOCK.now()).items():
                lines.setdefault(key("influence", client), []).append(line.model_dump_json())
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, latest in lines.items():
                _append(pipe, name, latest)
            replies = await pipe.execute(raise_on_error=False)
        broken: dict[str, None] = {}
        names = [name for name in lines for _ in range(3)]  # one for each command
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, ResponseError) and is_wrong_type(reply):
                broken[name] = None
            elif isinstance(reply, Exception):
                raise reply
        for name in broken:
            await _LINES.write(self._redis, {name: "list"}, partial(self._append_anew, name, lines[name]))

    async def _append_anew(self, name: str, latest: Sequence[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            _append(pipe, name, latest)
            await pipe.execute()

    async def of(self, client: str) -> Influence:
        """Summarise one client's latest contributions.

        Once for each state of the log and on a thread: any client's token may ask, and live groups must not wait.
        """
        name = key("influence", client)
        async with self._reading:
            state: list[bytes] = await _LINES.read(
                name, _LINES.fetch(self._redis, "LRANGE", name, 0, 0), []
            )  # its line has the time
            known, found = self._known.get(client, (None, None))
            if found is None or state != known:
                values: list[bytes] = await _LINES.read(
                    name, _LINES.fetch(self._redis, "LRANGE", name, 0, _LATEST - 1), []
                )
                found = await asyncio.to_thread(_summary_of, client, values)
                while len(self._known) >= _MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[client] = state, found
            return found


def _summary_of(client: str, values: Sequence[bytes]) -> Influence:
    return summary(client, _LINES.parse_list(values, partial(_CONTRIBUTION.validate_json, extra="ignore")))
