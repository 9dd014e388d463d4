"""Scoring plan: the clients that score a group, those of them with weight, and why others have none."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mor_core.errors import Invalid
from mor_core.wire import LESS_TRUSTED, ModelRef

from mor_router.clients.registry import ClientRecord
from mor_router.mathematics.fusion import FusionChoice
from mor_router.objectives.active_gates import ActiveGates
from mor_router.objectives.objective_store import COLD_START

NOT_DRAWN = "others on probation were drawn for this group, and MOR_MOST_NEWCOMERS limits how many are called"


@dataclass(frozen=True)
class ScoringPlan:
    """Clients, gates and fusion for the groups of one objective."""

    gates: ActiveGates
    records: Mapping[str, ClientRecord]
    weighted_clients: Sequence[str]
    shadows: Sequence[str]
    """Clients that score without weight: some on probation, and those enrolled after the gate was fitted, or stale."""
    stale: Mapping[str, str]
    """Client of the gate -> why its calibration no longer holds."""
    fusion: FusionChoice
    unasked: Mapping[str, str]
    """Client that may not be sent these groups, by its own or the operator's rule -> the reason."""

    def check_askable(self) -> None:
        """Check that rules leave a client to score these groups; no wait for a client that is away would help.

        Raises:
            Invalid: they leave none.
        """
        if self.unasked and self.unasked.keys() >= self.records.keys():
            reasons = "; ".join(f"{client}: {reason}" for client, reason in self.unasked.items())
            raise Invalid(f"no client may be sent this prompt; change a rule, or the run's sources: {reasons}")

    def reason_without_weight(self, client: str) -> str:
        """Explain why a client of the registry has no weight for a group."""
        record = self.records[client]
        if client in self.unasked:
            parts = self.gates.parts
            counts = any(part.version == COLD_START or client in part.gate.clients for part in parts)
            state = record.state if record.state != "active" or counts else "not in the gate"
            return self.unasked[client] if state == "active" else f"{state}; {self.unasked[client]}"
        if client in self.shadows:
            missing = self.stale.get(client, "not in the gate; fit the objective again")
            return "on probation" if record.state == "probation" else missing
        if client in self.weighted_clients:
            return LESS_TRUSTED
        if record.state == "probation":
            return NOT_DRAWN
        return f"{record.state}: {record.reason or 'no reason given'}"


def make_plan(
    records: Mapping[str, ClientRecord],
    gates: ActiveGates,
    fusion: FusionChoice,
    most_newcomers: int,
    unasked: Mapping[str, str],
) -> ScoringPlan:
    """Divide the enrolled clients into weighted ones and shadows, with ``most_newcomers`` of those on probation.

    The ``unasked`` ones are neither: for these groups they might as well not be enrolled.
    """
    askable = {name: record for name, record in records.items() if name not in unasked}
    active = [name for name, record in askable.items() if record.state == "active"]
    known = [name for name in active if name in gates.clients]
    fitted_on = [part.models for part in gates.parts]
    stale = {name: why for name in known if (why := stale_reason(name, records[name].model, fitted_on)) is not None}
    # When all are stale, an old calibration is better than none; the detail of each client's score states it.
    weighted = [name for name in known if name not in stale] or known
    shadows = [name for name in active if name not in weighted] + draw_newcomers(askable, most_newcomers)
    return ScoringPlan(gates, records, weighted, shadows, stale, fusion, unasked)


def with_unreliable_active(record: ClientRecord) -> ClientRecord:
    """Return a client that is on probation for nothing but its failed calls as an active one."""
    unreliable = record.unreliable_at is not None and record.distrusted_at is None
    return record.model_copy(update={"state": "active"}) if unreliable and record.state == "probation" else record


def draw_newcomers(records: Mapping[str, ClientRecord], most: int) -> list[str]:
    """Draw up to ``most`` of the clients on probation, from those of each enrolment token in turn.

    So the clients that one token enrols cost the groups a bounded time, and keep no other token's from being called.
    """
    newcomers = [name for name, record in records.items() if record.state == "probation"]
    if len(newcomers) <= most:
        return newcomers
    by_token: dict[str | None, list[str]] = {}
    for name in random.sample(newcomers, len(newcomers)):
        by_token.setdefault(records[name].enrolled_by, []).append(name)
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_token.values()))
    return list(itertools.islice((name for name in rounds if name is not None), most))


def stale_reason(client: str, serves: ModelRef | None, fitted_on: Iterable[Mapping[str, ModelRef]]) -> str | None:
    """Explain why a client's calibration no longer holds; ``None`` where it holds or the client's model is unknown.

    ``fitted_on``: client -> model, for each objective.
    """
    for models in fitted_on:
        fitted = models.get(client)
        if fitted is not None and serves is not None and serves != fitted:
            return (
                f"serves {serves.name} {serves.version}; its calibration was fitted on {fitted.name} {fitted.version}; "
                f"fit the objective again"
            )
    return None
