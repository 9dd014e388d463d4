"""Gate weights of groups: the embedding of an input, and the active gates over it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Collection

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
        if not weighted_clients:
            raise NoClientAvailable("no active client is in the gate; PATCH a client to active, or fit the objective")
        return self._of_embedded(await self._embedder.inputs([x]), gates, weighted_clients)

    async def try_of(
        self, x: GateInput, plan: ScoringPlan, deadline_s: float, trace: str | None
    ) -> tuple[ObjectiveWeights, ...] | str:
        """Compute the weights for a group's input, or return why there are none. ``trace``: ``traceparent``."""
        with tracing.span("gate", parent=trace) as span:
            try:
                async with asyncio.timeout(deadline_s):
                    return await self.of(x, plan.gates, plan.weighted_clients)
            except TimeoutError:
                problem = f"the input was not embedded in {deadline_s:g} s"
                span.fail(problem)
                return problem
            except (MorError, ValueError) as error:
                span.fail(reason := describe_failure(error))
                return reason

    def of_embedded(self, plan: ScoringPlan, inputs: Float[ndarray, " features"]) -> dict[str, float]:
        """Return the weights of the clients that would score a group with this embedded input."""
        if not plan.weighted_clients:
            return {}
        return blended_weights(self._of_embedded(inputs[None], plan.gates, plan.weighted_clients))

    def _of_embedded(
        self, inputs: Float[ndarray, "1 features"], gates: ActiveGates, weighted_clients: Collection[str]
    ) -> tuple[ObjectiveWeights, ...]:
        found = tuple(_weights_of(part, inputs, weighted_clients) for part in gates.parts)
        if self._most_clients is None or len(weighted_clients) <= self._most_clients:
            return found
        weights = blended_weights(found)
        called = heapq.nlargest(self._most_clients, weights, key=weights.__getitem__)
        return tuple(_weights_of(part, inputs, called) for part in gates.parts)


def _weights_of(
    part: ObjectivePart, inputs: Float[ndarray, "1 features"], weighted_clients: Collection[str]
) -> ObjectiveWeights:
    weights, slopes = part.gate.weights(inputs, weighted_clients)[0], part.gate.slopes(inputs)[0]
    places = {client: k for k, client in enumerate(part.gate.clients) if client in weighted_clients}
    return ObjectiveWeights(
        part.share,
        {client: float(weights[k]) for client, k in places.items()},
        {client: float(slopes[k]) for client, k in places.items()},
        float(part.gate.ood_score(inputs)[0]),
    )
