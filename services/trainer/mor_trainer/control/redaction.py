"""Redaction of answers beyond single fields, which ``mor_core.visibility`` redacts: whole groups, and events."""

from __future__ import annotations

from mor_core.auth import Principal, Scope
from mor_core.run_status import Event, SampleGroup

_NOT_SENT = ("not_asked", "circuit_open")
"""Statuses of a client that a group was not sent to; its token does not show the group."""


def view(caller: Principal) -> str:
    """Return a name of what the caller sees, equal for callers who see the same."""
    return f"{caller.scope}.{caller.name}" if caller.scope is Scope.client else caller.scope


def samples(found: list[SampleGroup], caller: Principal) -> list[SampleGroup]:
    """Return the sample groups that the caller may see; for a client, those that were sent to it."""
    if caller.scope is not Scope.client:
        return found
    return [
        sample
        for sample in found
        if any(score.client == caller.name and score.status not in _NOT_SENT for score in sample.clients)
    ]


def event(found: Event, caller: Principal) -> Event:
    """Return an event as readers of its run may see it; for a viewer, samples without the clients' errors."""
    if caller.scope is not Scope.viewer or found.kind != "samples":
        return found
    groups = [
        {**group, "clients": [{**score, "detail": None} for score in group.get("clients", ())]}
        for group in found.data.get("groups", ())
    ]
    return found.model_copy(update={"data": {**found.data, "groups": groups}})
