"""Gate versions: each fit is stored, numbered over all objectives, recorded on every reward, and can be activated."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np
from mor_core.errors import NotFound
from mor_core.wire import Documented, ModelRef
from numpy import ndarray
from pydantic import Field
from redis.asyncio import Redis

from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.mixture import Mixture
from mor_router.mathematics.regions import Regions
from mor_router.mathematics.standardise import Standardiser
from mor_router.mathematics.support import Support
from mor_router.objectives.gate_report import FitReport
from mor_router.store import VERSIONS, key


class RefitSummary(Documented):
    """Origin of a gate version in the policy's own responses."""

    policy: str
    """Run and weights version that were sampled."""
    questions: int
    """Anchors whose question the policy answered."""
    labelled: int
    """Questions whose responses gave a pair that checker or judge could rank; these pairs are added to the anchors."""
    dropped: dict[str, int]
    """Reason -> number of the other questions."""
    effective_share: float | None
    """Without checker or judge: effective sample size of the old anchors, weighted by their similarity to the policy's
    responses, as a share of their number."""


class GateSummary(Documented):
    """Gate version without its parameters."""

    version: int
    """Number of the version, from 1; distinct over all objectives."""
    objective: str
    created_at: float
    """Unix time, seconds."""
    embedder: str
    """Embedder with which the regions were fitted; the gate is used with the same one only."""
    models: dict[str, ModelRef]
    """Client -> the model whose scores it was fitted on."""
    extends: int | None = None
    """Version whose clients are kept unchanged, so that only the others were fitted; null: all were fitted."""
    report: FitReport
    """Quality of the fit."""
    refitted: RefitSummary | None = None
    """Summary of the online refit; null: fitted on the present anchors."""
    expected: dict[str, DriftBaseline] = Field(default_factory=dict)
    """Client -> the later scores that the drift test expects of it."""


class GateVersion(GateSummary):
    """Gate version with all parameters."""

    parameters: dict[str, Any]
    """The mixture: standardisers, regions, coefficients and support (``reach``) as plain numbers."""

    def summary(self) -> GateSummary:
        return GateSummary(**{name: getattr(self, name) for name in GateSummary.model_fields})


def dump_mixture(mixture: Mixture) -> dict[str, Any]:
    """Convert a mixture to JSON-ready numbers, without loss."""

    def plain(value: Any) -> Any:
        if isinstance(value, ndarray):
            return value.tolist()
        if isinstance(value, Regions | Support):
            return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        return value

    parameters = {item.name: plain(getattr(mixture, item.name)) for item in fields(mixture)}
    parameters["reach"] = parameters.pop("support")  # the key of stored gates
    parameters["standardisers"] = [asdict(standardiser) for standardiser in mixture.standardisers]
    return parameters


def load_mixture(parameters: dict[str, Any]) -> Mixture:
    """Convert the numbers of ``dump_mixture`` back. A gate that was stored without a support is used without one."""
    regions = parameters["regions"]
    support = parameters.get("reach", {"landmarks": [], "squared": 0.0})
    return Mixture(
        clients=tuple(parameters["clients"]),
        standardisers=tuple(Standardiser(**standardiser) for standardiser in parameters["standardisers"]),
        regions=Regions(
            mean=np.array(regions["mean"]),
            directions=np.array(regions["directions"]),
            centres=np.array(regions["centres"]),
            scales=tuple(regions["scales"]),
            variances=tuple(regions["variances"]),
        ),
        coefficients=np.array(parameters["coefficients"], dtype=float),
        support=Support(np.array(support["landmarks"], dtype=float), support["squared"]),
        typical=parameters.get("typical", 0.0),
        entropy_floor=parameters["entropy_floor"],
    )


class GateStore:
    """Store of the gate versions."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def next_version(self) -> int:
        return int(await self._redis.incr(VERSIONS))

    async def put(self, gate: GateVersion) -> None:
        await self._redis.hset(key("gates", gate.objective), str(gate.version), gate.model_dump_json())

    async def get(self, objective: str, version: int) -> GateVersion:
        """Return one version of an objective's gate.

        Raises:
            NotFound: the objective has no such version.
        """
        value = await self._redis.hget(key("gates", objective), str(version))
        if value is None:
            raise NotFound(f"objective {objective!r} has no gate version {version}; GET .../gates lists them")
        return GateVersion.model_validate_json(value)

    async def all(self, objective: str) -> list[GateSummary]:
        """Return the versions of an objective's gate, oldest first."""
        values: Any = await self._redis.hvals(key("gates", objective))
        return sorted(
            (GateVersion.model_validate_json(value).summary() for value in values), key=lambda gate: gate.version
        )
