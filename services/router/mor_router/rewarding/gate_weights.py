"""Gate weights of groups: the embedding of an input, and the active gates over it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from mor_core import tracing
from mor_core.errors import MorError
from mor_core.failures import describe_failure
from numpy import ndarray

from mor_router.embedding import Embedder, GateInput
from mor_router.mathematics.gate import NoClientAvailable
from mor_router.mathematics.group_fusion import ObjectiveWeights, blended_weights
from mor_router.objectives.active_gates import ActiveGates, ObjectivePart
from mor_router.rewarding.scoring_plan import ScoringPlan


@dataclass(frozen=True)
class NoWeights:
    """A group without gate weights."""

    problem: str
    missing: str | None = None
    """The part of the router that is away; ``None`` where the group's own input is at fault."""


class GateWeights:
    """Gate weights by input; of the weighted clients, the ``most_clients`` with most weight are called."""

    def __init__(self, embedder: Embedder, most_clients: int | None) -> None:
        self._embedder = embedder
        self._most_clients = most_clients

    async def of(
        self, x: GateInput, gates: ActiveGates, weighted_clients: Collection[str]
    ) -> tuple[ObjectiveWeights, ...]:
        """Compute each objective's weights for an input, over those of ``weighted_clients`` that are called for it.

        Raises:
            NoClientAvailable: there are no such clients, or an objective's gate has none of them.
            Invalid: an image cannot be decoded.
        """
        _check_available(gates, weighted_clients)
        [vector] = await self._embedder.inputs([x])
        [found] = _weights_at(vector[None], gates, weighted_clients)
        return self._limited(found, vector, gates)

    async def of_groups(
        self, inputs: Sequence[GateInput], traces: Sequence[str | None], plan: ScoringPlan, deadline_s: float
    ) -> list[tuple[ObjectiveWeights, ...] | NoWeights]:
        """Compute the weights for each group's input, or why there are none. ``traces``: their ``traceparent``.

        Each input is embedded by itself, so that one picture fails its own group only. The gates see all of them at
        once.
        """
        embedded = await asyncio.gather(
            *(self._try_embed(x, trace, plan, deadline_s) for x, trace in zip(inputs, traces, strict=True))
        )
        vectors = [vector for vector in embedded if not isinstance(vector, NoWeights)]
        found = iter(_weights_at(np.stack(vectors), plan.gates, plan.weighted_clients) if vectors else ())
        return [
            vector if isinstance(vector, NoWeights) else self._try_limited(next(found), vector, plan.gates)
            for vector in embedded
        ]

    async def _try_embed(
        self, x: GateInput, trace: str | None, plan: ScoringPlan, deadline_s: float
    ) -> Float[ndarray, " features"] | NoWeights:
        with tracing.span("gate", parent=trace) as span:
            try:
                plan.check_askable()
                _check_available(plan.gates, plan.weighted_clients)
                async with asyncio.timeout(deadline_s):
                    return np.asarray((await self._embedder.inputs([x]))[0])
            except TimeoutError:
                problem = f"the input was not embedded in {deadline_s:g} s"
                span.fail(problem)
                return NoWeights(problem, missing="embedder")
            except NoClientAvailable as error:
                span.fail(reason := describe_failure(error))
                return NoWeights(reason, missing="active clients")
            except (MorError, ValueError) as error:
                span.fail(reason := describe_failure(error))
                return NoWeights(reason)

    def of_embedded(
        self, plan: ScoringPlan, inputs: Float[ndarray, " features"], unasked: Collection[str]
    ) -> dict[str, float]:
        """Return the weights of the clients that would score a group with this embedded input, without the ``unasked``
        ones; none where an objective's gate has no other."""
        weighted = [name for name in plan.weighted_clients if name not in unasked]
        if not weighted or any({*part.gate.clients}.isdisjoint(weighted) for part in plan.gates.parts):
            return {}
        [found] = _weights_at(inputs[None], plan.gates, weighted)
        return blended_weights(self._limited(found, inputs, plan.gates))

    def _limited(
        self, found: tuple[ObjectiveWeights, ...], inputs: Float[ndarray, " features"], gates: ActiveGates
    ) -> tuple[ObjectiveWeights, ...]:
        """Return the weights of one input over the clients that are called for it.

        Raises:
            NoClientAvailable: an objective's gate has none of them.
        """
        weights = blended_weights(found)
        if self._most_clients is None or len(weights) <= self._most_clients:
            return found
        called = heapq.nlargest(self._most_clients, weights, key=weights.__getitem__)
        [limited] = _weights_at(inputs[None], gates, called)
        return limited

    def _try_limited(
        self, found: tuple[ObjectiveWeights, ...], inputs: Float[ndarray, " features"], gates: ActiveGates
    ) -> tuple[ObjectiveWeights, ...] | NoWeights:
        try:
            return self._limited(found, inputs, gates)
        except NoClientAvailable as error:
            return NoWeights(describe_failure(error))


def _check_available(gates: ActiveGates, weighted_clients: Collection[str]) -> None:
    """Check that every objective's gate has a client, before its input is embedded.

    Raises:
        NoClientAvailable: one has none.
    """
    if not weighted_clients:
        raise NoClientAvailable(
            "no active client is in the gate; activate one: mor client resume CLIENT --active, or fit the objective: "
            "mor objective fit OBJECTIVE"
        )
    if any({*part.gate.clients}.isdisjoint(weighted_clients) for part in gates.parts):
        raise NoClientAvailable("no client is available; at least one is needed")


def _weights_at(
    inputs: Float[ndarray, "inputs features"], gates: ActiveGates, weighted_clients: Collection[str]
) -> list[tuple[ObjectiveWeights, ...]]:
    """Return the weights of all objectives for each input."""
    parts = [_weights_of(part, inputs, weighted_clients) for part in gates.parts]
    return list(zip(*parts, strict=True))


def _weights_of(
    part: ObjectivePart, inputs: Float[ndarray, "inputs features"], weighted_clients: Collection[str]
) -> list[ObjectiveWeights]:
    found = part.gate.evaluate(inputs, weighted_clients)
    places = {client: k for k, client in enumerate(part.gate.clients) if client in weighted_clients}
    columns = (found.weights, found.slopes, found.ood_score, found.fit_weights)
    lines = zip(*(column.tolist() for column in columns), strict=True)
    return [
        ObjectiveWeights(
            part.share,
            {client: weights[k] for client, k in places.items()},
            {client: slopes[k] for client, k in places.items()},
            ood,
            {client: whole[k] for client, k in places.items()},
        )
        for weights, slopes, ood, whole in lines
    ]
