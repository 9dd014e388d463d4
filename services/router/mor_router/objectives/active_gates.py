"""The mixtures in force: for each objective its active gate version, or the cold start where there is none."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float
from mor_core.errors import Conflict, NotFound
from mor_core.objectives import RequestedObjective, split_version
from mor_core.wire import ModelRef, ObjectiveShare
from numpy import ndarray
from redis.asyncio import Redis

from mor_router.embedding import Embedder
from mor_router.mathematics.drift_test import Expectation
from mor_router.mathematics.mixture import Mixture
from mor_router.objectives.gates import Gates, load
from mor_router.objectives.objectives import COLD_START, Objective, Objectives
from mor_router.objectives.similarity import shares

_FRESH_S = 1.0


class Serving(Protocol):
    """What fusing a group needs; ``Mixture`` is one."""

    @property
    def clients(self) -> tuple[str, ...]: ...

    def weights(
        self, inputs: Float[ndarray, "inputs features"], available: Collection[str]
    ) -> Float[ndarray, "inputs clients"]: ...

    def slopes(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs clients"]: ...

    def beyond(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, " inputs"]: ...


@dataclass(frozen=True)
class ColdStart:
    """No anchors, no evidence: the same weight for every client, slope 1."""

    clients: tuple[str, ...]

    def weights(
        self, inputs: Float[ndarray, "inputs features"], available: Collection[str]
    ) -> Float[ndarray, "inputs clients"]:
        shares = np.array([float(client in available) for client in self.clients])
        if not shares.any():
            raise ValueError("no client is available")
        return np.tile(shares / shares.sum(), (len(inputs), 1))

    def slopes(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs clients"]:
        return np.ones((len(inputs), len(self.clients)))

    def beyond(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, " inputs"]:
        return np.ones(len(inputs))


@dataclass(frozen=True)
class Loaded:
    """A fitted gate version, ready to serve."""

    mixture: Mixture
    models: Mapping[str, ModelRef]
    """Client -> the model that its calibration was fitted on."""
    expected: Mapping[str, Expectation]
    """What the fit expects of each client from then on."""


@dataclass(frozen=True)
class Part:
    """One objective of those that a group is rewarded for."""

    share: float
    """Of the reward; the shares of the parts sum to 1."""
    version: int
    serving: Serving
    objective: Objective | None
    """``None`` where none was named, or none is like the text asked."""
    models: Mapping[str, ModelRef]
    """Client -> the model that its calibration was fitted on."""
    expected: Mapping[str, Expectation] = field(default_factory=dict)
    """What the fit expects of each client; nothing without a fit."""


@dataclass(frozen=True)
class InForce:
    """What is in force for what was asked."""

    parts: tuple[Part, ...]
    """Largest share first; the shares sum to 1."""
    text: str | None
    """What the clients are told to judge by."""
    note: str | None
    """Why there is no fitted gate, or why these objectives were taken."""

    @property
    def clients(self) -> frozenset[str]:
        """Those that any part has weights for."""
        return frozenset(client for part in self.parts for client in part.serving.clients)

    @property
    def version(self) -> int:
        """Gate version of the largest part; 0: cold start."""
        return self.parts[0].version

    @property
    def objectives(self) -> tuple[ObjectiveShare, ...]:
        return tuple(
            ObjectiveShare(name=part.objective.name, share=part.share, gate_version=part.version)
            for part in self.parts
            if part.objective is not None
        )


class ServedGates:
    def __init__(
        self, redis: Redis, objectives: Objectives, gates: Gates, embedder: Embedder, least_likeness: float
    ) -> None:
        self._redis = redis
        self._objectives = objectives
        self._gates = gates
        self._embedder = embedder
        self._least_likeness = least_likeness
        self._loaded: dict[tuple[str, int], Loaded] = {}
        self._known: dict[str, Objective] = {}
        self._read_at = 0.0

    def forget(self) -> None:
        """Read the objectives anew at the next question."""
        self._read_at = 0.0

    async def in_force(self, asked: RequestedObjective | None, active: Sequence[str]) -> InForce:
        """What to fuse with when a group's objective is ``asked``: a name, a blend, or a text like the objectives'.

        Raises:
            NotFound: a blend names an objective that is not there, or a name a gate version that it does not have.
            Conflict: a gate was fitted with another embedder.
        """
        if time.monotonic() - self._read_at > _FRESH_S:
            self._known = {objective.name: objective for objective in await self._objectives.all()}
            self._read_at = time.monotonic()
        text: str | None
        if isinstance(asked, dict):
            shares = [(self._named(name), share) for name, share in asked.items()]
            text, note = blended([(objective.text, share) for objective, share in shares]), None
        elif asked is not None and (own := self._own(asked)) is not None:
            shares, text, note = [(own, 1.0)], own.text, None
        else:
            shares, note = await self._alike(asked)
            text = asked
        parts = [await self._part(objective, share, active) for objective, share in shares]
        notes = [note] if note is not None else []
        notes += [
            f"objective {objective.name!r} has no fitted gate"
            for objective, _ in shares
            if objective.active == COLD_START
        ]
        if not parts:
            parts = [Part(1.0, COLD_START, ColdStart(tuple(active)), None, {})]
        if any(part.version == COLD_START for part in parts):
            notes = [f"cold start, uniform over the active clients: {'; '.join(notes)}"]
        ordered = tuple(sorted(parts, key=lambda part: -part.share))
        return InForce(ordered, text, "; ".join(notes) or None)

    def _named(self, asked: str) -> Objective:
        objective = self._own(asked)
        if objective is None:
            raise NotFound(f"no objective {asked!r}, which the blend asks for; POST /v1/objectives makes one")
        return objective

    def _own(self, asked: str) -> Objective | None:
        """The objective of this name or text, with the gate version that it is asked with."""
        name, version = split_version(asked)
        for objective in self._known.values():
            if name in (objective.name, objective.text):
                return objective if version is None else objective.model_copy(update={"active": version})
        return None

    async def _alike(self, asked: str | None) -> tuple[list[tuple[Objective, float]], str | None]:
        """The objectives with a text like ``asked``, their shares, and why these."""
        if asked is None:
            return [], "no objective was named"
        fitted = [objective for objective in self._known.values() if objective.active != COLD_START]
        vector = await self._embedder.text(asked)
        likeness = np.array([await self._likeness(vector, objective) for objective in fitted])
        if not fitted or likeness.max() < self._least_likeness:
            nearest = f"; the likest, {fitted[likeness.argmax()].name!r}, has {likeness.max():.2f}" if fitted else ""
            return [], f"no objective is named {asked[:80]!r} and no fitted one has a text like it{nearest}"
        found = [(o, float(share)) for o, share in zip(fitted, shares(likeness), strict=True) if share > 0]
        told = ", ".join(f"{objective.name!r} {share:.2f}" for objective, share in found)
        return found, f"taken by its text for {told} (likeness {likeness.max():.2f})"

    async def _likeness(self, vector: Float[ndarray, " features"], objective: Objective) -> float:
        texts = (objective.text, *objective.paraphrases)
        return max([float(vector @ await self._embedder.text(text)) for text in texts])

    async def _part(self, objective: Objective, share: float, active: Sequence[str]) -> Part:
        if objective.active == COLD_START:
            return Part(share, COLD_START, ColdStart(tuple(active)), objective, {})
        loaded = await self.load(objective)
        return Part(share, objective.active, loaded.mixture, objective, loaded.models, loaded.expected)

    async def load(self, objective: Objective) -> Loaded:
        """The gate version of ``objective`` that is in force.

        Raises:
            NotFound: it has none.
            Conflict: it was fitted with another embedder.
        """
        name, version = objective.name, objective.active
        if (name, version) not in self._loaded:
            gate = await self._gates.get(name, version)
            if gate.embedder != self._embedder.name:
                raise Conflict(
                    f"gate version {version} of objective {name!r} was fitted with embedder {gate.embedder}; "
                    f"this router has {self._embedder.name}: set the same models, or fit again"
                )
            self._loaded[name, version] = Loaded(load(gate.parameters), gate.models, gate.expected)
        return self._loaded[name, version]


def blended(parts: Sequence[tuple[str, float]]) -> str:
    """What a client is told of a blend: it is asked once, and each objective's gate weighs the same scores."""
    return "\n".join(f"{share:.0%}: {text}" for text, share in sorted(parts, key=lambda part: -part[1]))
