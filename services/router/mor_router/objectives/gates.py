"""Gate versions: each fit is stored, numbered over all objectives, recorded on every reward, and can be activated."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from mor_core.errors import Conflict, Invalid, NotFound
from mor_core.stored import StoredEntries
from mor_core.stored_counters import next_number
from mor_core.wire import LARGEST_SCORE, Count, Documented, JsonObject, ModelRef
from numpy import ndarray
from pydantic import Field
from redis.asyncio import Redis

from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.mixture import Mixture
from mor_router.mathematics.regions import Regions
from mor_router.mathematics.standardise import Standardiser
from mor_router.mathematics.support import Support
from mor_router.objectives.gate_report import FitReport
from mor_router.store import VERSIONS, key, objective_names, version_number

_LARGEST_COEFFICIENT = 1e6
"""Logits per standardised unit: no fit on anchors comes near it, and a reward stays far below any overflow."""
_LARGEST_STANDARDISED = 100.0
"""Standardised units: level and deviation of a fitted standardiser have fixed bounds, 22 units together."""
_HIGHEST_TAKEN = 1 << 52
"""Highest number of a stored version that the counter follows: a forged one must leave numbers above it."""
_GATES = StoredEntries("gates", largest=64 << 20)


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

    version: Count
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

    parameters: JsonObject
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


def checked_mixture(parameters: dict[str, Any], size: int) -> Mixture:
    """Convert stored numbers to a mixture, and try it on an input of ``size`` features.

    Raises:
        Exception: they are no mixture for such inputs.
    """
    mixture = load_mixture(parameters)
    trial = np.zeros((1, size))
    for values in (mixture.weights(trial, mixture.clients), mixture.slopes(trial)):
        if values.shape != (1, len(mixture.clients)) or not np.isfinite(values).all():
            raise Invalid("its parameters give no finite weight and slope for each client")
    if not np.isfinite(mixture.ood_score(trial)).all() or len(set(mixture.clients)) < len(mixture.clients):
        raise Invalid("its parameters give no finite distance from the anchors, or name a client twice")
    if not np.abs([*mixture.coefficients.flat, mixture.typical]).max() <= _LARGEST_COEFFICIENT:
        raise Invalid(f"a coefficient is not within ±{_LARGEST_COEFFICIENT:g}")
    extremes = np.array([-LARGEST_SCORE, 0.0, LARGEST_SCORE])
    scores = np.array([standardiser(extremes) for standardiser in mixture.standardisers])
    if len(scores) != len(mixture.clients) or not (np.abs(scores) <= _LARGEST_STANDARDISED).all():
        raise Invalid("its parameters do not standardise the scores of each client")
    return mixture


class GateStore:
    """Store of the gate versions."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def next_version(self) -> int:
        """Return a number that no stored version has."""
        known = [version for name in await objective_names(self._redis) for version in await self._versions(name)]
        taken = max((version for version in known if version <= _HIGHEST_TAKEN), default=0)
        number, is_anew = await next_number(self._redis, VERSIONS, taken)
        if is_anew:
            _GATES.refuse(VERSIONS, "it is no counter, or behind the stored versions; it is counted anew")
        return number

    async def _versions(self, objective: str) -> list[int]:
        place = key("gates", objective)
        stored: list[bytes] = await _GATES.read(place, _GATES.fetch(self._redis, "HKEYS", place), [])
        return [version_number(version) for version in stored]

    async def put(self, gate: GateVersion) -> None:
        await self._redis.hset(key("gates", gate.objective), str(gate.version), gate.model_dump_json())

    async def get(self, objective: str, version: int) -> GateVersion:
        """Return one version of an objective's gate.

        Raises:
            NotFound: the objective has no such version.
            Conflict: it cannot be read.
        """
        place = key("gates", objective)
        value: Any = await _GATES.read(place, _GATES.fetch(self._redis, "HGET", place, str(version)), b"")
        if value is None:
            raise NotFound(
                f"objective {objective!r} has no gate version {version}; 'mor objective versions {objective}' shows all"
            )
        gate = _GATES.parse(f"{place} {version}", value, lambda given: _gate(objective, str(version), given))
        if gate is None:
            raise unreadable(objective, version)
        return gate

    async def all(self, objective: str) -> list[GateSummary]:
        """Return the versions of an objective's gate that can be read, oldest first."""
        place = key("gates", objective)
        stored: dict[bytes, bytes] = await _GATES.read(place, _GATES.fetch_hash(self._redis, place), {})
        found = await asyncio.to_thread(
            _GATES.parse_all, stored, lambda version, value: _gate(objective, version.decode(), value).summary()
        )
        return sorted(found.values(), key=lambda gate: gate.version)


def unreadable(objective: str, version: int) -> Conflict:
    """Return the error for a gate version that does not fit."""
    return Conflict(
        f"gate version {version} of objective {objective!r} cannot be read (the log has the reason); "
        "activate another version, or fit again"
    )


def _gate(objective: str, version: str, value: bytes) -> GateVersion:
    """Parse the gate that is stored as ``version`` of an objective.

    Raises:
        ValueError: it does not fit.
        Invalid: it is another one.
    """
    gate = GateVersion.model_validate_json(value, extra="ignore")
    if (gate.objective, str(gate.version)) != (objective, version):
        raise Invalid("a gate is stored as another version or for another objective")
    return gate
