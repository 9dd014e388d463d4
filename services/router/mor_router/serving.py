"""The mixtures in force: for each objective its active gate version, or the cold start where there is none."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from mor_core.errors import Conflict
from mor_core.wire import ModelRef
from numpy import ndarray
from redis.asyncio import Redis

from mor_router.embedding import Embedder
from mor_router.gates import Gates, load
from mor_router.mixture import Mixture
from mor_router.objectives import COLD_START, Objective, Objectives
from mor_router.standardise import Standardiser, fit_standardiser
from mor_router.store import key

_FRESH_S = 1.0
_LIKENESS = 0.6
_RECENT_PAIRS = 512
_RECENT_TTL_S = 7 * 86400
_PAIR = struct.Struct("<dd")


class Serving(Protocol):
    """What fusing a group needs; ``Mixture`` is one."""

    @property
    def clients(self) -> tuple[str, ...]: ...

    def weights(
        self, inputs: Float[ndarray, "inputs features"], available: Collection[str]
    ) -> Float[ndarray, "inputs clients"]: ...

    def slopes(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs clients"]: ...


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


@dataclass(frozen=True)
class InForce:
    """What is in force for an objective."""

    version: int
    serving: Serving
    objective: Objective | None
    note: str | None
    """Why there is no fitted gate, or why this objective was taken."""
    models: Mapping[str, ModelRef]
    """Client -> the model that its calibration was fitted on."""


class ServedGates:
    def __init__(self, redis: Redis, objectives: Objectives, gates: Gates, embedder: Embedder) -> None:
        self._redis = redis
        self._objectives = objectives
        self._gates = gates
        self._embedder = embedder
        self._loaded: dict[int, tuple[Mixture, Mapping[str, ModelRef]]] = {}
        self._known: list[Objective] = []
        self._read_at = 0.0

    def forget(self) -> None:
        """Read the objectives anew at the next question."""
        self._read_at = 0.0

    async def in_force(self, asked: str | None, active: Sequence[str]) -> InForce:
        """What to fuse with when a group's objective is ``asked``: a name, or a text like one of the objectives'.

        Raises:
            Conflict: the gate was fitted with another embedder.
        """
        if time.monotonic() - self._read_at > _FRESH_S:
            self._known = await self._objectives.all()
            self._read_at = time.monotonic()
        objective, note = await self._resolve(asked)
        if objective is None or objective.active == COLD_START:
            reason = note or f"objective {objective.name!r} has no fitted gate" if objective else note
            note = f"cold start, uniform over the active clients: {reason}"
            return InForce(COLD_START, ColdStart(tuple(active)), objective, note, {})
        mixture, models = await self._load(objective)
        return InForce(objective.active, mixture, objective, note, models)

    async def _resolve(self, asked: str | None) -> tuple[Objective | None, str | None]:
        if asked is None:
            return None, "no objective was named"
        for objective in self._known:
            if asked in (objective.name, objective.text):
                return objective, None
        vector = await self._embedder.text(asked)
        likeness = [float(vector @ await self._embedder.text(objective.text)) for objective in self._known]
        best = int(np.argmax(likeness)) if likeness else -1
        if best >= 0 and likeness[best] >= _LIKENESS:
            name = self._known[best].name
            return self._known[best], f"taken for objective {name!r} by its text (likeness {likeness[best]:.2f})"
        return None, f"no objective is named {asked[:80]!r} or has a text like it"

    async def _load(self, objective: Objective) -> tuple[Mixture, Mapping[str, ModelRef]]:
        version = objective.active
        if version not in self._loaded:
            gate = await self._gates.get(objective.name, version)
            if gate.embedder != self._embedder.name:
                raise Conflict(
                    f"gate version {version} of objective {objective.name!r} was fitted with embedder {gate.embedder}; "
                    f"this router has {self._embedder.name}: set the same models, or fit again"
                )
            self._loaded[version] = (load(gate.parameters), gate.models)
        return self._loaded[version]


class RecentScores:
    """Standardisers for the cold start, from the latest raw scores of each client."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def standardiser(
        self, client: str, model: ModelRef, groups: Sequence[Sequence[float]], *, remember: bool
    ) -> Standardiser | None:
        """Fitted on neighbouring pairs of ``groups`` and of the groups before; ``None`` where no group has a pair."""
        name = key("recent", client, model.name, model.version)
        pairs = [pair for group in groups for pair in itertools.pairwise(group)]
        stored: Any
        async with self._redis.pipeline(transaction=False) as pipe:
            if pairs and remember:
                pipe.lpush(name, *(_PAIR.pack(*pair) for pair in pairs))
                pipe.ltrim(name, 0, _RECENT_PAIRS - 1)
                pipe.expire(name, _RECENT_TTL_S)
            pipe.lrange(name, 0, _RECENT_PAIRS - 1)
            stored = (await pipe.execute())[-1]
        known = [_PAIR.unpack(value) for value in stored] or pairs
        return fit_standardiser(np.array(known)) if known else None
