"""Active gates: for each objective its active gate version, or the cold start where there is none."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.errors import Conflict, NotFound, Unavailable
from mor_core.failures import describe_failure
from mor_core.objectives import RequestedObjective, split_version
from mor_core.stored import StoredEntries
from mor_core.wire import ModelRef, ObjectiveShare
from numpy import ndarray
from redis.exceptions import ResponseError

from mor_router.embedding import Embedder
from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.gate import GateEvaluation, NoClientAvailable
from mor_router.mathematics.mixture import Mixture
from mor_router.objectives.gates import GateStore, checked_mixture, unreadable
from mor_router.objectives.objective_store import COLD_START, Objective, ObjectiveStore
from mor_router.objectives.similarity import objective_shares
from mor_router.store import OBJECTIVES

_FRESH_S = 1.0
"""Seconds for which the objectives are kept: a change by another replica takes effect within them."""

_MIXTURES = StoredEntries("gate_parameters")

log = structlog.get_logger(__name__)


class GateModel(Protocol):
    """Gate as the fusion of a group needs it; ``Mixture`` is one."""

    @property
    def clients(self) -> tuple[str, ...]: ...

    def evaluate(self, inputs: Float[ndarray, "inputs features"], available: Collection[str]) -> GateEvaluation: ...


@dataclass(frozen=True)
class ColdStart:
    """Gate without anchors: the same weight for every client, and slope 1."""

    clients: tuple[str, ...]

    def evaluate(self, inputs: Float[ndarray, "inputs features"], available: Collection[str]) -> GateEvaluation:
        known = np.array([float(client in available) for client in self.clients])
        if not known.any():
            raise NoClientAvailable("no client is available; at least one is needed")
        weights = np.tile(known / known.sum(), (len(inputs), 1))
        whole = np.full_like(weights, 1 / len(self.clients))
        return GateEvaluation(weights, np.ones_like(weights), whole, np.ones(len(inputs)))


@dataclass(frozen=True)
class LoadedGate:
    """Fitted gate version, ready to weigh scores."""

    mixture: Mixture
    models: Mapping[str, ModelRef]
    """Client -> the model that its calibration was fitted on."""
    expected: Mapping[str, DriftBaseline]
    """Client -> the scores that the fit expects of it, for the drift test."""
    precision: float
    """λ of the fit."""


@dataclass(frozen=True)
class ObjectivePart:
    """One objective of a group's reward, with its share and its gate."""

    share: float
    """Share of the reward; the shares of a group's parts sum to 1."""
    version: int
    gate: GateModel
    objective: Objective | None
    """``None`` where the request named none, and no objective is similar to its text."""
    models: Mapping[str, ModelRef]
    """Client -> the model that its calibration was fitted on."""
    expected: Mapping[str, DriftBaseline] = field(default_factory=dict)
    """Client -> the scores that the fit expects of it; empty without a fit."""


@dataclass(frozen=True)
class ActiveGates:
    """Gates that apply to a requested objective."""

    parts: tuple[ObjectivePart, ...]
    """Largest share first; the shares sum to 1."""
    text: str | None
    """Objective text that the clients get."""
    note: str | None
    """Reason why there is no fitted gate, or why these objectives were chosen."""

    @property
    def clients(self) -> frozenset[str]:
        """Clients for which any part has weights."""
        return frozenset(client for part in self.parts for client in part.gate.clients)

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


_MOST_LOADED = 256
"""Gate versions in memory: a caller may name any version of any objective."""


class GateResolver:
    """Lookup of the active gates for a requested objective: a name, a blend, or a text."""

    def __init__(
        self, objectives: ObjectiveStore, gates: GateStore, embedder: Embedder, least_similarity: float
    ) -> None:
        self._objectives = objectives
        self._gates = gates
        self._embedder = embedder
        self._least_similarity = least_similarity
        self._loaded: dict[tuple[str, int], LoadedGate] = {}
        self._known: dict[str, Objective] = {}
        self._read_at = 0.0
        self.problem: str | None = None
        """Reason why the present objectives are not known, if any; for ``/readyz``."""

    @property
    def features(self) -> int:
        """Number of features of an input."""
        return self._embedder.size

    def invalidate(self) -> None:
        """Have the next lookup read the objectives again."""
        self._read_at = 0.0

    async def resolve(self, requested: RequestedObjective | None, active: Sequence[str]) -> ActiveGates:
        """Return the active gates for a group whose objective is ``requested``, with the ``active`` clients.

        Raises:
            NotFound: no such objective of a blend, of a name with a version, or of an empty name; or no such version.
            Conflict: a gate was fitted with another embedder.
        """
        if time.monotonic() - self._read_at > _FRESH_S:
            await self._refresh()
        text: str | None
        if isinstance(requested, dict):
            chosen = [(self._find_required(name), share) for name, share in requested.items()]
            text, note = blend_texts([(objective.text, share) for objective, share in chosen]), None
        elif requested is not None and (own := self._find(requested)) is not None:
            chosen, text, note = [(own, 1.0)], own.text, None
        else:
            chosen, note = await self._find_similar(requested)
            text = requested
        parts = [await self._part(objective, share, active) for objective, share in chosen]
        notes = [note] if note is not None else []
        notes += [
            f"objective {objective.name!r} has no fitted gate"
            for objective, _ in chosen
            if objective.active == COLD_START
        ]
        if not parts:
            parts = [ObjectivePart(1.0, COLD_START, ColdStart(tuple(active)), None, {})]
        if any(part.version == COLD_START for part in parts):
            notes = [f"cold start, uniform over the active clients: {'; '.join(notes)}"]
        ordered = tuple(sorted(parts, key=lambda part: -part.share))
        return ActiveGates(ordered, text, "; ".join(notes) or None)

    async def _refresh(self) -> None:
        """Read the objectives; while they are lost or their key has another type, their last state stays in use."""
        try:
            self._known = {objective.name: objective for objective in await self._objectives.all_whole()}
            self.problem = None
        except Unavailable as error:  # /readyz has it from the registry of clients
            log.warning("the objectives are lost; their last state stays in use", error=str(error))
        except ResponseError as error:
            reason = describe_failure(error)
            _MIXTURES.refuse(OBJECTIVES, reason)
            self.problem = f"the objectives cannot be read, their last state is in use: {reason}"
        self._read_at = time.monotonic()

    def _find_required(self, requested: str) -> Objective:
        objective = self._find(requested)
        if objective is None:
            raise NotFound(f"no objective {requested!r}, which the blend names; 'mor objective create' makes one")
        return objective

    def _find(self, requested: str) -> Objective | None:
        """Return the objective of this name or text, with the gate version that the name pins.

        Raises:
            NotFound: there is none of a name with a version, or nothing is named: neither can be a text.
        """
        name, version = split_version(requested)
        for objective in self._known.values():
            if name in (objective.name, objective.text):
                return objective if version is None else objective.model_copy(update={"active": version})
        if version is not None or not requested.strip():
            raise NotFound(f"no objective {name!r}; 'mor objective list' shows those that there are")
        return None

    async def _find_similar(self, requested: str | None) -> tuple[list[tuple[Objective, float]], str | None]:
        """Return the objectives whose texts are similar to ``requested``, their shares, and a note with the reason."""
        if requested is None:
            return [], "no objective was named"
        fitted = [objective for objective in self._known.values() if objective.active != COLD_START]
        vector = await self._embedder.text(requested)
        similarity = np.array([await self._similarity(vector, objective) for objective in fitted])
        if not fitted or similarity.max() < self._least_similarity:
            nearest = ""
            if fitted:
                nearest = f"; the most similar, {fitted[similarity.argmax()].name!r}, has {similarity.max():.2f}"
            return [], f"no objective is named {requested[:80]!r} and no fitted one has a similar text{nearest}"
        shares = objective_shares(similarity)
        found = [(objective, float(share)) for objective, share in zip(fitted, shares, strict=True) if share > 0]
        listed = ", ".join(f"{objective.name!r} {share:.2f}" for objective, share in found)
        return found, f"chosen by its text: {listed} (similarity {similarity.max():.2f})"

    async def _similarity(self, vector: Float[ndarray, " features"], objective: Objective) -> float:
        texts = (objective.text, *objective.paraphrases)
        return max([float(vector @ await self._embedder.text(text)) for text in texts])

    async def _part(self, objective: Objective, share: float, active: Sequence[str]) -> ObjectivePart:
        if objective.active == COLD_START:
            return ObjectivePart(share, COLD_START, ColdStart(tuple(active)), objective, {})
        loaded = await self.load(objective)
        return ObjectivePart(share, objective.active, loaded.mixture, objective, loaded.models, loaded.expected)

    async def load(self, objective: Objective) -> LoadedGate:
        """Return the active gate version of ``objective``.

        Raises:
            NotFound: it has none.
            Conflict: it was fitted with another embedder, or cannot be read.
        """
        name, version = objective.name, objective.active
        if (name, version) not in self._loaded:
            gate = await self._gates.get(name, version)
            if gate.embedder != self._embedder.name:
                raise Conflict(
                    f"gate version {version} of objective {name!r} was fitted with embedder {gate.embedder}; "
                    f"this router has {self._embedder.name}: set the same models, or fit again"
                )
            mixture = _MIXTURES.parse(
                f"{name} {version}", gate.parameters, lambda given: checked_mixture(given, self._embedder.size)
            )
            if mixture is None or not gate.report.precision > 0:
                raise unreadable(name, version)
            while len(self._loaded) >= _MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[name, version] = LoadedGate(mixture, gate.models, gate.expected, gate.report.precision)
        return self._loaded[name, version]


def blend_texts(parts: Sequence[tuple[str, float]]) -> str:
    """Return the objective text of a blend. A client scores it once, and each objective's gate weighs these scores."""
    return "\n".join(f"{share:.0%}: {text}" for text, share in sorted(parts, key=lambda part: -part[1]))
