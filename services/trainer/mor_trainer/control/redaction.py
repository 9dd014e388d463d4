"""Redaction of answers beyond single fields, which ``mor_core.visibility`` redacts: whole groups, and events."""

from __future__ import annotations

from typing import Any

from mor_core.auth import Principal, Scope
from mor_core.run_status import Event, SampleGroup, SampleScore
from mor_core.stored import StoredEntries

_NOT_SENT = ("not_asked", "circuit_open")
"""Statuses of a client that a group was not sent to; its token does not show the group."""
_ROWS = StoredEntries("history")


def view(caller: Principal) -> str:
    """Return a name of what the caller sees, equal for callers who see the same."""
    return f"{caller.scope}.{caller.name}" if caller.scope is Scope.client else caller.scope


def samples(found: list[SampleGroup], caller: Principal) -> list[SampleGroup]:
    """Return the sample groups that the caller may see; for a client, those that were sent to it."""
    if caller.scope is not Scope.client:
        return found
    return [
        sample for sample in found if any(score.client == caller.name and _was_sent(score) for score in sample.clients)
    ]


def _was_sent(score: SampleScore) -> bool:
    """Return whether a group was sent to a client; one in shadow that gave no scores may never have been called."""
    if score.status == "shadow":
        return score.raw is not None
    return score.status not in _NOT_SENT


def event(found: Event, caller: Principal) -> Event:
    """Return an event as readers of its run may see it; for a viewer, samples without the clients' errors.

    Samples that an older version stored and that do not fit are left empty for a viewer.
    """
    if caller.scope is not Scope.viewer or found.kind != "samples":
        return found
    data = _ROWS.parse(f"event {found.id}", found.data, _without_errors)
    return found.model_copy(update={"data": data or {}})


def _without_errors(data: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {**group, "clients": [{**score, "detail": None} for score in group["clients"]]} for group in data["groups"]
    ]
    return {**data, "groups": groups}
