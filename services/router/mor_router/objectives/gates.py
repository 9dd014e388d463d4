"""Gate versions: each fit is kept, numbered over all objectives, recorded on every reward, and can be gone back to."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np
from mor_core.errors import NotFound
from mor_core.wire import ModelRef, Wire
from numpy import ndarray
from pydantic import ConfigDict, Field
from redis.asyncio import Redis

from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.mixture import Mixture
from mor_router.mathematics.regions import Regions
from mor_router.mathematics.standardise import Standardiser
from mor_router.mathematics.support import Support
from mor_router.objectives.report import FitReport
from mor_router.store import VERSIONS, key


class Refitted(Wire):
    """How a gate version came from the policy's own responses."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    policy: str
    """Run and weights version that were sampled."""
    questions: int
    """Anchors whose question the policy answered."""
    labelled: int
    """Of these, those that gave a pair which checker or judge told apart; added to the anchors."""
    dropped: dict[str, int]
    """Why the others gave none."""
    effective_share: float | None
    """Without checker or judge: effective sample size of the old anchors, weighted by how like the policy's responses
    they are, as a share of their number."""


class GateSummary(Wire):
    model_config = ConfigDict(use_attribute_docstrings=True)

    version: int
    """Number of the version, from 1; distinct over all objectives."""
    objective: str
    created_at: float
    """Unix time, seconds."""
    embedder: str
    """The embedder that the regions were found with; serving needs the same."""
    models: dict[str, ModelRef]
    """Client -> the model whose scores it was fitted on."""
    extends: int | None = None
    """The version whose clients it keeps as they were: only the others were fitted. Null: all were."""
    report: FitReport
    """How good the fit is."""
    refitted: Refitted | None = None
    """What an online refit did; null: fitted on the anchors that were there."""
    expected: dict[str, DriftBaseline] = Field(default_factory=dict)
    """Client -> what is expected of its later answers; drift is judged by it."""


class GateVersion(GateSummary):
    parameters: dict[str, Any]
    """The mixture: standardisers, regions, coefficients and support (``reach``) as plain numbers."""

    def summary(self) -> GateSummary:
        return GateSummary(**{name: getattr(self, name) for name in GateSummary.model_fields})


def dump(mixture: Mixture) -> dict[str, Any]:
    """A mixture as JSON-ready numbers, exact."""

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


def load(parameters: dict[str, Any]) -> Mixture:
    """The inverse of ``dump``. A gate of before anchors had a support is served as it was."""
    regions = parameters["regions"]
    reach = parameters.get("reach", {"landmarks": [], "squared": 0.0})
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
        support=Support(np.array(reach["landmarks"], dtype=float), reach["squared"]),
        typical=parameters.get("typical", 0.0),
        entropy_floor=parameters["entropy_floor"],
    )


class Gates:
    """The gate versions in the store."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def next_version(self) -> int:
        return int(await self._redis.incr(VERSIONS))

    async def put(self, gate: GateVersion) -> None:
        await self._redis.hset(key("gates", gate.objective), str(gate.version), gate.model_dump_json())

    async def get(self, objective: str, version: int) -> GateVersion:
        """
        Raises:
            NotFound: the objective has no such version.
        """
        value = await self._redis.hget(key("gates", objective), str(version))
        if value is None:
            raise NotFound(f"objective {objective!r} has no gate version {version}; GET .../gates lists them")
        return GateVersion.model_validate_json(value)

    async def all(self, objective: str) -> list[GateSummary]:
        """Oldest first."""
        values: Any = await self._redis.hvals(key("gates", objective))
        return sorted(
            (GateVersion.model_validate_json(value).summary() for value in values), key=lambda gate: gate.version
        )
